//! tonic with default options under the contract of programs.py beside this folder.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use bytes::{Buf, BufMut, Bytes};
use http::uri::PathAndQuery;
use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::client::Grpc;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status};

const INFER: &str = "/inference.GRPCInferenceService/ModelInfer";
const STREAM: &str = "/inference.GRPCInferenceService/ModelStreamInfer";
/// Of a call that is waited for: only a lost answer takes so long.
const PATIENCE: Duration = Duration::from_secs(60);
/// After a call that failed, as a client that is not paced would spin while a server is away.
const PENALTY: Duration = Duration::from_millis(50);
const WRONG: i32 = -1;

/// A codec of messages that are bytes already.
#[derive(Clone, Copy, Default)]
struct Raw;

impl Codec for Raw {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = Raw;
    type Decoder = Raw;

    fn encoder(&mut self) -> Raw {
        Raw
    }

    fn decoder(&mut self) -> Raw {
        Raw
    }
}

impl Encoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, message: Bytes, out: &mut EncodeBuf<'_>) -> Result<(), Status> {
        out.put(message);
        Ok(())
    }
}

impl Decoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, from: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        Ok(Some(from.copy_to_bytes(from.remaining())))
    }
}

/// The calls of one status that failed.
struct Failures {
    count: u64,
    first_s: f64,
    last_s: f64,
    text: String,
}

/// What a run prints.
#[derive(Default)]
struct Tally {
    calls: u64,
    given_up: u64,
    failed: BTreeMap<i32, Failures>,
}

impl Tally {
    fn failed(&mut self, code: i32, text: &str) {
        let now_s = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0.0, |since| since.as_secs_f64());
        let these = self.failed.entry(code).or_insert_with(|| Failures {
            count: 0,
            first_s: now_s,
            last_s: now_s,
            text: text.to_owned(),
        });
        these.count += 1;
        these.last_s = now_s;
    }

    fn json(&self) -> serde_json::Value {
        let failed: serde_json::Map<String, serde_json::Value> = self
            .failed
            .iter()
            .map(|(code, these)| {
                let shown = serde_json::json!({
                    "count": these.count, "first_s": these.first_s, "last_s": these.last_s, "text": these.text,
                });
                (code.to_string(), shown)
            })
            .collect();
        serde_json::json!({"calls": self.calls, "given_up": self.given_up, "failed": failed})
    }
}

#[derive(Clone)]
struct Soak {
    grpc: Grpc<Channel>,
    request: Bytes,
    answer_bytes: usize,
    burst: u64,
    pause: Duration,
    end: Instant,
    tally: Arc<Mutex<Tally>>,
}

impl Soak {
    fn goes_on(&self) -> bool {
        Instant::now() < self.end
    }

    fn failed(&self, status: &Status) {
        self.tally
            .lock()
            .unwrap()
            .failed(status.code() as i32, status.message());
    }

    fn check(&self, answer: &Bytes) {
        let mut tally = self.tally.lock().unwrap();
        if answer.len() < self.answer_bytes {
            let text = format!(
                "expected an answer of at least {} bytes, got {}",
                self.answer_bytes,
                answer.len()
            );
            tally.failed(WRONG, &text);
        } else {
            tally.calls += 1;
        }
    }

    async fn unary(&mut self, deadline: Option<Duration>) -> Result<Bytes, Status> {
        self.grpc
            .ready()
            .await
            .map_err(|error| Status::unavailable(format!("{error:?}")))?;
        let mut request = Request::new(self.request.clone());
        if let Some(deadline) = deadline {
            request.set_timeout(deadline);
        }
        let answer = self
            .grpc
            .unary(request, PathAndQuery::from_static(INFER), Raw)
            .await?;
        Ok(answer.into_inner())
    }

    async fn paced(&self, number: u64) {
        if number % self.burst == 0 && !self.pause.is_zero() {
            sleep(self.pause).await;
        }
    }

    /// Makes calls one after the other.
    async fn call(mut self) {
        let mut number = 0;
        while self.goes_on() {
            match self.unary(Some(PATIENCE)).await {
                Ok(answer) => self.check(&answer),
                Err(status) => {
                    self.failed(&status);
                    sleep(PENALTY).await;
                }
            }
            number += 1;
            self.paced(number).await;
        }
    }

    /// Sends messages on one stream, one after the other, and opens another where that fails.
    async fn converse(mut self) {
        while self.goes_on() {
            if let Err(status) = self.stream().await {
                self.failed(&status);
                sleep(PENALTY).await;
            }
        }
    }

    async fn stream(&mut self) -> Result<(), Status> {
        self.grpc
            .ready()
            .await
            .map_err(|error| Status::unavailable(format!("{error:?}")))?;
        let (sender, receiver) = mpsc::channel::<Bytes>(1);
        // Before the stream is opened: a server may answer with headers only once there is something to answer.
        sender
            .try_send(self.request.clone())
            .expect("there is room for one message");
        let requests = Request::new(ReceiverStream::new(receiver));
        let mut answers = self
            .grpc
            .streaming(requests, PathAndQuery::from_static(STREAM), Raw)
            .await?
            .into_inner();
        let mut number = 0;
        loop {
            match answers.message().await? {
                Some(answer) => self.check(&answer),
                None => {
                    return Err(Status::unknown(
                        "expected an answer, got the end of the stream",
                    ));
                }
            }
            number += 1;
            self.paced(number).await;
            if !self.goes_on() {
                break;
            }
            if sender.send(self.request.clone()).await.is_err() {
                return Err(Status::unknown(
                    "the stream is over, and its end brought no status",
                ));
            }
        }
        drop(sender);
        match answers.message().await? {
            Some(_) => Err(Status::unknown(
                "expected the end of the stream, got a message",
            )),
            None => Ok(()),
        }
    }

    /// Begins calls and gives each up within 2 ms: ten a second, or by deadlines as fast as it goes.
    async fn give_up(mut self, by_deadline: bool) {
        while self.goes_on() {
            let soon = Duration::from_micros(rand::random_range(0..2000));
            let ended = if by_deadline {
                self.unary(Some(soon.max(Duration::from_millis(1)))).await
            } else {
                match timeout(soon, self.unary(None)).await {
                    Ok(ended) => ended,
                    Err(_) => Err(Status::cancelled("given up")),
                }
            };
            match ended {
                Err(status)
                    if !matches!(status.code(), Code::Cancelled | Code::DeadlineExceeded) =>
                {
                    self.failed(&status);
                }
                _ => self.tally.lock().unwrap().given_up += 1,
            }
            if !by_deadline {
                sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let flags: BTreeMap<&str, &str> = words
        .chunks_exact(2)
        .map(|pair| (pair[0].trim_start_matches("--"), pair[1].as_str()))
        .collect();
    let flag =
        |name: &str, by_default: &'static str| flags.get(name).copied().unwrap_or(by_default);
    let channel = Endpoint::from_shared(format!("http://{}", flag("address", "")))?.connect_lazy();
    let soak = Soak {
        grpc: Grpc::new(channel),
        request: tokio::fs::read(flag("request", "")).await?.into(),
        answer_bytes: flag("answer-bytes", "0").parse()?,
        burst: flag("burst", "1").parse()?,
        pause: Duration::from_millis(flag("pause-ms", "0").parse()?),
        end: Instant::now() + Duration::from_secs_f64(flag("seconds", "1").parse()?),
        tally: Arc::default(),
    };
    let mut work = Vec::new();
    for _ in 0..flag("callers", "1").parse()? {
        let one = soak.clone();
        work.push(if flag("way", "unary") == "stream" {
            tokio::spawn(one.converse())
        } else {
            tokio::spawn(one.call())
        });
    }
    let gives_up = flag("gives-up", "none");
    if gives_up != "none" {
        work.push(tokio::spawn(soak.clone().give_up(gives_up == "deadline")));
    }
    for each in work {
        each.await?;
    }
    println!("{}", soak.tally.lock().unwrap().json());
    Ok(())
}

// @grpc/grpc-js with default options under the contract of programs.py beside this folder.
"use strict";

const { readFileSync } = require("node:fs");
const { setTimeout: sleep } = require("node:timers/promises");
const { parseArgs } = require("node:util");
const grpc = require("@grpc/grpc-js");

const SERVICE = "/inference.GRPCInferenceService/";
// Of a call that is waited for: only a lost answer takes so long.
const PATIENCE_MS = 60_000;
// After a call that failed, as a client that is not paced would spin while a server is away.
const PENALTY_MS = 50;
const WRONG = -1;

const asIs = (bytes) => bytes;
const flag = (byDefault) => ({ type: "string", default: byDefault });
const { values: flags } = parseArgs({
  options: {
    address: flag(""),
    request: flag(""),
    "answer-bytes": flag("0"),
    callers: flag("1"),
    burst: flag("1"),
    "pause-ms": flag("0"),
    seconds: flag("1"),
    way: flag("unary"),
    "gives-up": flag("none"),
  },
});
const request = readFileSync(flags.request);
const burst = Number(flags.burst);
const end = performance.now() + Number(flags.seconds) * 1000;
const client = new grpc.Client(flags.address, grpc.credentials.createInsecure());
const tally = { calls: 0, given_up: 0, failed: {} };

const goesOn = () => performance.now() < end;

function failed(error) {
  const nowS = Date.now() / 1000;
  const code = error.code ?? WRONG;
  const these = (tally.failed[code] ??= { count: 0, first_s: nowS, last_s: nowS, text: String(error.message) });
  these.count += 1;
  these.last_s = nowS;
}

function check(answer) {
  if (answer.length < Number(flags["answer-bytes"])) {
    throw new Error(`expected an answer of at least ${flags["answer-bytes"]} bytes, got ${answer.length}`);
  }
  tally.calls += 1;
}

// Begins a call and gives it to `hold`, which may cancel it.
function unary(options, hold = () => {}) {
  return new Promise((resolve, reject) => {
    const done = (error, answer) => (error ? reject(error) : resolve(answer));
    hold(client.makeUnaryRequest(`${SERVICE}ModelInfer`, asIs, asIs, request, new grpc.Metadata(), options, done));
  });
}

async function pause(number) {
  const wait = number % burst === 0 ? Number(flags["pause-ms"]) : 0;
  if (wait > 0) await sleep(wait);
}

// Makes calls one after the other.
async function call() {
  for (let number = 1; goesOn(); number++) {
    try {
      check(await unary({ deadline: Date.now() + PATIENCE_MS }));
    } catch (error) {
      failed(error);
      await sleep(PENALTY_MS);
    }
    await pause(number);
  }
}

// Sends messages on one stream, one after the other, and opens another where that fails.
async function converse() {
  while (goesOn()) {
    try {
      const stream = client.makeBidiStreamRequest(`${SERVICE}ModelStreamInfer`, asIs, asIs);
      const answers = stream[Symbol.asyncIterator]();
      for (let number = 1; goesOn(); number++) {
        stream.write(request);
        const { value, done } = await answers.next();
        if (done) throw new Error("expected an answer, got the end of the stream");
        check(value);
        await pause(number);
      }
      stream.end();
      if (!(await answers.next()).done) throw new Error("expected the end of the stream, got a message");
    } catch (error) {
      failed(error);
      await sleep(PENALTY_MS);
    }
  }
}

// Begins calls and gives each up within 2 ms: ten a second, or by deadlines as fast as it goes.
async function giveUp(how) {
  while (goesOn()) {
    const soonMs = Math.random() * 2;
    try {
      if (how === "deadline") {
        await unary({ deadline: Date.now() + Math.max(1, soonMs) });
      } else {
        await unary({}, (begun) => setTimeout(() => begun.cancel(), soonMs));
      }
      tally.given_up += 1;
    } catch (error) {
      if (error.code === grpc.status.CANCELLED || error.code === grpc.status.DEADLINE_EXCEEDED) tally.given_up += 1;
      else failed(error);
    }
    if (how !== "deadline") await sleep(100);
  }
}

async function main() {
  const work = Array.from({ length: Number(flags.callers) }, () => (flags.way === "stream" ? converse() : call()));
  if (flags["gives-up"] !== "none") work.push(giveUp(flags["gives-up"]));
  await Promise.all(work);
  client.close();
  console.log(JSON.stringify(tally));
}

main();

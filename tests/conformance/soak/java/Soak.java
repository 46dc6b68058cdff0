import io.grpc.CallOptions;
import io.grpc.Channel;
import io.grpc.Context;
import io.grpc.InsecureChannelCredentials;
import io.grpc.ManagedChannel;
import io.grpc.MethodDescriptor;
import io.grpc.Status;
import io.grpc.StatusException;
import io.grpc.StatusRuntimeException;
import io.grpc.netty.NettyChannelBuilder;
import io.grpc.okhttp.OkHttpChannelBuilder;
import io.grpc.stub.BlockingClientCall;
import io.grpc.stub.ClientCalls;
import java.io.ByteArrayInputStream;
import java.io.IOException;
import java.io.InputStream;
import java.io.UncheckedIOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.StringJoiner;
import java.util.TreeMap;
import java.util.concurrent.Executors;
import java.util.concurrent.ScheduledExecutorService;
import java.util.concurrent.ThreadLocalRandom;
import java.util.concurrent.TimeUnit;

/** grpc-java with default options under the contract of programs.py beside this folder, on --transport netty or okhttp. */
public final class Soak {
  private static final int WRONG = -1;
  /** Of a call that is waited for: only a lost answer takes so long. */
  private static final int PATIENCE_S = 60;
  /** After a call that failed, as a client that is not paced would spin while a server is away. */
  private static final int PENALTY_MS = 50;

  private static final MethodDescriptor<byte[], byte[]> INFER =
      method(MethodDescriptor.MethodType.UNARY, "ModelInfer");
  private static final MethodDescriptor<byte[], byte[]> STREAM =
      method(MethodDescriptor.MethodType.BIDI_STREAMING, "ModelStreamInfer");

  /** Messages that are bytes already. */
  private static final class Raw implements MethodDescriptor.Marshaller<byte[]> {
    @Override
    public InputStream stream(byte[] message) {
      return new ByteArrayInputStream(message);
    }

    @Override
    public byte[] parse(InputStream stream) {
      try {
        return stream.readAllBytes();
      } catch (IOException error) {
        throw new UncheckedIOException(error);
      }
    }
  }

  private static MethodDescriptor<byte[], byte[]> method(MethodDescriptor.MethodType type, String name) {
    return MethodDescriptor.<byte[], byte[]>newBuilder()
        .setType(type)
        .setFullMethodName("inference.GRPCInferenceService/" + name)
        .setRequestMarshaller(new Raw())
        .setResponseMarshaller(new Raw())
        .build();
  }

  /** The calls of one status that failed. */
  private static final class Failures {
    int count;
    double firstS;
    double lastS;
    String text = "";
  }

  /** What a run prints. */
  private static final class Tally {
    private int calls;
    private int givenUp;
    private final Map<Integer, Failures> failed = new TreeMap<>();

    synchronized void done() {
      calls++;
    }

    synchronized void gaveUp() {
      givenUp++;
    }

    synchronized void failed(int code, String text) {
      double nowS = System.currentTimeMillis() / 1e3;
      Failures these = failed.computeIfAbsent(code, none -> new Failures());
      if (these.count++ == 0) {
        these.firstS = nowS;
        these.text = text;
      }
      these.lastS = nowS;
    }

    synchronized String json() {
      StringJoiner all = new StringJoiner(", ");
      failed.forEach((code, these) -> all.add(String.format(
          "\"%d\": {\"count\": %d, \"first_s\": %.3f, \"last_s\": %.3f, \"text\": \"%s\"}",
          code, these.count, these.firstS, these.lastS, these.text.replaceAll("[\"\\\\\\p{Cntrl}]", "'"))));
      return String.format("{\"calls\": %d, \"given_up\": %d, \"failed\": {%s}}", calls, givenUp, all);
    }
  }

  private final ManagedChannel channel;
  private final Map<String, String> flags;
  private final byte[] request;
  private final int answerBytes;
  private final int burst;
  private final long pauseMs;
  private final long endNs;
  private final Tally tally = new Tally();
  private final ScheduledExecutorService timer = Executors.newSingleThreadScheduledExecutor();

  private Soak(Map<String, String> flags) throws IOException {
    this.flags = flags;
    String address = flags.get("address");
    channel = flags.getOrDefault("transport", "netty").equals("netty")
        ? NettyChannelBuilder.forTarget(address, InsecureChannelCredentials.create()).build()
        : OkHttpChannelBuilder.forTarget(address, InsecureChannelCredentials.create()).build();
    request = Files.readAllBytes(Path.of(flags.get("request")));
    answerBytes = Integer.parseInt(flags.getOrDefault("answer-bytes", "0"));
    burst = Integer.parseInt(flags.getOrDefault("burst", "1"));
    pauseMs = Long.parseLong(flags.getOrDefault("pause-ms", "0"));
    endNs = System.nanoTime() + (long) (Double.parseDouble(flags.getOrDefault("seconds", "1")) * 1e9);
  }

  private boolean goesOn() {
    return System.nanoTime() < endNs;
  }

  private boolean check(byte[] answer) {
    if (answer == null || answer.length < answerBytes) {
      int size = answer == null ? 0 : answer.length;
      tally.failed(WRONG, "expected an answer of at least " + answerBytes + " bytes, got " + size);
      return false;
    }
    tally.done();
    return true;
  }

  private byte[] unary(CallOptions options) {
    return ClientCalls.blockingUnaryCall((Channel) channel, INFER, options, request);
  }

  private void pause(int number) throws InterruptedException {
    if (number % burst == 0) {
      Thread.sleep(pauseMs);
    }
  }

  /** Makes calls one after the other. */
  private void call() throws Exception {
    for (int number = 1; goesOn(); number++) {
      try {
        check(unary(CallOptions.DEFAULT.withDeadlineAfter(PATIENCE_S, TimeUnit.SECONDS)));
      } catch (StatusRuntimeException error) {
        tally.failed(error.getStatus().getCode().value(), error.toString());
        Thread.sleep(PENALTY_MS);
      }
      pause(number);
    }
  }

  /** Sends messages on one stream, one after the other, and opens another where that fails. */
  private void converse() throws Exception {
    while (goesOn()) {
      BlockingClientCall<byte[], byte[]> stream =
          ClientCalls.blockingBidiStreamingCall(channel, STREAM, CallOptions.DEFAULT);
      try {
        for (int number = 1; goesOn(); number++) {
          stream.write(request);
          if (!check(stream.read())) {
            break;
          }
          pause(number);
        }
        stream.halfClose();
        if (stream.read() != null) {
          tally.failed(WRONG, "expected the end of the stream, got a message");
        }
      } catch (StatusException error) {
        tally.failed(error.getStatus().getCode().value(), error.toString());
        Thread.sleep(PENALTY_MS);
      }
    }
  }

  /** Begins calls and gives each up within 2 ms: ten a second, or by deadlines as fast as it goes. */
  private void giveUp(String how) throws Exception {
    while (goesOn()) {
      long soonUs = ThreadLocalRandom.current().nextLong(2000);
      try {
        if (how.equals("deadline")) {
          unary(CallOptions.DEFAULT.withDeadlineAfter(Math.max(1000, soonUs), TimeUnit.MICROSECONDS));
        } else {
          Context.CancellableContext context = Context.current().withCancellation();
          timer.schedule(() -> context.cancel(null), soonUs, TimeUnit.MICROSECONDS);
          context.call(() -> unary(CallOptions.DEFAULT));
        }
        tally.gaveUp();
      } catch (StatusRuntimeException error) {
        Status.Code code = error.getStatus().getCode();
        if (code == Status.Code.CANCELLED || code == Status.Code.DEADLINE_EXCEEDED) {
          tally.gaveUp();
        } else {
          tally.failed(code.value(), error.toString());
        }
      }
      if (!how.equals("deadline")) {
        Thread.sleep(100);
      }
    }
  }

  private interface Work {
    void run() throws Exception;
  }

  private void run() throws InterruptedException {
    List<Thread> threads = new ArrayList<>();
    for (int caller = 0; caller < Integer.parseInt(flags.getOrDefault("callers", "1")); caller++) {
      threads.add(started(flags.getOrDefault("way", "unary").equals("stream") ? this::converse : this::call));
    }
    String givesUp = flags.getOrDefault("gives-up", "none");
    if (!givesUp.equals("none")) {
      threads.add(started(() -> giveUp(givesUp)));
    }
    for (Thread thread : threads) {
      thread.join();
    }
    timer.shutdownNow();
    channel.shutdown().awaitTermination(5, TimeUnit.SECONDS);
    System.out.println(tally.json());
  }

  private Thread started(Work work) {
    Thread thread = new Thread(() -> {
      try {
        work.run();
      } catch (Exception error) {
        tally.failed(WRONG, error.toString());
      }
    });
    thread.start();
    return thread;
  }

  public static void main(String[] words) throws Exception {
    Map<String, String> flags = new HashMap<>();
    for (int number = 0; number + 1 < words.length; number += 2) {
      flags.put(words[number].substring(2), words[number + 1]);
    }
    new Soak(flags).run();
  }
}

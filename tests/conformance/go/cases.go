package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/encoding/gzip"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/dynamicpb"
	"google.golang.org/protobuf/types/known/emptypb"
)

var cases = []struct {
	name string
	run  func(ctx context.Context, m *mesh) error
}{
	{"unary", unary},
	{"metadata", withMetadata},
	{"metadata-of-20-kB", withLongMetadata},
	{"gzip", compressed},
	{"deadline", deadline},
	{"cancel", cancelled},
	{"health-watch", healthWatch},
	{"stream-of-1000", streamOfThousand},
	{"stream-without-messages", emptyStream},
	{"stream-cancelled-half-way", streamCancelled},
	{"50-streams-at-once", manyStreams},
	{"200-calls-at-once", manyCalls},
	{"20-MB-tensor", largeTensor},
	{"error-text", errorText},
	{"unknown-method", unknownMethod},
	{"unknown-service", unknownService},
}

func unary(ctx context.Context, m *mesh) error {
	answer, err := m.infer(ctx, m.iris("one"))
	if err != nil {
		return err
	}
	return isIris(answer, "one")
}

// Every byte may stand in a -bin value, any number of values below a key.
func withMetadata(ctx context.Context, m *mesh) error {
	all := make([]byte, 256)
	for index := range all {
		all[index] = byte(index)
	}
	ctx = metadata.AppendToOutgoingContext(ctx, "x-text", "a, b", "x-text", "", "x-all-bin", string(all),
		"x-all-bin", "", "x-all-bin", "\x00", "x-comma-bin", ",")
	var header, trailer metadata.MD
	answer, err := m.infer(ctx, m.iris("with metadata"), grpc.Header(&header), grpc.Trailer(&trailer))
	if err != nil {
		return err
	}
	if got := header.Get("content-type"); len(got) != 1 || !strings.HasPrefix(got[0], "application/grpc") {
		return fmt.Errorf("expected content-type application/grpc, got %q", got)
	}
	return isIris(answer, "with metadata")
}

// More than one frame of headers: grpc-go goes on in CONTINUATION frames after 16 KiB.
func withLongMetadata(ctx context.Context, m *mesh) error {
	ctx = metadata.AppendToOutgoingContext(ctx, "x-long-bin", strings.Repeat("\x00\xff\x7f\x80", 5000))
	answer, err := m.infer(ctx, m.iris("long"))
	if err != nil {
		return err
	}
	return isIris(answer, "long")
}

func compressed(ctx context.Context, m *mesh) error {
	values := floats(make([]float32, 250_000)...)
	answer, err := m.infer(ctx, m.request("echo", "gzip", "1, 250000", values), grpc.UseCompressor(gzip.Name))
	if err != nil {
		return err
	}
	if !bytes.Equal(output(answer), values) {
		return errors.New("the tensor came back changed")
	}
	return nil
}

// The gate stays shut: nothing but its deadline ends this call.
func deadline(ctx context.Context, m *mesh) error {
	ctx, stop := context.WithTimeout(ctx, 500*time.Millisecond)
	defer stop()
	_, err := m.infer(ctx, m.request("gate", "late", "1, 1", floats(1)))
	return expect(err, codes.DeadlineExceeded)
}

func cancelled(ctx context.Context, m *mesh) error {
	ctx, stop := context.WithCancel(ctx)
	time.AfterFunc(100*time.Millisecond, stop)
	_, err := m.infer(ctx, m.request("gate", "unwanted", "1, 1", floats(1)))
	return expect(err, codes.Canceled)
}

func healthWatch(ctx context.Context, m *mesh) error {
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	watch, err := grpc_health_v1.NewHealthClient(m.connection).Watch(ctx, &grpc_health_v1.HealthCheckRequest{})
	if err != nil {
		return err
	}
	answer, err := watch.Recv()
	if err != nil {
		return err
	}
	if answer.Status != grpc_health_v1.HealthCheckResponse_SERVING {
		return fmt.Errorf("expected SERVING, got %v", answer.Status)
	}
	stop()
	_, err = watch.Recv()
	return expect(err, codes.Canceled)
}

func streamOfThousand(ctx context.Context, m *mesh) error {
	return streamed(ctx, m, "thousand", 1000)
}

// streamed sends `count` messages while it receives their answers, which must come in order, and then the end.
func streamed(ctx context.Context, m *mesh, name string, count int) error {
	stream, err := m.stream(ctx)
	if err != nil {
		return err
	}
	sent := make(chan error, 1)
	go func() {
		for index := range count {
			if err := stream.SendMsg(m.iris(fmt.Sprintf("%s %d", name, index))); err != nil {
				sent <- err
				return
			}
		}
		sent <- stream.CloseSend()
	}()
	for index := range count {
		answer, err := m.next(stream)
		if err != nil {
			return fmt.Errorf("answer %d: %w", index, err)
		}
		if err := isIris(answer, fmt.Sprintf("%s %d", name, index)); err != nil {
			return err
		}
	}
	if err := <-sent; err != nil {
		return err
	}
	if _, err := m.next(stream); err != io.EOF {
		return fmt.Errorf("expected the end with OK, got %v", err)
	}
	return nil
}

func emptyStream(ctx context.Context, m *mesh) error {
	return streamed(ctx, m, "empty", 0)
}

// What the client no longer wants ends at once, and the connection goes on.
func streamCancelled(ctx context.Context, m *mesh) error {
	inner, stop := context.WithCancel(ctx)
	defer stop()
	stream, err := m.stream(inner)
	if err != nil {
		return err
	}
	for index := range 10 {
		if err := stream.SendMsg(m.iris(fmt.Sprint(index))); err != nil {
			return err
		}
	}
	if _, err := m.next(stream); err != nil {
		return err
	}
	stop()
	for err == nil {
		_, err = m.next(stream)
	}
	if err := expect(err, codes.Canceled); err != nil {
		return err
	}
	return unary(ctx, m)
}

func manyStreams(ctx context.Context, m *mesh) error {
	return atOnce(50, func(index int) error {
		return streamed(ctx, m, fmt.Sprintf("stream %d", index), 20)
	})
}

func manyCalls(ctx context.Context, m *mesh) error {
	return atOnce(200, func(index int) error {
		answer, err := m.infer(ctx, m.iris(fmt.Sprint(index)))
		if err != nil {
			return err
		}
		return isIris(answer, fmt.Sprint(index))
	})
}

// atOnce runs `count` of `one` side by side and returns what went wrong.
func atOnce(count int, one func(index int) error) error {
	wrong := make([]error, count)
	var all sync.WaitGroup
	for index := range count {
		all.Add(1)
		go func() {
			defer all.Done()
			wrong[index] = one(index)
		}()
	}
	all.Wait()
	return errors.Join(wrong...)
}

func largeTensor(ctx context.Context, m *mesh) error {
	const count = 5_000_000
	values := make([]float32, count)
	for index := range values {
		values[index] = float32(index)
	}
	raw := floats(values...)
	answer, err := m.infer(ctx, m.request("echo", "large", fmt.Sprintf("1, %d", count), raw))
	if err != nil {
		return err
	}
	if !bytes.Equal(output(answer), raw) {
		return errors.New("the tensor came back changed")
	}
	return nil
}

// A status text travels percent-encoded and arrives as it was written.
func errorText(ctx context.Context, m *mesh) error {
	const name = "näïve 100% %41\t模型"
	_, err := m.infer(ctx, m.request(name, "unknown", "1, 4", floats(1, 2, 3, 4)))
	// A router knows that there is no such model; a node only that it does not hold it.
	if code := status.Code(err); code != codes.NotFound && code != codes.Unavailable {
		return fmt.Errorf("expected NotFound or Unavailable, got %v", err)
	}
	if message := status.Convert(err).Message(); !strings.Contains(message, "'"+name+"'") {
		return fmt.Errorf("expected the name %q, got %q", name, message)
	}
	return nil
}

func unknownMethod(ctx context.Context, m *mesh) error {
	answer := dynamicpb.NewMessage(m.method("ModelInfer").Output())
	err := m.connection.Invoke(ctx, "/"+service+"/NoSuchMethod", m.iris("none"), answer)
	return expect(err, codes.Unimplemented)
}

func unknownService(ctx context.Context, m *mesh) error {
	err := m.connection.Invoke(ctx, "/no.such.Service/Method", &emptypb.Empty{}, &emptypb.Empty{})
	return expect(err, codes.Unimplemented)
}

// expect tells what is wrong with an error that should have a code.
func expect(err error, code codes.Code) error {
	if status.Code(err) != code {
		return fmt.Errorf("expected %v, got %v", code, err)
	}
	return nil
}

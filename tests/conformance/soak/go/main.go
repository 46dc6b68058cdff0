// Command soak is grpc-go with default options under the contract of programs.py beside this folder.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
)

const (
	inferMethod  = "/inference.GRPCInferenceService/ModelInfer"
	streamMethod = "/inference.GRPCInferenceService/ModelStreamInfer"
	// Of a call that is waited for: only a lost answer takes so long.
	patience = 60 * time.Second
	// After a call that failed, as a client that is not paced would spin while a server is away.
	penalty = 50 * time.Millisecond
	wrong   = -1
)

// raw is a codec of messages that are bytes already.
type raw struct{}

func (raw) Name() string { return "proto" }

func (raw) Marshal(message any) ([]byte, error) { return *message.(*[]byte), nil }

func (raw) Unmarshal(data []byte, message any) error {
	*message.(*[]byte) = append([]byte(nil), data...)
	return nil
}

// failures are the calls of one status that failed.
type failures struct {
	Count  int     `json:"count"`
	FirstS float64 `json:"first_s"`
	LastS  float64 `json:"last_s"`
	Text   string  `json:"text"`
}

// tally is what a run prints.
type tally struct {
	mutex   sync.Mutex
	Calls   int               `json:"calls"`
	GivenUp int               `json:"given_up"`
	Failed  map[int]*failures `json:"failed"`
}

// done counts a call, and tells whether it went well.
func (t *tally) done(err error) bool {
	t.mutex.Lock()
	defer t.mutex.Unlock()
	if err == nil {
		t.Calls++
		return true
	}
	code := wrong
	if known, ok := status.FromError(err); ok {
		code = int(known.Code())
	}
	now := float64(time.Now().UnixNano()) / 1e9
	if t.Failed[code] == nil {
		t.Failed[code] = &failures{FirstS: now, Text: err.Error()}
	}
	t.Failed[code].Count++
	t.Failed[code].LastS = now
	return false
}

// givenUp counts a call that was meant to be given up, as failed where it ended otherwise.
func (t *tally) givenUp(err error) {
	if code := status.Code(err); code != codes.OK && code != codes.Canceled && code != codes.DeadlineExceeded {
		t.done(err)
		return
	}
	t.mutex.Lock()
	defer t.mutex.Unlock()
	t.GivenUp++
}

type soak struct {
	connection  *grpc.ClientConn
	request     []byte
	answerBytes int
	burst       int
	pause       time.Duration
	end         time.Time
	tally       *tally
}

func (s *soak) check(answer []byte) error {
	if len(answer) < s.answerBytes {
		return fmt.Errorf("expected an answer of at least %d bytes, got %d", s.answerBytes, len(answer))
	}
	return nil
}

func (s *soak) unary(ctx context.Context) error {
	var answer []byte
	if err := s.connection.Invoke(ctx, inferMethod, &s.request, &answer); err != nil {
		return err
	}
	return s.check(answer)
}

// call makes calls one after the other.
func (s *soak) call() {
	for number := 1; time.Now().Before(s.end); number++ {
		ctx, stop := context.WithTimeout(context.Background(), patience)
		if !s.tally.done(s.unary(ctx)) {
			time.Sleep(penalty)
		}
		stop()
		if number%s.burst == 0 {
			time.Sleep(s.pause)
		}
	}
}

// converse sends messages on one stream, one after the other, and opens another where that fails.
func (s *soak) converse() {
	for time.Now().Before(s.end) {
		if err := s.stream(); err != nil {
			s.tally.done(err)
			time.Sleep(penalty)
		}
	}
}

func (s *soak) stream() error {
	ctx, stop := context.WithCancel(context.Background())
	defer stop()
	stream, err := s.connection.NewStream(ctx, &grpc.StreamDesc{ClientStreams: true, ServerStreams: true}, streamMethod)
	if err != nil {
		return err
	}
	for number := 1; time.Now().Before(s.end); number++ {
		if err := stream.SendMsg(&s.request); err != nil && !errors.Is(err, io.EOF) {
			return err
		}
		var answer []byte
		if err := stream.RecvMsg(&answer); err != nil {
			return err
		}
		if err := s.check(answer); err != nil {
			return err
		}
		s.tally.done(nil)
		if number%s.burst == 0 {
			time.Sleep(s.pause)
		}
	}
	if err := stream.CloseSend(); err != nil {
		return err
	}
	var answer []byte
	if err := stream.RecvMsg(&answer); !errors.Is(err, io.EOF) {
		return fmt.Errorf("expected the end of the stream, got %d bytes and %w", len(answer), err)
	}
	return nil
}

// giveUp begins calls and gives each up within 2 ms: ten a second, or by deadlines as fast as it goes.
func (s *soak) giveUp(how string) {
	for time.Now().Before(s.end) {
		soon := time.Duration(rand.Int64N(int64(2 * time.Millisecond)))
		if how == "deadline" {
			ctx, stop := context.WithTimeout(context.Background(), max(soon, time.Millisecond))
			s.tally.givenUp(s.unary(ctx))
			stop()
			continue
		}
		ctx, stop := context.WithCancel(context.Background())
		time.AfterFunc(soon, stop)
		s.tally.givenUp(s.unary(ctx))
		stop()
		time.Sleep(100 * time.Millisecond)
	}
}

func run() error {
	address := flag.String("address", "", "")
	request := flag.String("request", "", "")
	answerBytes := flag.Int("answer-bytes", 0, "")
	callers := flag.Int("callers", 1, "")
	burst := flag.Int("burst", 1, "")
	pauseMs := flag.Int("pause-ms", 0, "")
	seconds := flag.Float64("seconds", 1, "")
	way := flag.String("way", "unary", "")
	givesUp := flag.String("gives-up", "none", "")
	flag.Parse()
	message, err := os.ReadFile(*request)
	if err != nil {
		return err
	}
	connection, err := grpc.NewClient(*address, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.ForceCodec(raw{})))
	if err != nil {
		return err
	}
	defer connection.Close()
	s := &soak{
		connection, message, *answerBytes, *burst, time.Duration(*pauseMs) * time.Millisecond,
		time.Now().Add(time.Duration(*seconds * float64(time.Second))), &tally{Failed: map[int]*failures{}},
	}
	var all sync.WaitGroup
	for range *callers {
		if *way == "stream" {
			all.Go(s.converse)
		} else {
			all.Go(s.call)
		}
	}
	if *givesUp != "none" {
		all.Go(func() { s.giveUp(*givesUp) })
	}
	all.Wait()
	return json.NewEncoder(os.Stdout).Encode(s.tally)
}

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/status"
)

// steady calls iris from several goroutines on one channel with default options, as fast as answers come or paced, with
// 80 KB to echo or calls that are given up in between, and counts the connections that this took.
type steady struct {
	callers int
	pause   time.Duration
	giveUp  bool
	large   bool
	seconds int
}

func (s steady) run(address string, transport credentials.TransportCredentials) error {
	var dialed, failed, done, gone atomic.Int64
	connection, err := grpc.NewClient(address, grpc.WithTransportCredentials(transport),
		grpc.WithContextDialer(func(ctx context.Context, target string) (net.Conn, error) {
			dialed.Add(1)
			return (&net.Dialer{}).DialContext(ctx, "tcp", target)
		}))
	if err != nil {
		return err
	}
	defer connection.Close()
	ctx, stop := context.WithTimeout(context.Background(), patience)
	defer stop()
	mesh, err := describe(ctx, connection)
	if err != nil {
		return err
	}
	end := time.Now().Add(time.Duration(s.seconds) * time.Second)
	tensor := floats(make([]float32, 20_000)...)
	first := make(chan error, s.callers)
	var callers sync.WaitGroup
	for caller := range s.callers {
		callers.Add(1)
		go func() {
			defer callers.Done()
			for number := 0; time.Now().Before(end); number++ {
				message := mesh.iris(fmt.Sprintf("%d %d", caller, number))
				if s.large && number%8 == 7 {
					message = mesh.request("echo", "large", "1, 20000", tensor)
				}
				if s.giveUp && caller == 0 {
					ctx, stop := context.WithTimeout(ctx, time.Duration(rand.Int64N(int64(2*time.Millisecond))))
					if _, err := mesh.infer(ctx, message); status.Code(err) == codes.DeadlineExceeded {
						gone.Add(1)
					}
					stop()
				} else if _, err := mesh.infer(ctx, message); err != nil {
					if failed.Add(1) == 1 {
						first <- err
					}
				} else {
					done.Add(1)
				}
				time.Sleep(s.pause)
			}
		}()
	}
	callers.Wait()
	fmt.Printf("%d connections, %d answers, %d given up, %d failed\n", dialed.Load(), done.Load(), gone.Load(),
		failed.Load())
	if failed.Load() > 0 {
		return <-first
	}
	if dialed.Load() != 1 {
		return fmt.Errorf("expected one connection, got %d", dialed.Load())
	}
	return nil
}

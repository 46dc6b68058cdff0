// Command judge calls a running mesh as a program with grpc-go does, one case after the other.
//
// It prints "PASS name" for each case that went well and "FAIL name: reason" for each other, and exits with 1 if there
// was one of these. It knows no message beforehand: the server describes them by reflection.
package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"flag"
	"fmt"
	"os"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
)

// Long enough for any case on a slow machine; only a lost answer takes it.
const patience = 100 * time.Second

func main() {
	address := flag.String("address", "", "host:port of a router or node that serves iris, echo and gate")
	ca := flag.String("ca", "", "PEM roots to trust; empty for plaintext")
	cert := flag.String("cert", "", "PEM certificate to show")
	key := flag.String("key", "", "PEM key of the certificate")
	flag.Parse()
	var failed bool
	transport, err := transportOf(*ca, *cert, *key)
	if err == nil {
		failed, err = judge(*address, transport)
	}
	if err != nil {
		fmt.Println("FAIL setup:", err)
	}
	if failed || err != nil {
		os.Exit(1)
	}
}

func judge(address string, transport credentials.TransportCredentials) (failed bool, err error) {
	connection, err := grpc.NewClient(address, grpc.WithTransportCredentials(transport),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(1<<30)))
	if err != nil {
		return false, err
	}
	defer connection.Close()
	ctx, stop := context.WithTimeout(context.Background(), patience)
	defer stop()
	mesh, err := describe(ctx, connection)
	if err != nil {
		return false, err
	}
	for _, each := range cases {
		ctx, stop := context.WithTimeout(context.Background(), patience)
		if err := each.run(ctx, mesh); err != nil {
			fmt.Printf("FAIL %s: %v\n", each.name, err)
			failed = true
		} else {
			fmt.Printf("PASS %s\n", each.name)
		}
		stop()
	}
	return failed, nil
}

// transportOf returns plaintext without roots, else TLS, with a certificate where one is given.
func transportOf(ca, cert, key string) (credentials.TransportCredentials, error) {
	if ca == "" {
		return insecure.NewCredentials(), nil
	}
	pem, err := os.ReadFile(ca)
	if err != nil {
		return nil, err
	}
	config := &tls.Config{RootCAs: x509.NewCertPool()}
	if !config.RootCAs.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("no certificate in %s", ca)
	}
	if cert != "" {
		pair, err := tls.LoadX509KeyPair(cert, key)
		if err != nil {
			return nil, err
		}
		config.Certificates = []tls.Certificate{pair}
	}
	return credentials.NewTLS(config), nil
}

package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"log/slog"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/granary-oci/granary/cmd/granary/node"
)

// keyPair makes a certificate that is signed by itself.
func keyPair(t *testing.T) (certFile, keyFile string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour), IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}}
	cert, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	secret, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	pair := func(name, kind string, p []byte) string {
		return writeSecret(t, name, string(pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: p})))
	}
	return pair("cert.pem", "CERTIFICATE", cert), pair("key.pem", "PRIVATE KEY", secret)
}

func writeSecret(t *testing.T, name, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestCommandsShowThatTheyMayAsk(t *testing.T) {
	serverCert, serverKey := keyPair(t)
	clientCert, clientKey := keyPair(t)
	otherCert, otherKey := keyPair(t)
	token := writeSecret(t, "token", "# of the node\nthe-token-of-this-node\n")
	dir := t.TempDir()
	n, err := node.New(node.Config{
		DataConfig: node.DataConfig{DataDir: dir, DefaultUpstream: "registry.test"},
		ListenConfig: node.ListenConfig{
			Listen: []string{"127.0.0.1:0"}, Admin: "127.0.0.1:0", DrainTimeout: time.Second,
			TLSCertFile: serverCert, TLSKeyFile: serverKey, AdminTokenFile: token, AdminClientCAFile: clientCert,
		},
	}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- n.Run(ctx) }()
	defer func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}()
	trust := []string{"--node", n.AdminURL(), "--node-ca-file", serverCert}
	for _, tt := range []struct {
		name string
		show []string
		says string // "" for an answer
	}{
		{"a token", []string{"--node-token-file", token}, ""},
		{"a certificate", []string{"--node-cert-file", clientCert, "--node-key-file", clientKey}, ""},
		{"nothing", nil, "401"},
		{"another token", []string{"--node-token-file", writeSecret(t, "token", "the-token-of-another-node")}, "401"},
		{"another certificate", []string{"--node-cert-file", otherCert, "--node-key-file", otherKey}, "certificate"},
		{"no file", []string{"--node-token-file", "/nowhere"}, "--node-token-file"},
	} {
		for _, command := range [][]string{{"status"}, {"gc", "--data-dir", dir}, {"invalidate", "registry.test/app"}} {
			status, out, errs := granary(t, append(append(command, trust...), tt.show...)...)
			if (status == 0) != (tt.says == "") || !strings.Contains(errs, tt.says) {
				t.Errorf("%s, %s: %d, %s%s", command[0], tt.name, status, out, errs)
			}
			if strings.Contains(out+errs, "the-token-of") {
				t.Errorf("%s, %s: the token is shown", command[0], tt.name)
			}
		}
	}
	if status, _, errs := granary(t, "status", "--node", n.AdminURL(), "--node-token-file", token); status != 1 || !strings.Contains(errs, "certificate") {
		t.Errorf("a node that is not trusted: %d, %s", status, errs)
	}
	if status, _, errs := granary(t, "serve", "--admin", "0.0.0.0:0", "--data-dir", t.TempDir()); status != 2 || !strings.Contains(errs, "--admin-token-file") {
		t.Errorf("an admin listener for everybody: %d, %s", status, errs)
	}
}

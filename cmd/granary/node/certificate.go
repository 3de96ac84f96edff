package node

import (
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"time"
)

// certificate is a TLS certificate in files that may change while it is used.
type certificate struct {
	certFile, keyFile string

	mu      sync.Mutex
	loaded  tls.Certificate
	changed [2]time.Time // of the files when they were loaded
}

// newCertificate loads a certificate. With two empty names there is none.
func newCertificate(certFile, keyFile string) (*certificate, error) {
	if certFile == "" && keyFile == "" {
		return nil, nil
	}
	if certFile == "" || keyFile == "" {
		return nil, errors.New("tls-cert-file and tls-key-file are given together or not at all")
	}
	c := &certificate{certFile: certFile, keyFile: keyFile}
	if err := c.load(); err != nil {
		return nil, fmt.Errorf("tls-cert-file: %w", err)
	}
	return c, nil
}

// listener returns l with TLS, or l itself without a certificate.
func (c *certificate) listener(l net.Listener) net.Listener {
	if c == nil {
		return l
	}
	return tls.NewListener(l, c.config())
}

// config returns how a server speaks TLS with the certificate.
func (c *certificate) config() *tls.Config {
	return &tls.Config{
		MinVersion:     tls.VersionTLS12,
		NextProtos:     []string{"http/1.1"},
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return c.current(), nil },
	}
}

// current returns the certificate, loaded again if its files have changed. New
// files that do not fit together, as when one has been replaced and the other
// not yet, leave the old certificate in place.
func (c *certificate) current() *tls.Certificate {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.times() != c.changed {
		_ = c.load()
	}
	loaded := c.loaded
	return &loaded
}

func (c *certificate) load() error {
	times := c.times()
	pair, err := tls.LoadX509KeyPair(c.certFile, c.keyFile)
	if err != nil {
		return err
	}
	c.loaded, c.changed = pair, times
	return nil
}

func (c *certificate) times() (t [2]time.Time) {
	for i, name := range []string{c.certFile, c.keyFile} {
		if info, err := os.Stat(name); err == nil {
			t[i] = info.ModTime()
		}
	}
	return t
}

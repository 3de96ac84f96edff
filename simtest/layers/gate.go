package main

import (
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"strings"
	"sync/atomic"
)

// gate is before the registry: it counts what leaves it, and asks whoever reads
// repositories whose names begin with "private/" for a password.
type gate struct {
	address  string
	requests atomic.Int64
	sent     atomic.Int64 // bytes of bodies
	blobs    atomic.Int64 // of these, of blobs
	server   *http.Server
}

// reader is who may read private repositories.
const (
	readerName     = "reader"
	readerPassword = "correct horse"
)

func newGate(registry string) (*gate, error) {
	to, err := url.Parse(registry)
	if err != nil {
		return nil, err
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	g := &gate{address: l.Addr().String()}
	behind := httputil.NewSingleHostReverseProxy(to)
	g.server = &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		g.requests.Add(1)
		name, password, _ := r.BasicAuth()
		if strings.HasPrefix(r.URL.Path, "/v2/private/") && (name != readerName || password != readerPassword) {
			w.Header().Set("Www-Authenticate", `Basic realm="private"`)
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		r.Header.Del("Authorization")
		behind.ServeHTTP(&counted{w, g, strings.Contains(r.URL.Path, "/blobs/")}, r)
	})}
	go func() { _ = g.server.Serve(l) }()
	return g, nil
}

// traffic is what has left the registry.
type traffic struct{ requests, bytes, blobs int64 }

func (g *gate) traffic() traffic {
	return traffic{g.requests.Load(), g.sent.Load(), g.blobs.Load()}
}

// since returns what has left the registry since before.
func (g *gate) since(before traffic) traffic {
	now := g.traffic()
	return traffic{now.requests - before.requests, now.bytes - before.bytes, now.blobs - before.blobs}
}

// counted counts the bytes of a body.
type counted struct {
	http.ResponseWriter
	g    *gate
	blob bool
}

func (c *counted) Write(p []byte) (int, error) {
	n, err := c.ResponseWriter.Write(p)
	c.g.sent.Add(int64(n))
	if c.blob {
		c.g.blobs.Add(int64(n))
	}
	return n, err
}

func (c *counted) Unwrap() http.ResponseWriter { return c.ResponseWriter }

package main

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httputil"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"
)

// registry is the CNCF's distribution behind a proxy that knows who asked, at
// outsideAddress:5000.
type registry struct {
	mu   sync.Mutex
	sent map[string]int64 // bytes of blobs, by the name that the client gives itself
}

// startRegistry starts the registry, with the images of pods.
func (l *lab) startRegistry(ctx context.Context) error {
	socket, config := filepath.Join(l.dir, "registry.sock"), filepath.Join(l.dir, "registry.yaml")
	text := fmt.Sprintf("version: 0.1\nlog: {level: warn, accesslog: {disabled: true}}\nstorage: {filesystem: {rootdirectory: %s}}\nhttp: {net: unix, addr: %s}\n", filepath.Join(l.dir, "registry"), socket)
	if err := os.WriteFile(config, []byte(text), 0o644); err != nil {
		return err
	}
	p, err := l.start("registry", []string{filepath.Join(tools(), "registry"), "serve", config})
	if err != nil {
		return err
	}
	if err := until(ctx, time.Minute, "the registry listens", func() error { _, err := os.Stat(socket); return err }, p); err != nil {
		return err
	}
	listener, err := listenIn(l.net.outside, outsideAddress+":5000")
	if err != nil {
		return err
	}
	l.registry = &registry{sent: make(map[string]int64)}
	server := &http.Server{Handler: &httputil.ReverseProxy{
		Rewrite:        func(r *httputil.ProxyRequest) { r.Out.URL.Scheme, r.Out.URL.Host = "http", "registry" },
		ModifyResponse: l.registry.count,
		Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", socket)
		}},
	}}
	go func() { _ = server.Serve(listener) }()
	l.restore = append(l.restore, func() { _ = server.Close() })
	return l.pushImages(ctx)
}

// count counts a blob as it is sent.
func (r *registry) count(resp *http.Response) error {
	if resp.Request.Method == http.MethodGet && strings.Contains(resp.Request.URL.Path, "/blobs/") {
		client, _, _ := strings.Cut(resp.Request.UserAgent(), "/")
		resp.Body = &counted{resp.Body, r, client}
	}
	return nil
}

type counted struct {
	io.ReadCloser
	r      *registry
	client string
}

func (c *counted) Read(p []byte) (int, error) {
	n, err := c.ReadCloser.Read(p)
	c.r.mu.Lock()
	c.r.sent[c.client] += int64(n)
	c.r.mu.Unlock()
	return n, err
}

// sentTo returns the bytes of blobs that clients of a name have got.
func (r *registry) sentTo(client string) int64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.sent[client]
}

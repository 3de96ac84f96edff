package mounter

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"sync"
	"time"
)

// ClientConfig says which server a client wants, and how one is started.
type ClientConfig struct {
	// Dir is where the server's socket is.
	Dir string
	// Node is what the server is told.
	Node Node
	// Start starts a server for the directory, and returns a channel that says why, when
	// that has ended; the error is never nil. It may be called again.
	Start func() (ended <-chan error, err error)
	// Log is told when there is no server. nil tells nobody.
	Log *slog.Logger
}

// Client has mounts kept by a server. Its methods, but for [Client.Run], wait until it is
// attached to one, for a while. It is safe for concurrent use.
type Client struct {
	cfg  ClientConfig
	http *http.Client

	mu       sync.Mutex
	attached bool
	err      error         // why it is not, if that is known
	changed  chan struct{} // closed when these change
}

// NewClient returns a client. It asks nothing before it is run.
func NewClient(cfg ClientConfig) *Client {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	path := filepath.Join(cfg.Dir, socketName)
	return &Client{cfg: cfg, changed: make(chan struct{}), http: &http.Client{Transport: &http.Transport{
		DialContext:     func(ctx context.Context, _, _ string) (net.Conn, error) { return dial(ctx, path) },
		MaxIdleConns:    8,
		IdleConnTimeout: askFor,
	}}}
}

// Pauses between attempts to attach: each twice as long as the last.
const (
	firstPause, longPause = 20 * time.Millisecond, 5 * time.Second
	// startFor is how long a server that was started may take to listen.
	startFor = 10 * time.Second
)

// Run keeps the client attached to a server, one that it starts if there is none, until
// ctx ends. The server and its mounts stay.
func (c *Client) Run(ctx context.Context) {
	for pause := firstPause; ctx.Err() == nil; pause = min(2*pause, longPause) {
		attached, err := c.attach(ctx)
		if !attached && ctx.Err() == nil {
			attached, err = c.startAndAttach(ctx)
		}
		if ctx.Err() != nil {
			return
		}
		if attached {
			pause = firstPause
			c.cfg.Log.Warn("the mounter is gone; its mounts are to be made again", "error", err)
		} else {
			c.set(false, err)
			c.cfg.Log.Error("there is no mounter: nothing can be mounted", "error", err)
		}
		select {
		case <-ctx.Done():
		case <-time.After(pause):
		}
	}
}

// startAndAttach starts a server and attaches to it.
func (c *Client) startAndAttach(ctx context.Context) (attached bool, err error) {
	ended, err := c.cfg.Start()
	if err != nil {
		return false, fmt.Errorf("start: %w", err)
	}
	late := time.After(startFor)
	for {
		if attached, err = c.attach(ctx); attached {
			return true, err
		}
		select {
		case why := <-ended:
			return false, fmt.Errorf("it has ended: %w", why)
		case <-ctx.Done():
			return false, ctx.Err()
		case <-late:
			return false, err
		case <-time.After(firstPause):
		}
	}
}

// attach returns when the server is gone, or does not answer.
func (c *Client) attach(ctx context.Context) (attached bool, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	late := time.AfterFunc(askFor, cancel) // there is an answer at once, and then no end
	answer, err := c.post(ctx, attachPath, c.cfg.Node)
	late.Stop()
	if err != nil {
		return false, err
	}
	defer answer.Close()
	c.set(true, nil)
	_, err = io.Copy(io.Discard, answer)
	c.set(false, nil)
	return true, err
}

// set takes note of whether there is a server, and why not, if that is known.
func (c *Client) set(attached bool, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.attached, c.err = attached, err
	close(c.changed)
	c.changed = make(chan struct{})
}

// Ready waits until there is a server, or it is known why there is none.
func (c *Client) Ready(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, askFor)
	defer cancel()
	for {
		c.mu.Lock()
		attached, err, changed := c.attached, c.err, c.changed
		c.mu.Unlock()
		switch {
		case attached:
			return nil
		case err != nil:
			return fmt.Errorf("there is no mounter: %w", err)
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return fmt.Errorf("there is no mounter: %w", ctx.Err())
		}
	}
}

// Mount mounts a layer at a directory, which is empty. That it is mounted there already
// is no error.
func (c *Client) Mount(ctx context.Context, dir string, l Layer) error {
	return c.ask(ctx, mountPath, Mount{Dir: dir, Layer: l}, mountFor)
}

// Mounted returns nil if a layer is mounted at a directory, and served. [ErrNotMounted]
// says that it is not.
func (c *Client) Mounted(ctx context.Context, dir string) error {
	return c.ask(ctx, mountedPath, Mount{Dir: dir}, askFor)
}

// Unmount unmounts what is mounted at a directory, if anything is.
func (c *Client) Unmount(ctx context.Context, dir string) error {
	return c.ask(ctx, unmountPath, Mount{Dir: dir}, askFor)
}

func (c *Client) ask(ctx context.Context, path string, m Mount, limit time.Duration) error {
	if err := c.Ready(ctx); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	answer, err := c.post(ctx, path, m)
	if err == nil {
		answer.Close()
	}
	return err
}

// List returns what is mounted, by directory.
func (c *Client) List(ctx context.Context) (all []Mount, err error) {
	if err := c.Ready(ctx); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, askFor)
	defer cancel()
	answer, err := c.post(ctx, listPath, struct{}{})
	if err != nil {
		return nil, err
	}
	defer answer.Close()
	if err := json.NewDecoder(io.LimitReader(answer, maxList)).Decode(&all); err != nil {
		return nil, fmt.Errorf("mounter: %w", err)
	}
	return all, nil
}

// post makes a request, and returns what it is answered with.
func (c *Client) post(ctx context.Context, path string, question any) (io.ReadCloser, error) {
	p, err := json.Marshal(question)
	if err != nil {
		return nil, err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://mounter"+path, bytes.NewReader(p))
	if err != nil {
		return nil, err
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, fmt.Errorf("mounter: %w", err)
	}
	if resp.StatusCode == http.StatusOK {
		return resp.Body, nil
	}
	defer resp.Body.Close()
	why, _ := io.ReadAll(io.LimitReader(resp.Body, 4<<10))
	err = errors.New(strings.TrimSpace(string(why)))
	if resp.StatusCode == http.StatusNotFound {
		err = fmt.Errorf("%w: %w", ErrNotMounted, err)
	}
	return nil, fmt.Errorf("mounter: %w", err)
}

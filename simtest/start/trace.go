package main

import (
	"bytes"
	"fmt"
	"io"
	"strings"
	"sync"
	"time"
)

// trace tells of the requests that pass through a wire toward the registry, as they pass.
// nil tells of none.
type trace struct {
	mu    sync.Mutex
	w     io.Writer
	begin time.Time
}

// start says that times are told from now on.
func (t *trace) start(what string) {
	if t == nil {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.begin = time.Now()
	fmt.Fprintln(t.w, what)
}

// say tells of something.
func (t *trace) say(what string) {
	if t == nil {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	fmt.Fprintf(t.w, "%8.1f ms  %s\n", time.Since(t.begin).Seconds()*1e3, what)
}

// request tells of a request that begins in what a packet carries.
func (t *trace) request(payload []byte) {
	if t == nil || !bytes.HasPrefix(payload, []byte("GET ")) && !bytes.HasPrefix(payload, []byte("HEAD ")) {
		return
	}
	head, _, _ := bytes.Cut(payload, []byte("\r\n\r\n"))
	lines := strings.Split(string(head), "\r\n")
	what := strings.TrimSuffix(lines[0], " HTTP/1.1")
	for _, l := range lines {
		if name, value, ok := strings.Cut(l, ": "); ok && strings.EqualFold(name, "Range") {
			what += " " + value
		}
	}
	t.say(what)
}

package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/granary-oci/granary/simtest/netns"
)

const (
	tries   = 4                // of a request, as runtimes try again
	stalled = 40 * time.Second // without a byte, after which a try is given up
)

// wrongError says that a node has sent wrong bytes, or too few or too many of them, to a clean end.
type wrongError struct{ what string }

func (e *wrongError) Error() string { return "wrong bytes came to a clean end: " + e.what }

// answerError says that a node has answered with another status than was wanted.
type answerError struct {
	status int
	after  time.Duration // of Retry-After
	text   string
}

func (e *answerError) Error() string { return fmt.Sprintf("answer %d: %s", e.status, e.text) }

// extent is bytes from..to-1 of a blob.
type extent struct{ from, to int }

// fetch gets bytes from a node, all of want or an extent, as a runtime does: it goes on where a body broke off, and tries again when there is
// no connection. An answer that is an error it takes for the last word, as runtimes do, which then go elsewhere, unless r may have
// that error: then it comes again when the node says, or soon. It compares each byte, notes in r how long the request or its last try took, and
// returns how often it tried.
func (n *node) fetch(ctx context.Context, r *request, path, authorization string, want []byte, part *extent) (tried int, err error) {
	h := n.lab.history
	x := extent{0, len(want)}
	if part != nil {
		x = *part
	}
	at, began := x.from, h.now()
	for tried = 1; ; tried++ {
		last := h.now()
		got, err := n.get(ctx, path, authorization, want, extent{at, x.to}, part != nil || at > 0)
		wait := 300 * time.Millisecond << tried
		r.from, r.to = began, h.now()
		var said *answerError
		if errors.As(err, &said) {
			r.from = last
			wait = max(wait, min(said.after, 5*time.Second))
		}
		var wrong *wrongError
		if err == nil || errors.As(err, &wrong) || tried == tries || said != nil && h.excuse(*r) == "" || netns.Pause(ctx, wait) != nil {
			return tried, err
		}
		at += got
	}
}

// get tries once. With an error it returns how many right bytes came from x.from on; if any was wrong, none.
func (n *node) get(ctx context.Context, path, authorization string, want []byte, x extent, ranged bool) (got int, err error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	watchdog := time.AfterFunc(stalled, func() { cancel(fmt.Errorf("no byte came for %v", stalled)) })
	defer watchdog.Stop()
	header, status := http.Header{}, http.StatusOK
	if ranged {
		header.Set("Range", fmt.Sprintf("bytes=%d-%d", x.from, x.to-1))
		status = http.StatusPartialContent
	}
	resp, err := n.ask(ctx, http.MethodGet, path, authorization, header)
	if err != nil {
		return 0, cause(ctx, err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != status {
		return 0, answer(resp)
	}
	if text := fmt.Sprintf("bytes %d-%d/%d", x.from, x.to-1, len(want)); ranged && resp.Header.Get("Content-Range") != text {
		return 0, &wrongError{fmt.Sprintf("Content-Range %q, want %q", resp.Header.Get("Content-Range"), text)}
	}
	right, buf := want[x.from:x.to], make([]byte, 64<<10)
	same := true
	for at := 0; ; {
		k, err := resp.Body.Read(buf)
		if k > 0 {
			watchdog.Reset(stalled)
		}
		same = same && at+k <= len(right) && bytes.Equal(buf[:k], right[at:at+k])
		if at += k; same {
			got = at
		}
		switch {
		case err == io.EOF && (!same || at != len(right)):
			return 0, &wrongError{fmt.Sprintf("%d bytes of %d, of which the first %d were right", at, len(right), got)}
		case err == io.EOF:
			return got, nil
		case err != nil && !same:
			return 0, fmt.Errorf("a wrong body broke off after %d bytes: %w", at, cause(ctx, err))
		case err != nil:
			return got, fmt.Errorf("the body broke off after %d bytes of %d: %w", at, len(right), cause(ctx, err))
		}
	}
}

// cause is why a context has ended, where that is the error.
func cause(ctx context.Context, err error) error {
	if why := context.Cause(ctx); why != nil {
		return why
	}
	return err
}

func (n *node) ask(ctx context.Context, method, path, authorization string, header http.Header) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, method, n.face()+path, nil)
	if err != nil {
		return nil, err
	}
	req.Header = header
	req.Header.Set("Accept", ocispec.MediaTypeImageManifest)
	if authorization != "" {
		req.Header.Set("Authorization", authorization)
	}
	return n.client.Do(req)
}

func answer(resp *http.Response) error {
	text, _ := io.ReadAll(io.LimitReader(resp.Body, 600))
	after, _ := strconv.Atoi(resp.Header.Get("Retry-After"))
	return &answerError{resp.StatusCode, time.Duration(after) * time.Second, string(bytes.TrimSpace(text))}
}

package upstream

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/granary-oci/granary/chunkstore/chunk"
)

const (
	maxFailures = 4        // requests in a row that bring less than minProgress
	minProgress = 16 << 10 // bytes; a body that brings less each time is not worth following
)

// Stat returns the size of a blob in bytes. Where HEAD does not give it, it is
// read from the answer to a GET of the first byte.
func (p *Repository) Stat(ctx context.Context, d digest.Digest) (int64, error) {
	if _, err := parseDigest(d); err != nil {
		return 0, err
	}
	a, err := p.ask(ctx, http.MethodHead, p.blob(d), nil, nil, okToHead)
	if err != nil {
		return 0, err
	}
	defer a.body.Close()
	if ok(a) && a.ContentLength >= 0 {
		return blobSize(d, a.ContentLength)
	}
	a.body.Close()
	return p.statByGet(ctx, d)
}

func (p *Repository) statByGet(ctx context.Context, d digest.Digest) (int64, error) {
	a, err := p.do(ctx, http.MethodGet, p.blob(d), nil, http.Header{"Range": {"bytes=0-0"}})
	if err != nil {
		return 0, err
	}
	defer a.body.Close()
	size := int64(-1)
	switch a.StatusCode {
	case http.StatusOK:
		size = a.ContentLength
	case http.StatusPartialContent, http.StatusRequestedRangeNotSatisfiable:
		if c, ok := parseContentRange(a.Header.Get("Content-Range")); ok {
			size = c.total
		}
	default:
		return 0, a.failure()
	}
	if size < 0 {
		return 0, fmt.Errorf("%s: the answer does not tell the blob's size", a.subject())
	}
	a.body.drain()
	return blobSize(d, size)
}

func blobSize(d digest.Digest, n int64) (int64, error) {
	if n > chunk.MaxBlobSize {
		return 0, fmt.Errorf("blob %s: %d bytes are more than a blob may have", d, n)
	}
	return n, nil
}

// Blob returns a source of the chunks of the repository's blobs, which are checked as
// far as each can be alone. It is a [chunk.Runner] that gets a run with one request,
// in the way the package comment tells, and may yield other chunks of the blob before
// those that were asked for.
func (p *Repository) Blob() chunk.Source {
	return chunk.Named(p.registry.cfg.Origin, chunk.Verify("upstream "+p.registry.base.Host, &source{p}))
}

type source struct{ repository *Repository }

// Get implements [chunk.Source].
func (s *source) Get(ctx context.Context, ref chunk.Ref) (p []byte, err error) {
	err = s.GetRun(ctx, []chunk.Ref{ref}, func(got chunk.Ref, q []byte) error {
		if got.Offset == ref.Offset {
			p = q
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return p, nil
}

// GetRun implements [chunk.Runner]. What goes wrong on the way, and may pass, is
// retried.
func (s *source) GetRun(ctx context.Context, refs []chunk.Ref, yield func(chunk.Ref, []byte) error) error {
	r, err := newRun(refs, yield)
	if err != nil {
		return err
	}
	for failures := 0; !r.done(); {
		before := r.reached
		err := s.advance(ctx, r)
		if r.stopped != nil {
			return r.stopped
		}
		if err == nil {
			continue
		}
		if r.reached-before >= minProgress {
			failures = 0
		}
		failures++
		if err := s.retry(ctx, r, failures, err); err != nil {
			return err
		}
	}
	return nil
}

// retry returns nil, after a while, if a run that failed with err is to go on.
func (s *source) retry(ctx context.Context, r *run, failures int, err error) error {
	if ctx.Err() != nil {
		return ended(ctx, err)
	}
	if r.mayRenew(err) {
		r.renewed = true
		s.repository.registry.auth.renew(s.repository)
		return nil
	}
	if !mayPass(err) || failures >= maxFailures {
		return err
	}
	if !pause(ctx, failures, err) {
		return ended(ctx, err)
	}
	return nil
}

// ended returns the error of a run whose context is over: the caller's own doing
// if it was cancelled, and what took so long if its time was up.
func ended(ctx context.Context, err error) error {
	if ctx.Err() != context.Canceled || errors.Is(err, context.Canceled) {
		return err
	}
	return fmt.Errorf("%w (after: %v)", ctx.Err(), err)
}

// mayRenew reports whether a refusal may be that of an expired signature, or of a
// token that has expired on the way. There is one chance for each run.
func (r *run) mayRenew(err error) bool {
	var elsewhere *refusedElsewhereError
	return !r.renewed && (errors.As(err, &elsewhere) || r.answered && errors.Is(err, chunk.ErrDenied))
}

// advance brings a run forward by one request, or by taking turns at a body that
// is shared. It may return nil before the run is done.
func (s *source) advance(ctx context.Context, r *run) error {
	if !r.single() {
		b, err := s.openRange(ctx, r)
		if b == nil {
			return err
		}
		defer b.Close()
		return r.read(b)
	}
	b, whole, err := s.open(ctx, r)
	if err != nil {
		return err
	}
	defer b.Close()
	if whole {
		r.restart()
	}
	return r.read(b)
}

// openRange returns the body of what a run lacks, or nil when taking turns has
// brought it forward.
func (s *source) openRange(ctx context.Context, r *run) (*body, error) {
	switch {
	case rangesOnly(ctx) && s.repository.registry.wholes.Load():
		return nil, ErrNoRanges
	case !rangesOnly(ctx) && !s.inParallel(r):
		return s.takeTurns(ctx, r, nil)
	}
	b, whole, err := s.open(ctx, r)
	if err != nil || !whole {
		return b, err
	}
	if rangesOnly(ctx) {
		b.Close()
		return nil, ErrNoRanges
	}
	return s.takeTurns(ctx, r, b)
}

// ErrNoRanges says that the registry sends no parts of blobs, to a reader that
// does not want the whole.
var ErrNoRanges = errors.New("upstream: the registry sends whole blobs only")

type rangesOnlyKey struct{}

// RangesOnly returns a context in which parts of a blob are not got by reading the
// whole: the error is then [ErrNoRanges].
func RangesOnly(ctx context.Context) context.Context {
	return context.WithValue(ctx, rangesOnlyKey{}, true)
}

func rangesOnly(ctx context.Context) bool { return ctx.Value(rangesOnlyKey{}) != nil }

// inParallel reports whether a run may be asked for on its own.
func (s *source) inParallel(r *run) bool {
	registry := s.repository.registry
	return registry.ranges.Load() && !registry.streams.busy(s.key(r))
}

// open asks for the bytes that a run lacks, and waits for a place first. The
// body stands at the first of them, or, if whole, at the beginning of the blob.
func (s *source) open(ctx context.Context, r *run) (b *body, whole bool, err error) {
	registry := s.repository.registry
	if err := registry.acquire(ctx); err != nil {
		return nil, false, fmt.Errorf("blob %s: %w", r.blob, err)
	}
	header := make(http.Header)
	if ranged := !r.single() || r.filled > 0; ranged {
		header.Set("Range", fmt.Sprintf("bytes=%d-%d", r.position(), r.end()-1))
	}
	a, err := s.repository.do(ctx, http.MethodGet, s.repository.blob(r.blob), nil, header)
	if err != nil {
		registry.release()
		return nil, false, err
	}
	a.body.onClose = registry.release
	whole, err = r.accept(a, header.Get("Range") != "")
	if err != nil {
		a.body.Close()
		return nil, false, err
	}
	r.answered = true
	if !r.single() {
		registry.ranges.Store(!whole)
		registry.wholes.Store(whole)
	}
	return a.body, whole, nil
}

// acquire takes a place for a blob's body. Parked bodies make room, but not at
// once: one that a run is about to take over must not be lost to another, or
// runs on many blobs would have each of them begin anew all the time.
func (r *Registry) acquire(ctx context.Context) error {
	select {
	case r.bulk <- struct{}{}:
		return nil
	default:
	}
	tick := time.NewTicker(parkedGrace / 4)
	defer tick.Stop()
	for {
		r.streams.closeParked(parkedGrace)
		select {
		case r.bulk <- struct{}{}:
			return nil
		case <-tick.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (r *Registry) release() { <-r.bulk }

// accept checks that an answer is the one to a run's request. If whole, its body
// is all of the blob.
func (r *run) accept(a *answer, ranged bool) (whole bool, err error) {
	switch {
	case a.StatusCode == http.StatusOK:
		if a.ContentLength >= 0 && a.ContentLength != r.total {
			return false, r.wrongSize(a.ContentLength)
		}
		return true, nil
	case a.StatusCode == http.StatusPartialContent && ranged:
		return false, r.acceptRange(a)
	case a.StatusCode == http.StatusRequestedRangeNotSatisfiable && ranged:
		if c, ok := parseContentRange(a.Header.Get("Content-Range")); ok && c.total >= 0 && c.total != r.total {
			return false, r.wrongSize(c.total)
		}
	}
	return false, a.failure()
}

func (r *run) acceptRange(a *answer) error {
	c, ok := parseContentRange(a.Header.Get("Content-Range"))
	switch {
	case !ok:
		return fmt.Errorf("%s: the answer does not say which range it is", a.subject())
	case c.total >= 0 && c.total != r.total:
		return r.wrongSize(c.total)
	case c.start != r.position() || c.end != r.end()-1:
		return fmt.Errorf("%s: bytes %d-%d were asked for, %d-%d are the answer", a.subject(), r.position(), r.end()-1, c.start, c.end)
	case a.ContentLength >= 0 && a.ContentLength != r.end()-r.position():
		return fmt.Errorf("%s: %d bytes are announced for the range %d-%d", a.subject(), a.ContentLength, c.start, c.end)
	}
	return nil
}

// contentRange is a range of bytes as an answer states it (RFC 9110, section
// 14.4). start and end, which is inclusive, are -1 for an unsatisfied range, and
// total is -1 where it is not known.
type contentRange struct{ start, end, total int64 }

func parseContentRange(s string) (c contentRange, ok bool) {
	unit, rest, _ := strings.Cut(s, " ")
	span, size, slash := strings.Cut(rest, "/")
	if !strings.EqualFold(unit, "bytes") || !slash {
		return c, false
	}
	c = contentRange{-1, -1, -1}
	if size != "*" {
		if c.total, ok = parseOffset(size); !ok {
			return c, false
		}
	}
	if span == "*" {
		return c, c.total >= 0
	}
	first, last, _ := strings.Cut(span, "-")
	c.start, ok = parseOffset(first)
	if !ok {
		return c, false
	}
	c.end, ok = parseOffset(last)
	return c, ok && c.start <= c.end && (c.total < 0 || c.end < c.total)
}

// parseOffset reads digits alone: no sign, and nothing around them.
func parseOffset(s string) (int64, bool) {
	n, err := strconv.ParseUint(s, 10, 63)
	return int64(n), err == nil
}

// readEnd reports an error if a body goes on after what it should have. To read
// to the end also gives its connection back. How a body ends does not matter
// once all of it is there.
func readEnd(b io.Reader) bool {
	n, _ := io.ReadFull(b, make([]byte, 1))
	return n == 0
}

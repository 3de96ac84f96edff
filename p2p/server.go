package p2p

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
	"golang.org/x/sync/semaphore"

	"github.com/granary-oci/granary/chunkstore/chunk"
	"github.com/granary-oci/granary/p2p/wire"
	"github.com/granary-oci/granary/tracker"
)

// Backend is what a node has for other members. Each method may be called by many
// goroutines, and returns soon after its context ends.
type Backend interface {
	// Stored yields chunks that are stored here and that host has shown to have, or
	// returns [chunk.ErrNotFound].
	Stored(ctx context.Context, host string, refs []chunk.Ref, yield func(chunk.Ref, []byte) error) error
	// Fetch is Stored for an owner: what is missing comes from providers or from
	// the upstream, in the name of whoever the repository is read by.
	Fetch(ctx context.Context, repo wire.Repository, refs []chunk.Ref, yield func(chunk.Ref, []byte) error) error
	// Proven reports whether all of a blob is stored and has matched its digest.
	Proven(d digest.Digest) bool
	// Map says what is stored of a blob.
	Map(q wire.MapRequest) wire.Map
	// Ask answers a question to the upstream; the body is a manifest's or facts.
	Ask(ctx context.Context, q wire.Ask) (a wire.Answer, body []byte, err error)
	// Learn is told what another member knows of a repository.
	Learn(repo wire.Repository, facts []byte) error
	// Forget forgets tags.
	Forget(q wire.Forget) error
	// Cause classifies an error of Fetch or Ask.
	Cause(err error) wire.Cause
}

const (
	firstProgress   = 20 * time.Millisecond
	nextProgress    = 200 * time.Millisecond
	maxServed       = 1024 // requests of all lanes together
	maxWorking      = 192  // of those, requests for chunks that are being answered
	maxLanes        = 16   // of one member
	compressSample  = 16 << 10
	compressGain    = 0.85 // a sample must shrink to less
	requestFor      = 10 * time.Minute
	prefaceFor      = 10 * time.Second
	minCompressible = 64 << 10
)

// Server answers other members. It is safe for concurrent use.
type Server struct {
	client  *Client
	backend Backend
	upload  *Limiter
	log     *slog.Logger
	spreads spreads
	working *semaphore.Weighted
	served  *semaphore.Weighted

	mu    sync.Mutex
	lanes map[tracker.ID]int
}

// NewServer returns a server that lends what backend has, with the claims of
// client. log is told of members that break the protocol.
func NewServer(client *Client, backend Backend, log *slog.Logger) *Server {
	return &Server{
		client: client, backend: backend, upload: client.cfg.Upload, log: log,
		spreads: spreads{random: client.chance(), all: make(map[spreadKey]*spread)},
		working: semaphore.NewWeighted(maxWorking), served: semaphore.NewWeighted(maxServed),
		lanes: make(map[tracker.ID]int),
	}
}

// Serve answers requests on a lane that a member has opened, until the lane ends.
func (s *Server) Serve(from tracker.ID, stream Stream) {
	defer stream.Close()
	if !s.enter(from) {
		return
	}
	defer s.leave(from)
	l := &served{frameWriter: frameWriter{s: stream, upload: s.upload}, server: s, from: from, under: make(map[uint32]context.CancelFunc)}
	if err := l.run(); errors.Is(err, errBroken) {
		s.log.Warn("peer was cut off", "peer", from, "error", err)
	}
}

func (s *Server) enter(from tracker.ID) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.lanes[from] >= maxLanes {
		return false
	}
	s.lanes[from]++
	return true
}

func (s *Server) leave(from tracker.ID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.lanes[from]--; s.lanes[from] == 0 {
		delete(s.lanes, from)
	}
}

// served is one lane that another member has opened.
type served struct {
	frameWriter
	server *Server
	from   tracker.ID

	mu    sync.Mutex
	under map[uint32]context.CancelFunc // requests that are being answered
}

func (l *served) run() error {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	_ = l.s.SetReadDeadline(time.Now().Add(prefaceFor))
	_ = l.s.SetWriteDeadline(time.Now().Add(prefaceFor))
	r := bufio.NewReaderSize(l.s, laneBuffer)
	if _, err := wire.ReadPreface(r); err != nil {
		return err
	}
	if _, err := l.s.Write(wire.Preface[:]); err != nil {
		return err
	}
	_ = l.s.SetReadDeadline(time.Time{})
	for {
		f, err := wire.Read(r)
		if errors.Is(err, wire.ErrTooLarge) {
			return fmt.Errorf("%w: %w", errBroken, err)
		}
		if err != nil {
			return err
		}
		l.server.client.peers.hear(l.from, 0)
		l.server.client.cfg.Traffic(int64(len(f.Header)+len(f.Body)), 0)
		if err := l.begin(ctx, f); err != nil {
			return err
		}
	}
}

// begin starts to answer a request.
func (l *served) begin(ctx context.Context, f wire.Frame) error {
	if f.Type == wire.TypeCancel {
		l.mu.Lock()
		defer l.mu.Unlock()
		if cancel := l.under[f.ID]; cancel != nil {
			cancel()
		}
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, requestFor)
	l.mu.Lock()
	defer l.mu.Unlock()
	if _, taken := l.under[f.ID]; taken || len(l.under) >= wire.MaxPending {
		cancel()
		return fmt.Errorf("%w: request %d of %d under way", errBroken, f.ID, len(l.under))
	}
	l.under[f.ID] = cancel
	go func() {
		defer cancel()
		last := l.answer(ctx, f)
		last.ID = f.ID
		l.mu.Lock()
		delete(l.under, f.ID) // before the asker may use the number again
		l.mu.Unlock()
		if ctx.Err() != context.Canceled {
			l.write(context.Background(), last)
		}
	}()
	return nil
}

// write writes a frame and counts it. A stream that cannot be written to is closed,
// which ends the lane.
func (l *served) write(ctx context.Context, f wire.Frame) error {
	err := l.frameWriter.write(ctx, f)
	if err != nil {
		if ctx.Err() == nil {
			_ = l.s.Close()
		}
		return err
	}
	l.server.client.cfg.Traffic(0, int64(len(f.Header)+len(f.Body)))
	return nil
}

// answer answers a request, and returns the last frame of the answer.
func (l *served) answer(ctx context.Context, f wire.Frame) wire.Frame {
	s := l.server
	if f.Type == wire.TypePing {
		return wire.Frame{Type: wire.TypeDone}
	}
	if !s.served.TryAcquire(1) {
		return unavailable(wire.CauseOverloaded, errors.New("too many requests"))
	}
	defer s.served.Release(1)
	switch f.Type {
	case wire.TypeGet:
		q, err := wire.ReadGet(f.Header)
		if err != nil {
			return unavailable(wire.CauseFailed, err)
		}
		return l.get(ctx, f.ID, q)
	case wire.TypeMap:
		q, err := wire.ReadMapRequest(f.Header)
		if err != nil {
			return unavailable(wire.CauseFailed, err)
		}
		return wire.Frame{Type: wire.TypeMapAnswer, Header: s.backend.Map(q).Header()}
	case wire.TypeAsk:
		q, err := wire.ReadAsk(f.Header)
		if err != nil {
			return unavailable(wire.CauseFailed, err)
		}
		return l.ask(ctx, f.ID, q)
	case wire.TypeLearn:
		q, err := wire.ReadLearn(f.Header)
		if err == nil {
			err = s.backend.Learn(q.Repository, f.Body)
		}
		return done(err)
	case wire.TypeForget:
		q, err := wire.ReadForget(f.Header)
		if err == nil {
			err = s.backend.Forget(q)
		}
		return done(err)
	}
	return unavailable(wire.CauseFailed, fmt.Errorf("a request of type %d is not known here", f.Type))
}

func done(err error) wire.Frame {
	if err != nil {
		return unavailable(wire.CauseFailed, err)
	}
	return wire.Frame{Type: wire.TypeDone}
}

func unavailable(cause wire.Cause, err error) wire.Frame {
	return wire.Frame{Type: wire.TypeUnavailable, Header: wire.Unavailable{Cause: cause, Message: err.Error()}.Header()}
}

// ended returns the last frame of an answer that ended with err.
func (l *served) ended(err error) wire.Frame {
	var busy *busyError
	switch {
	case err == nil:
		return wire.Frame{Type: wire.TypeDone}
	case errors.As(err, &busy):
		return wire.Frame{Type: wire.TypeBusy, Header: wire.Busy{Referrals: busy.referrals}.Header()}
	case errors.Is(err, chunk.ErrNotFound):
		return wire.Frame{Type: wire.TypeNotFound}
	}
	return unavailable(l.server.backend.Cause(err), err)
}

// ask answers a question.
func (l *served) ask(ctx context.Context, id uint32, q wire.Ask) wire.Frame {
	defer l.wait(ctx, id, func() int64 { return 0 })()
	a, body, err := l.server.backend.Ask(ctx, q)
	if err != nil {
		return l.ended(err)
	}
	if len(body) > wire.MaxBody {
		return unavailable(wire.CauseFailed, wire.ErrTooLarge)
	}
	return wire.Frame{Type: wire.TypeAnswer, Header: a.Header(), Body: body}
}

// get answers a request for chunks.
func (l *served) get(ctx context.Context, id uint32, q wire.Get) wire.Frame {
	m, err := chunk.Grid(q.Blob, q.Total)
	if err != nil {
		return unavailable(wire.CauseFailed, err)
	}
	refs := make([]chunk.Ref, q.Count)
	for i := range refs {
		refs[i] = m.At(q.First + i)
		if len(q.Digests) > 0 {
			refs[i].Digest = q.Digests[i]
		}
	}
	sent := &sending{lane: l, id: id}
	if q.Role == wire.ToHolder {
		if err := l.server.working.Acquire(ctx, 1); err != nil {
			return l.ended(err)
		}
		defer l.server.working.Release(1)
		return l.ended(l.server.backend.Stored(ctx, q.Host, refs, sent.send(ctx)))
	}
	defer l.wait(ctx, id, sent.bytes)()
	return l.ended(l.own(ctx, q, refs, sent))
}

// own answers a request that is made to an owner.
func (l *served) own(ctx context.Context, q wire.Get, refs []chunk.Ref, sent *sending) (err error) {
	s := l.server
	k := spreadKey{q.Host, q.Blob, stripeOf(refs[0])}
	deadline := time.NewTimer(waitForGiven)
	defer deadline.Stop()
	insists := q.Role == wire.ToOwnerAgain
	for {
		v := s.spreads.enter(k, l.from, insists, time.Now())
		if v.serve {
			break
		}
		if len(v.referrals) > 0 {
			return &busyError{v.referrals}
		}
		select {
		case <-v.wait:
		case <-deadline.C:
			insists = true
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	defer func() {
		s.spreads.leave(k, l.from, err == nil && len(refs) == min(stripeChunks, chunk.Count(q.Total)-stripeOf(refs[0])*stripeChunks))
	}()
	if err := s.working.Acquire(ctx, 1); err != nil {
		return err
	}
	defer s.working.Release(1)
	return s.backend.Fetch(ctx, q.Repository, refs, sent.send(ctx))
}

// wait says several times a second that a request is being worked on, until the
// function it returns is called.
func (l *served) wait(ctx context.Context, id uint32, bytes func() int64) (stop func()) {
	ended := make(chan struct{})
	gone := make(chan struct{})
	go func() {
		defer close(gone)
		t := time.NewTimer(firstProgress)
		defer t.Stop()
		for {
			select {
			case <-t.C:
			case <-ended:
				return
			case <-ctx.Done():
				return
			}
			if l.write(ctx, wire.Frame{Type: wire.TypeProgress, ID: id, Header: wire.Progress{Bytes: bytes()}.Header()}) != nil {
				return
			}
			t.Reset(nextProgress)
		}
	}()
	return func() { close(ended); <-gone }
}

// sending sends the chunks of one answer.
type sending struct {
	lane *served
	id   uint32

	mu  sync.Mutex
	sum int64
}

func (s *sending) bytes() int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.sum
}

// send returns what sends a chunk with a claim. A chunk that nobody vouches for is
// not found.
func (s *sending) send(ctx context.Context) func(chunk.Ref, []byte) error {
	server := s.lane.server
	return func(ref chunk.Ref, p []byte) error {
		d := wire.Data{Index: ref.Index()}
		if !ref.Whole() {
			var ok bool
			if d.Claim, ok = server.client.claims.For(ref, p, server.backend.Proven(ref.Blob)); !ok {
				return chunk.ErrNotFound
			}
		}
		body, compressed := compress(p)
		d.Compressed = compressed
		err := s.lane.write(ctx, wire.Frame{Type: wire.TypeData, ID: s.id, Header: d.Header(), Body: body})
		s.mu.Lock()
		s.sum += ref.Size
		s.mu.Unlock()
		return err
	}
}

var zstdWriter, _ = zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderConcurrency(2))

// compress compresses a chunk if a sample of it shrinks. Most layers are compressed
// already.
func compress(p []byte) (body []byte, compressed bool) {
	if len(p) < minCompressible {
		return p, false
	}
	middle := p[len(p)/2:]
	sample := middle[:min(compressSample, len(middle))]
	if float64(len(zstdWriter.EncodeAll(sample, nil))) > compressGain*float64(len(sample)) {
		return p, false
	}
	small := zstdWriter.EncodeAll(p, make([]byte, 0, len(p)/2))
	if len(small) >= len(p) {
		return p, false
	}
	return small, true
}

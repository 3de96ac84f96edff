package p2p

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/granary-oci/granary/chunkstore/chunk"
	"github.com/granary-oci/granary/p2p/decide"
	"github.com/granary-oci/granary/p2p/wire"
	"github.com/granary-oci/granary/tracker"
)

// Backend is what a node has for other members. Each method may be called by many
// goroutines, and returns soon after its context ends.
type Backend interface {
	// Stored yields chunks that are stored here and that host has shown to have, or
	// returns [chunk.ErrNotFound].
	Stored(ctx context.Context, host string, refs []chunk.Ref, yield func(chunk.Ref, []byte) error) error
	// Relay is Stored, but waits for chunks that are on their way here for this node's readers.
	Relay(ctx context.Context, host string, refs []chunk.Ref, yield func(chunk.Ref, []byte) error) error
	// Fetch is Stored for an owner: what is missing comes from providers or from
	// the upstream, in the name of whoever the repository is read by.
	Fetch(ctx context.Context, repo wire.Repository, refs []chunk.Ref, yield func(chunk.Ref, []byte) error) error
	// Proof says what is known of a chunk of bytes p, all of whose blob may have matched its
	// digest, that host has shown to have.
	Proof(host string, ref chunk.Ref, p []byte) Proof
	// Map says what is stored of a blob.
	Map(ctx context.Context, q wire.MapRequest) wire.Map
	// Ask answers a question to the upstream; the body is a manifest's or facts.
	Ask(ctx context.Context, q wire.Ask) (a wire.Answer, body []byte, err error)
	// Learn is told what another member knows of a repository.
	Learn(repo wire.Repository, facts []byte) error
	// Forget forgets tags.
	Forget(q wire.Forget) error
	// Order does what another member's owner wants of the whole cluster, and returns
	// what that brought, at most [wire.MaxBody] bytes of it.
	Order(ctx context.Context, o wire.Order, says []byte) (brought []byte, err error)
	// Cause classifies an error of Fetch or Ask.
	Cause(err error) wire.Cause
}

const (
	firstProgress = 20 * time.Millisecond
	nextProgress  = 200 * time.Millisecond
	requestFor    = 10 * time.Minute
	prefaceFor    = 10 * time.Second

	maxServed    = 1024     // requests of all members that are being answered
	maxServedOf  = 512      // of one member
	maxRequest   = 64 << 10 // bytes of a request's header
	maxWorking   = 192      // of those, requests for chunks in one role
	maxWorkingOf = 96       // of one member
	maxLanes     = 16       // of one member
	// maxAnswering is how many requests of one lane are not over for this side. The
	// other side may have given up some that it does not count any more.
	maxAnswering = 2 * wire.MaxPending
)

// maxBodyOf bounds the bodies of requests, in bytes. Others have none.
var maxBodyOf = map[wire.Type]int{wire.TypeLearn: wire.MaxFacts, wire.TypeOrder: wire.MaxOrder}

// Server answers other members. It is safe for concurrent use.
type Server struct {
	client  *Client
	backend Backend
	upload  *Limiter
	log     *slog.Logger
	spreads *spreads
	working desks

	mu     sync.Mutex
	served int
	guests map[tracker.ID]*guest
}

// guest is what one member makes this node do at a time, so that none takes all of
// it. It is guarded by Server.mu, except for working.
type guest struct {
	lanes, served int
	working       desks
}

// NewServer returns a server that lends what backend has, with the claims of
// client. log is told of members that break the protocol.
func NewServer(client *Client, backend Backend, log *slog.Logger) *Server {
	return &Server{
		client: client, backend: backend, upload: client.cfg.Upload, log: log,
		spreads: &spreads{all: decide.NewSpreads(client.chance())}, working: newDesks(maxWorking), guests: make(map[tracker.ID]*guest),
	}
}

// Serve answers requests on a lane that a member has opened, until the lane ends
// and with it all answers.
func (s *Server) Serve(from tracker.ID, stream Stream) {
	defer stream.Close()
	g := s.enter(from)
	if g == nil {
		return
	}
	defer s.leave(from, g)
	l := &served{frameWriter: newFrameWriter(stream, s.upload), server: s, from: from, guest: g, under: make(map[uint32]context.CancelFunc)}
	if err := l.run(); errors.Is(err, errBroken) {
		s.log.Warn("peer was cut off", "peer", from, "error", err)
	}
}

// enter returns nil to a member that has too many lanes.
func (s *Server) enter(from tracker.ID) *guest {
	s.mu.Lock()
	defer s.mu.Unlock()
	g := s.guests[from]
	if g == nil {
		g = &guest{working: newDesks(maxWorkingOf)}
		s.guests[from] = g
	}
	if g.lanes >= maxLanes {
		return nil
	}
	g.lanes++
	return g
}

func (s *Server) leave(from tracker.ID, g *guest) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if g.lanes--; g.lanes == 0 {
		delete(s.guests, from)
	}
}

// begin reports whether a request may be answered; end is called then.
func (s *Server) begin(g *guest) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.served >= maxServed || g.served >= maxServedOf {
		return false
	}
	s.served++
	g.served++
	return true
}

func (s *Server) end(g *guest) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.served--
	g.served--
}

// served is one lane that another member has opened.
type served struct {
	frameWriter
	server *Server
	from   tracker.ID
	guest  *guest

	answers sync.WaitGroup

	mu        sync.Mutex
	under     map[uint32]context.CancelFunc // requests that are being answered
	answering int                           // those, and those whose last frame is being written
}

// run answers requests until the lane ends.
func (l *served) run() error {
	ctx, cancel := context.WithCancel(context.Background())
	defer l.answers.Wait()
	defer l.s.Close() // which ends writes
	defer cancel()
	r, err := l.greet()
	for err == nil {
		var f wire.Frame
		if f, err = readFrame(r); err == nil {
			l.server.client.cfg.Traffic(int64(len(f.Header)+len(f.Body)), 0)
			err = l.begin(ctx, f)
		}
	}
	return err
}

// greet exchanges prefaces.
func (l *served) greet() (*bufio.Reader, error) {
	_ = l.s.SetReadDeadline(time.Now().Add(prefaceFor))
	_ = l.s.SetWriteDeadline(time.Now().Add(prefaceFor))
	r := bufio.NewReaderSize(l.s, laneBuffer)
	if _, err := wire.ReadPreface(r); err != nil {
		return nil, err
	}
	if _, err := l.s.Write(wire.Preface[:]); err != nil {
		return nil, err
	}
	return r, l.s.SetReadDeadline(time.Time{})
}

// begin starts to answer a request, or ends an answer that is not wanted.
func (l *served) begin(lane context.Context, f wire.Frame) error {
	// A request is kept for as long as it is answered; what is not known here is
	// answered at once.
	known := f.Type <= wire.TypeOrder
	if known && (len(f.Header) > maxRequest || len(f.Body) > maxBodyOf[f.Type]) {
		return fmt.Errorf("%w: a request of type %d with %d bytes", errBroken, f.Type, len(f.Header)+len(f.Body))
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	cancel, under := l.under[f.ID]
	if f.Type == wire.TypeCancel {
		if under {
			cancel()
		}
		return nil
	}
	if under || l.answering >= maxAnswering {
		return fmt.Errorf("%w: request %d of %d under way", errBroken, f.ID, l.answering)
	}
	within := requestFor
	if f.Type == wire.TypeAsk {
		within = makeFor
	}
	ctx, cancel := context.WithTimeout(lane, within)
	l.under[f.ID] = cancel
	l.answering++
	l.answers.Go(func() {
		defer cancel()
		last := l.answer(ctx, f)
		last.ID = f.ID
		l.finish(lane, last, ctx.Err() == context.Canceled)
	})
	return nil
}

// finish writes the last frame of an answer, if it is still wanted.
func (l *served) finish(lane context.Context, last wire.Frame, cancelled bool) {
	l.mu.Lock()
	delete(l.under, last.ID) // before the asker may use the number again
	l.mu.Unlock()
	if !cancelled {
		_ = l.write(lane, last)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.answering--
}

// write writes a frame and counts it. A stream that cannot be written to is closed,
// which ends the lane.
func (l *served) write(ctx context.Context, f wire.Frame) error {
	begun, err := l.frameWriter.write(ctx, f)
	if err == nil {
		l.server.client.cfg.Traffic(0, int64(len(f.Header)+len(f.Body)))
		l.server.client.peers.gave(l.from, len(f.Body))
	} else if begun {
		_ = l.s.Close()
	}
	return err
}

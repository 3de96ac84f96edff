package p2p

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/granary-oci/granary/p2p/wire"
	"github.com/granary-oci/granary/tracker"
)

const (
	writeFor   = 30 * time.Second // a frame may take to be written
	stuckAfter = time.Second
	laneBuffer = 64 << 10
)

// errBroken says that the other side does not keep to the protocol.
var errBroken = errors.New("peer breaks the protocol")

var (
	errLaneClosed = errors.New("lane is closed")
	errLaneFull   = errors.New("too many requests are under way")
)

// frameWriter writes frames to a stream, one at a time.
type frameWriter struct {
	s      Stream
	upload *Limiter
	turn   chan struct{} // of capacity 1: holds whoever writes; a lock that can be given up on
	since  *atomic.Int64 // when the frame that is being written was begun, in Unix nanoseconds; 0 for none
}

func newFrameWriter(s Stream, upload *Limiter) frameWriter {
	return frameWriter{s: s, upload: upload, turn: make(chan struct{}, 1), since: new(atomic.Int64)}
}

// write writes a frame. If it has begun to, an error leaves the stream of no use;
// ctx ends only the wait for that.
func (w *frameWriter) write(ctx context.Context, f wire.Frame) (begun bool, err error) {
	head, err := f.Head()
	if err != nil {
		return false, err
	}
	if err := w.upload.Wait(ctx, len(f.Body)); err != nil {
		return false, err
	}
	select {
	case w.turn <- struct{}{}:
		defer func() { <-w.turn }()
	case <-ctx.Done():
		return false, ctx.Err()
	}
	now := time.Now()
	w.since.Store(now.UnixNano())
	defer w.since.Store(0)
	_ = w.s.SetWriteDeadline(now.Add(writeFor))
	if len(f.Body) == 0 {
		_, err = w.s.Write(head)
		return true, err
	}
	buffers := net.Buffers{head, f.Body}
	_, err = buffers.WriteTo(w.s)
	return true, err
}

// stuck reports whether the other side has taken nothing for a while of what is
// being written.
func (w *frameWriter) stuck(now time.Time) bool {
	since := w.since.Load()
	return since != 0 && now.Sub(time.Unix(0, since)) > stuckAfter
}

// lane is a stream to a member, on which requests are made.
type lane struct {
	frameWriter
	peers *Peers
	id    tracker.ID

	mu    sync.Mutex
	calls map[uint32]*call
	last  uint32
	owed  int // chunks that may still come, of all calls
	used  time.Time
	err   error // why the lane is of no use any more
}

// call is one request under way. Frames are added by the lane's reader, and taken
// by whoever made the request.
type call struct {
	lane *lane
	id   uint32
	most int // chunks that may still come; guarded by lane.mu
	sent time.Time

	mu     sync.Mutex
	frames []wire.Frame
	err    error
	wake   chan struct{} // of capacity 1
}

// newLane makes a lane of a new stream, whose frames are to be read.
func newLane(s Stream, peers *Peers, id tracker.ID) (*lane, error) {
	_ = s.SetWriteDeadline(time.Now().Add(dialFor))
	if _, err := s.Write(wire.Preface[:]); err != nil {
		_ = s.Close()
		return nil, err
	}
	return &lane{frameWriter: newFrameWriter(s, nil), peers: peers, id: id, calls: make(map[uint32]*call), used: peers.now()}, nil
}

func (l *lane) usable() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.err == nil
}

// load returns how many requests are under way.
func (l *lane) load() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.calls)
}

func (l *lane) idleFor() time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.calls) > 0 {
		return 0
	}
	return l.peers.now().Sub(l.used)
}

// send makes a request.
func (l *lane) send(ctx context.Context, f wire.Frame, most int) (*call, error) {
	c, err := l.enter(most)
	if err != nil {
		return nil, err
	}
	f.ID = c.id
	if begun, err := l.write(ctx, f); err != nil {
		l.leave(c)
		l.mu.Lock()
		l.owed -= most // nothing comes of what was not asked
		l.mu.Unlock()
		if begun {
			l.fail(fmt.Errorf("write: %w", err))
		}
		return nil, err
	}
	l.peers.traffic(0, int64(len(f.Header)+len(f.Body)))
	return c, nil
}

func (l *lane) enter(most int) (*call, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case l.err != nil:
		return nil, l.err
	case len(l.calls) >= wire.MaxPending:
		return nil, errLaneFull
	}
	l.last++
	c := &call{lane: l, id: l.last, most: most, sent: l.peers.now(), wake: make(chan struct{}, 1)}
	l.calls[c.id] = c
	l.owed += most
	l.used = c.sent
	return c, nil
}

// leave forgets a call. It reports whether there was still an answer to come.
func (l *lane) leave(c *call) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	_, under := l.calls[c.id]
	delete(l.calls, c.id)
	l.used = l.peers.now()
	return under && l.err == nil
}

// read hands frames to calls until the lane fails.
func (l *lane) read() {
	r := bufio.NewReaderSize(&lifeSigns{l.s, l.peers, l.id, l.peers.now()}, laneBuffer)
	_, err := wire.ReadPreface(r)
	for err == nil {
		var f wire.Frame
		if f, err = readFrame(r); err == nil {
			l.peers.hear(l.id, len(f.Body))
			l.peers.traffic(int64(len(f.Header)+len(f.Body)), 0)
			err = l.hand(f)
		}
	}
	switch {
	case err == io.EOF:
		err = errLaneClosed
	case errors.Is(err, errBroken):
		l.peers.blame(l.id, err) // though nobody may be waiting for an answer
	}
	l.fail(err)
}

// lifeSigns reads what comes from a member, which is not silent while its bytes do: with the chunks of others behind which
// one waits it takes seconds over a thin link.
type lifeSigns struct {
	io.Reader
	peers *Peers
	id    tracker.ID
	noted time.Time
}

const noteEvery = 100 * time.Millisecond

// Read implements [io.Reader].
func (s *lifeSigns) Read(p []byte) (int, error) {
	n, err := s.Reader.Read(p)
	if now := s.peers.now(); n > 0 && now.Sub(s.noted) >= noteEvery {
		s.noted = now
		s.peers.stirs(s.id)
	}
	return n, err
}

// readFrame reads a frame, of which one that is too large breaks the protocol.
func readFrame(r *bufio.Reader) (wire.Frame, error) {
	f, err := wire.Read(r)
	if errors.Is(err, wire.ErrTooLarge) {
		err = fmt.Errorf("%w: %w", errBroken, err)
	}
	return f, err
}

// hand gives a frame to the call that it answers. One that answers nothing is of a
// call that was cancelled.
func (l *lane) hand(f wire.Frame) error {
	c, err := l.answered(f)
	if c != nil && err == nil {
		c.add(f)
	}
	return err
}

// answered returns the call that a frame answers, if it may.
func (l *lane) answered(f wire.Frame) (*call, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	c := l.calls[f.ID]
	if f.ID == 0 || f.ID > l.last {
		return nil, fmt.Errorf("%w: an answer to what was not asked", errBroken)
	}
	if f.Type == wire.TypeData {
		l.owed--
		if c != nil {
			c.most--
		}
		if l.owed < 0 || c != nil && c.most < 0 {
			return nil, fmt.Errorf("%w: more chunks than were asked for", errBroken)
		}
	}
	if c != nil && f.Type.Last() {
		delete(l.calls, f.ID)
		l.owed -= c.most
	}
	return c, nil
}

// fail ends the lane and all its calls with err.
func (l *lane) fail(err error) {
	l.mu.Lock()
	if l.err != nil {
		l.mu.Unlock()
		return
	}
	l.err = err
	calls := l.calls
	l.calls = make(map[uint32]*call)
	l.mu.Unlock()
	_ = l.s.Close()
	for _, c := range calls {
		c.end(err)
	}
}

// add queues a frame. Of waiting the latest word is enough.
func (c *call) add(f wire.Frame) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if n := len(c.frames); n > 0 && f.Type == wire.TypeProgress && c.frames[n-1].Type == wire.TypeProgress {
		c.frames[n-1] = f
	} else {
		c.frames = append(c.frames, f)
	}
	c.signal()
}

func (c *call) end(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err == nil {
		c.err = err
	}
	c.signal()
}

func (c *call) signal() {
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

// next returns the next frame of the answer.
func (c *call) next(ctx context.Context) (wire.Frame, error) {
	for {
		if f, ok, err := c.take(); ok || err != nil {
			return f, err
		}
		select {
		case <-c.wake:
		case <-ctx.Done():
			return wire.Frame{}, ctx.Err()
		}
	}
}

func (c *call) take() (f wire.Frame, ok bool, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.frames) == 0 {
		return f, false, c.err
	}
	f, c.frames[0] = c.frames[0], wire.Frame{}
	c.frames = c.frames[1:]
	return f, true, nil
}

// cancel gives up a call, if it is not over. What still comes of it is dropped.
func (c *call) cancel() {
	l := c.lane
	if !l.leave(c) {
		return
	}
	l.peers.background(func(ctx context.Context) { // it may have to wait for a frame that is being written
		if begun, err := l.write(ctx, wire.Frame{Type: wire.TypeCancel, ID: c.id}); begun && err != nil {
			l.fail(err)
		}
	})
}

package p2p

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"

	"github.com/granary-oci/granary/p2p/wire"
	"github.com/granary-oci/granary/tracker"
)

const (
	writeFor   = 30 * time.Second // a frame may take to be written
	laneBuffer = 64 << 10
)

// errBroken says that the other side does not keep to the protocol.
var errBroken = errors.New("peer breaks the protocol")

// frameWriter writes frames to a stream, one at a time.
type frameWriter struct {
	mu     sync.Mutex
	s      Stream
	upload *Limiter
}

// write writes a frame. An error leaves the stream of no use.
func (w *frameWriter) write(ctx context.Context, f wire.Frame) error {
	head, err := f.Head()
	if err != nil {
		return err
	}
	if err := w.upload.Wait(ctx, len(f.Body)); err != nil {
		return err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	_ = w.s.SetWriteDeadline(time.Now().Add(writeFor))
	if len(f.Body) == 0 {
		_, err = w.s.Write(head)
		return err
	}
	buffers := net.Buffers{head, f.Body}
	_, err = buffers.WriteTo(w.s)
	return err
}

// lane is a stream to a member, on which requests are made.
type lane struct {
	frameWriter
	peers *Peers
	id    tracker.ID

	mu    sync.Mutex
	calls map[uint32]*call
	last  uint32
	used  time.Time
	err   error // why the lane is of no use any more
}

// call is one request under way. Frames are added by the lane's reader, and taken
// by whoever made the request.
type call struct {
	lane *lane
	id   uint32
	most int // chunks that may still come
	sent time.Time

	mu     sync.Mutex
	frames []wire.Frame
	err    error
	wake   chan struct{} // of capacity 1
}

// newLane makes a lane of a new stream.
func newLane(s Stream, peers *Peers, id tracker.ID) (*lane, error) {
	_ = s.SetWriteDeadline(time.Now().Add(dialFor))
	if _, err := s.Write(wire.Preface[:]); err != nil {
		_ = s.Close()
		return nil, err
	}
	l := &lane{frameWriter: frameWriter{s: s}, peers: peers, id: id, calls: make(map[uint32]*call), used: peers.now()}
	go l.read()
	return l, nil
}

func (l *lane) usable() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.err == nil
}

// load returns how many requests are under way.
func (l *lane) load() int64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.err != nil {
		return 0
	}
	return int64(len(l.calls)) * 2
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
	l.mu.Lock()
	if l.err != nil || len(l.calls) >= wire.MaxPending {
		err := l.err
		l.mu.Unlock()
		if err == nil {
			err = errors.New("too many requests are under way")
		}
		return nil, err
	}
	l.last++
	c := &call{lane: l, id: l.last, most: most, sent: l.peers.now(), wake: make(chan struct{}, 1)}
	l.calls[c.id] = c
	l.used = c.sent
	l.mu.Unlock()
	f.ID = c.id
	if err := l.write(ctx, f); err != nil {
		l.fail(fmt.Errorf("write: %w", err))
		return nil, err
	}
	l.peers.traffic(0, int64(len(f.Header)+len(f.Body)))
	return c, nil
}

// read hands frames to calls until the lane fails.
func (l *lane) read() {
	r := bufio.NewReaderSize(l.s, laneBuffer)
	if _, err := wire.ReadPreface(r); err != nil {
		l.fail(err)
		return
	}
	for {
		f, err := wire.Read(r)
		if err != nil {
			if errors.Is(err, wire.ErrTooLarge) {
				err = fmt.Errorf("%w: %w", errBroken, err)
			}
			l.fail(err)
			return
		}
		l.peers.hear(l.id, len(f.Body))
		l.peers.traffic(int64(len(f.Header)+len(f.Body)), 0)
		if err := l.hand(f); err != nil {
			l.fail(err)
			return
		}
		_ = l.peers.download.Wait(context.Background(), len(f.Body))
	}
}

// hand gives a frame to the call that it answers. One that answers nothing is of a
// call that was cancelled.
func (l *lane) hand(f wire.Frame) error {
	l.mu.Lock()
	c := l.calls[f.ID]
	if c != nil && f.Type.Last() {
		delete(l.calls, f.ID)
	}
	wrong := f.ID > l.last
	l.mu.Unlock()
	if wrong {
		return fmt.Errorf("%w: an answer to what was not asked", errBroken)
	}
	if c == nil {
		return nil
	}
	return c.add(f)
}

// fail ends the lane and all its calls with err.
func (l *lane) fail(err error) {
	if err == io.EOF {
		err = errLaneClosed
	}
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
func (c *call) add(f wire.Frame) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if f.Type == wire.TypeData {
		if c.most--; c.most < 0 {
			return fmt.Errorf("%w: more chunks than were asked for", errBroken)
		}
	}
	if n := len(c.frames); n > 0 && f.Type == wire.TypeProgress && c.frames[n-1].Type == wire.TypeProgress {
		c.frames[n-1] = f
	} else {
		c.frames = append(c.frames, f)
	}
	c.signal()
	return nil
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
		c.mu.Lock()
		if len(c.frames) > 0 {
			f := c.frames[0]
			c.frames[0] = wire.Frame{}
			c.frames = c.frames[1:]
			c.mu.Unlock()
			return f, nil
		}
		err := c.err
		c.mu.Unlock()
		if err != nil {
			return wire.Frame{}, err
		}
		select {
		case <-c.wake:
		case <-ctx.Done():
			return wire.Frame{}, ctx.Err()
		}
	}
}

// cancel gives up a call, if it is not over. What still comes of it is dropped.
func (c *call) cancel() {
	l := c.lane
	l.mu.Lock()
	_, under := l.calls[c.id]
	delete(l.calls, c.id)
	l.used = l.peers.now()
	ok := l.err == nil
	l.mu.Unlock()
	if !under || !ok {
		return
	}
	go func() { // it may have to wait for a frame that is being written
		if err := l.write(context.Background(), wire.Frame{Type: wire.TypeCancel, ID: c.id}); err != nil {
			l.fail(err)
		}
	}()
}

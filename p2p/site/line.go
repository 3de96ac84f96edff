package site

import (
	"context"
	"errors"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/protocol"
	"github.com/libp2p/go-libp2p/p2p/protocol/ping"
	msmux "github.com/multiformats/go-multistream"
)

const (
	quiet        = time.Second      // without a byte, before the other side is asked for a sign
	longQuiet    = 32 * time.Second // between two questions, when it has answered time and again
	answerWithin = 2500 * time.Millisecond
)

// line is a connection with the streams that [Dial] has opened on it. While nothing arrives on any of
// them, the other side is asked for a sign of life, and if it gives none the connection is closed: its
// streams fail, and are dialled again. Nobody else would know for long. Who sends waits twice as long
// each time (RFC 6298, section 5.5; RFC 9002, section 6.2.1), so a line that was down for 5 s, and is up
// for 5 s, would carry nothing; and who only reads waits for as long as the other side keeps silent.
type line struct {
	conn  network.Conn
	heard atomic.Int64 // when a byte came, in ns since 1970
	used  atomic.Bool  // bytes came or went since the watcher looked
}

// lines are those on which streams are open.
type lines struct {
	mu  sync.Mutex
	all map[network.Conn]*opened
}

type opened struct {
	line
	streams int
	none    context.CancelFunc // called when there are none
}

// add opens a stream's place on its line, which is watched as long as there are some.
func (ls *lines) add(h *Host, s network.Stream) *dialled {
	ls.mu.Lock()
	defer ls.mu.Unlock()
	o := ls.all[s.Conn()]
	if o == nil {
		ctx, cancel := context.WithCancel(h.ctx)
		o = &opened{line: line{conn: s.Conn()}, none: cancel}
		o.heard.Store(time.Now().UnixNano())
		if ls.all == nil {
			ls.all = make(map[network.Conn]*opened)
		}
		ls.all[s.Conn()] = o
		h.tasks.Go(func() { o.watch(ctx, h) })
	}
	o.streams++
	return &dialled{Conn: Conn{s}, line: &o.line, leave: sync.OnceFunc(func() { ls.remove(o) })}
}

func (ls *lines) remove(o *opened) {
	ls.mu.Lock()
	defer ls.mu.Unlock()
	if o.streams--; o.streams == 0 {
		delete(ls.all, o.conn)
		o.none()
	}
}

// watch asks for signs of life until ctx ends, or there is none.
func (l *line) watch(ctx context.Context, h *Host) {
	for wait := quiet; ; {
		select {
		case <-ctx.Done():
			return
		case <-time.After(wait):
		}
		if l.used.Swap(false) {
			wait = quiet
		}
		if time.Since(time.Unix(0, l.heard.Load())) < quiet {
			continue
		}
		if err := l.ask(ctx); err != nil && ctx.Err() == nil {
			h.log.Debug("site: a connection is dead", "peer", l.conn.RemotePeer(), "error", err)
			_ = l.conn.Close()
			return
		}
		wait = min(2*wait, longQuiet)
	}
}

// ask returns nil if the other side says anything: that it does not know the protocol, too.
func (l *line) ask(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, answerWithin)
	defer cancel()
	s, err := l.conn.NewStream(network.WithAllowLimitedConn(ctx, "ask for a sign of life"))
	if err != nil {
		return err
	}
	defer s.Reset()
	deadline, _ := ctx.Deadline()
	if err := errors.Join(s.SetDeadline(deadline), s.SetProtocol(ping.ID)); err != nil {
		return err
	}
	err = msmux.SelectProtoOrFail(protocol.ID(ping.ID), s)
	if errors.Is(err, msmux.ErrNotSupported[protocol.ID]{}) {
		return nil
	}
	return err
}

// dialled is a stream that this site has opened.
type dialled struct {
	Conn
	line  *line
	leave func()
}

var _ net.Conn = (*dialled)(nil)

// Read implements [net.Conn].
func (d *dialled) Read(p []byte) (int, error) {
	n, err := d.Conn.Read(p)
	if n > 0 {
		d.line.heard.Store(time.Now().UnixNano())
		d.line.used.Store(true)
	}
	return n, err
}

// Write implements [net.Conn].
func (d *dialled) Write(p []byte) (int, error) {
	d.line.used.Store(true)
	return d.Conn.Write(p)
}

// Close implements [net.Conn].
func (d *dialled) Close() error {
	d.leave()
	return d.Conn.Close()
}

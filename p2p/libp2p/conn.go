package libp2p

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/transport"
	"github.com/multiformats/go-multistream"

	"github.com/granary-oci/granary/tracker"
)

// conn is a connection to a member.
type conn struct {
	transport.CapableConn
	peer   tracker.ID
	dialed string // the one of the member's addresses that it was dialled at; "" if the member dialled

	// Guarded by Host.mu.
	lanes  int  // open streams
	silent bool // it gave no answer in time and gets no new streams
}

// adopt puts a connection into the table and accepts streams on it until it ends.
// A connection that cannot be adopted is closed.
func (h *Host) adopt(cc transport.CapableConn, dialed string) (*conn, error) {
	c := &conn{CapableConn: cc, peer: tracker.ID(cc.RemotePeer().String()), dialed: dialed}
	if err := h.add(c); err != nil {
		c.Close()
		return nil, err
	}
	h.log.Debug("p2p: connected", "peer", c.peer, "addr", c.RemoteMultiaddr(), "dialed", dialed != "", "security", c.ConnState().Security)
	return c, nil
}

func (h *Host) add(c *conn) error {
	// The view is asked again: the peer may have left it during the handshake, and
	// from here on watch sees the connection.
	if !h.member(c.peer) {
		return fmt.Errorf("peer %s: %w", c.peer, ErrNotMember)
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed {
		return ErrClosed
	}
	h.conns[c.peer] = append(h.conns[c.peer], c)
	h.tasks.Go(func() { h.serve(c) })
	return nil
}

// serve accepts the member's streams until the connection ends.
func (h *Host) serve(c *conn) {
	defer h.drop(c)
	for {
		s, err := c.AcceptStream()
		if err != nil {
			return
		}
		go h.welcome(c, s)
	}
}

// welcome gives a stream that the member opened to the handler.
func (h *Host) welcome(c *conn, s network.MuxedStream) {
	if !h.member(c.peer) {
		_ = s.Reset()
		return
	}
	select {
	case <-h.ready:
	case <-time.After(openTime): // longer than which the other side does not wait
		_ = s.Reset()
		return
	case <-h.ctx.Done():
		return
	}
	_ = s.SetDeadline(time.Now().Add(openTime))
	if _, _, err := h.protocols.Negotiate(s); err != nil {
		_ = s.Reset()
		return
	}
	_ = s.SetDeadline(time.Time{})
	h.handle(c.peer, h.newLane(c, s))
}

// openOn opens a stream on a connection and returns when the member has taken it.
func (h *Host) openOn(ctx context.Context, c *conn) (*lane, error) {
	s, err := c.OpenStream(ctx)
	if err != nil {
		return nil, err
	}
	stop := context.AfterFunc(ctx, func() { _ = s.SetDeadline(time.Unix(1, 0)) })
	_, err = multistream.SelectOneOf(only, s)
	if !stop() {
		err = ctx.Err() // a deadline that is set now would stay
	}
	l := h.newLane(c, s)
	if err != nil {
		l.Close()
		return nil, err
	}
	return l, nil
}

// newest returns the connection to use for a new stream to a peer, or nil.
func (h *Host) newest(p tracker.Peer) *conn {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, c := range slices.Backward(h.conns[p.ID]) {
		moved := c.dialed != "" && !slices.Contains(p.Addrs, c.dialed)
		if !c.silent && !moved && !c.IsClosed() {
			return c
		}
	}
	return nil
}

// avoid keeps a connection from getting new streams, and closes it when it has
// none.
func (h *Host) avoid(c *conn) {
	h.mu.Lock()
	c.silent = true
	idle := c.lanes == 0
	h.mu.Unlock()
	if idle {
		go c.Close()
	}
}

// usable reports whether a connection may still get new streams.
func (h *Host) usable(c *conn) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return !c.silent && !c.IsClosed()
}

// drop takes a connection that has ended out of the table.
func (h *Host) drop(c *conn) {
	c.Close() // which gives back what libp2p counts for it
	h.mu.Lock()
	defer h.mu.Unlock()
	rest := slices.DeleteFunc(h.conns[c.peer], func(other *conn) bool { return other == c })
	if len(rest) == 0 {
		delete(h.conns, c.peer)
		return
	}
	h.conns[c.peer] = rest
}

// closeAll closes connections and does not wait: TLS takes 5 s to say goodbye to
// one that takes no bytes.
func closeAll(conns []*conn) {
	for _, c := range conns {
		go c.Close()
	}
}

// lane is a stream that its connection knows of. It implements p2p.Stream.
type lane struct {
	network.MuxedStream
	done func() // once
}

func (h *Host) newLane(c *conn, s network.MuxedStream) *lane {
	h.mu.Lock()
	defer h.mu.Unlock()
	c.lanes++
	return &lane{s, sync.OnceFunc(func() {
		h.mu.Lock()
		c.lanes--
		last := c.silent && c.lanes == 0
		h.mu.Unlock()
		// Reset ends this side at once and then waits to tell the other, which takes
		// 10 s if that takes no bytes.
		go func() {
			_ = s.Reset()
			if last {
				c.Close()
			}
		}()
	})}
}

// Close implements p2p.Stream.
func (l *lane) Close() error {
	l.done()
	return nil
}

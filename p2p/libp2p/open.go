package libp2p

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	"github.com/libp2p/go-libp2p/core/transport"
	ma "github.com/multiformats/go-multiaddr"
	manet "github.com/multiformats/go-multiaddr/net"

	"github.com/granary-oci/granary/p2p"
	"github.com/granary-oci/granary/tracker"
)

const (
	openTime   = 2 * time.Second        // for a stream, dialling included
	answerTime = 500 * time.Millisecond // for a stream on a connection that is there
	maxAddrs   = 8                      // of a member that are dialled
)

var only = []protocol.ID{Protocol}

// Open implements [p2p.Transport]. It returns when the member has taken the
// stream, or after 2 s. A connection that died without a word costs half a second
// of that, once.
func (h *Host) Open(ctx context.Context, p tracker.Peer) (p2p.Stream, error) {
	ctx, cancel := context.WithTimeout(ctx, openTime)
	defer cancel()
	s, err := h.open(ctx, p)
	if err != nil {
		return nil, fmt.Errorf("peer %s: open a stream: %w", p.ID, err)
	}
	return s, nil
}

func (h *Host) open(ctx context.Context, p tracker.Peer) (*lane, error) {
	id, err := peer.Decode(string(p.ID))
	if err != nil {
		return nil, err
	}
	if id == h.id {
		return nil, errors.New("it is this node")
	}
	if !h.member(p.ID) {
		return nil, ErrNotMember
	}
	for c := h.newest(p); c != nil; c = h.newest(p) {
		s, err := h.tryOn(ctx, c)
		if err == nil || ctx.Err() != nil || h.usable(c) {
			return s, err
		}
	}
	c, err := h.dial(ctx, id, p)
	if err != nil {
		return nil, err
	}
	return h.openOn(ctx, c)
}

// tryOn opens a stream on a connection that may have died. Whether it has is found
// out even for a caller that leaves: otherwise callers in a hurry would try it
// again and again.
func (h *Host) tryOn(ctx context.Context, c *conn) (*lane, error) {
	opened := make(chan *lane, 1)
	failed := make(chan error, 1)
	go func() {
		ctx, cancel := context.WithTimeout(h.ctx, answerTime)
		defer cancel()
		s, err := h.openOn(ctx, c)
		switch {
		case err == nil:
			opened <- s
		case ctx.Err() != nil:
			h.avoid(c)
			fallthrough
		default:
			failed <- err
		}
	}()
	select {
	case s := <-opened:
		return s, nil
	case err := <-failed:
		return nil, err
	case <-ctx.Done():
		go discard(opened, failed)
		return nil, ctx.Err()
	}
}

// discard closes a stream that nobody waits for any more.
func discard(opened <-chan *lane, failed <-chan error) {
	select {
	case s := <-opened:
		s.Close()
	case <-failed: //nolint:errcheck // nobody is there to be told
	}
}

// dial connects to a peer. Callers that know it by the same addresses share one
// dial, which is theirs together and does not end with one's context.
func (h *Host) dial(ctx context.Context, id peer.ID, p tracker.Peer) (*conn, error) {
	key := string(p.ID) + " " + strings.Join(p.Addrs, " ")
	result := h.dials.DoChan(key, func() (any, error) {
		if c := h.newest(p); c != nil { // a dial ended, or the member's, since the caller looked
			return c, nil
		}
		return h.dialAll(id, p.Addrs)
	})
	select {
	case r := <-result:
		if r.Err != nil {
			return nil, r.Err
		}
		return r.Val.(*conn), nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

type dialResult struct {
	conn transport.CapableConn
	addr string
	err  error
}

// dialAll dials all addresses at once and keeps the connection that is there first.
func (h *Host) dialAll(id peer.ID, addrs []string) (*conn, error) {
	ctx, cancel := context.WithTimeout(h.ctx, openTime)
	defer cancel()
	addrs = addrs[:min(len(addrs), maxAddrs)]
	results := make(chan dialResult, len(addrs))
	for _, addr := range addrs {
		go func() { results <- h.dialOne(ctx, id, addr) }()
	}
	errs := []error{errors.New("no address answers")}
	for left := len(addrs) - 1; left >= 0; left-- {
		r := <-results
		if r.err == nil {
			go closeLosers(results, left)
			return h.adopt(r.conn, r.addr)
		}
		errs = append(errs, fmt.Errorf("%s: %w", r.addr, r.err))
	}
	return nil, errors.Join(errs...)
}

// closeLosers closes the connections among the results that are still to come.
func closeLosers(results <-chan dialResult, left int) {
	for range left {
		if r := <-results; r.err == nil {
			r.conn.Close()
		}
	}
}

func (h *Host) dialOne(ctx context.Context, id peer.ID, addr string) dialResult {
	a, err := dialable(addr)
	if err != nil {
		return dialResult{addr: addr, err: err}
	}
	c, err := h.transport.Dial(ctx, a, id)
	return dialResult{c, addr, err}
}

// dialable parses an address. What stands for all addresses of a host would lead
// to this one.
func dialable(addr string) (ma.Multiaddr, error) {
	a, err := parseTCP(addr)
	if err != nil {
		return nil, err
	}
	if manet.IsIPUnspecified(a) {
		return nil, errors.New("it stands for all addresses of a host")
	}
	return a, nil
}

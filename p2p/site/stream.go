package site

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/peerstore"
	"github.com/libp2p/go-libp2p/core/protocol"
	ma "github.com/multiformats/go-multiaddr"
	madns "github.com/multiformats/go-multiaddr-dns"
	manet "github.com/multiformats/go-multiaddr/net"
)

// Protocol is the name of HTTP/1.1 on a stream, as a parent answers it to its children. A stream is a connection.
const Protocol = protocol.ID("/granary/http/1")

const (
	dialWithin  = 10 * time.Second // with the names in addresses, and the stream
	dialTry     = 5 * time.Second  // at one address; what was lost is sent again later and later
	maxResolved = 32               // addresses that names stand for
	maxWaiting  = 64               // streams that nobody has accepted yet; more are refused
)

// Conn is a stream as a connection.
type Conn struct {
	network.Stream
}

var _ net.Conn = Conn{}

// Peer is who is at the other end, as it has proven.
func (c Conn) Peer() peer.ID { return c.Conn().RemotePeer() }

// LocalAddr implements [net.Conn].
func (c Conn) LocalAddr() net.Addr { return addrOf(c.Conn().LocalMultiaddr(), c.Conn().LocalPeer()) }

// RemoteAddr implements [net.Conn]. Through a relay it is the peer's ID.
func (c Conn) RemoteAddr() net.Addr { return addrOf(c.Conn().RemoteMultiaddr(), c.Peer()) }

// addr is a peer that has no address of its own.
type addr peer.ID

func (addr) Network() string  { return "libp2p" }
func (a addr) String() string { return peer.ID(a).String() }

func addrOf(m ma.Multiaddr, id peer.ID) net.Addr {
	if bare, last := ma.SplitLast(m); last != nil && last.Protocol().Code == ma.P_QUIC_V1 {
		m = bare
	}
	if a, err := manet.ToNetAddr(m); err == nil {
		return a
	}
	return addr(id)
}

// Listener accepts the streams that others open for [Protocol].
type Listener struct {
	host  host.Host
	conns chan Conn
	done  chan struct{}
	close sync.Once
}

// Listen returns the listener of a host, of which it has one.
func Listen(h host.Host) *Listener {
	l := &Listener{host: h, conns: make(chan Conn, maxWaiting), done: make(chan struct{})}
	h.SetStreamHandler(Protocol, func(s network.Stream) {
		select {
		case l.conns <- Conn{s}:
		default:
			_ = s.Reset()
		}
	})
	return l
}

// Accept implements [net.Listener].
func (l *Listener) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.done:
		return nil, net.ErrClosed
	}
}

// Close implements [net.Listener].
func (l *Listener) Close() error {
	l.close.Do(func() {
		l.host.RemoveStreamHandler(Protocol)
		close(l.done)
	})
	return nil
}

// Addr implements [net.Listener].
func (l *Listener) Addr() net.Addr { return addr(l.host.ID()) }

// Dial opens a stream to another site, at one of its addresses or as it is connected already. What is
// lost on the way, as on a line that is down for a moment, is tried again for as long as ctx lives, up to
// 10 s. The stream fails soon after the line has died.
func Dial(ctx context.Context, h *Host, to peer.AddrInfo) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, dialWithin)
	defer cancel()
	for {
		s, err := h.dial(ctx, to)
		if err == nil {
			return h.lines.add(h, s), nil
		}
		if ctx.Err() != nil || !isTimeout(err) {
			return nil, fmt.Errorf("site %s: %w", to.ID, err)
		}
	}
}

func isTimeout(err error) bool {
	var timed net.Error
	return errors.Is(err, context.DeadlineExceeded) || errors.As(err, &timed) && timed.Timeout()
}

// dial tries once.
func (h *Host) dial(ctx context.Context, to peer.AddrInfo) (network.Stream, error) {
	if h.Network().Connectedness(to.ID) != network.Connected {
		addrs, err := resolved(ctx, to.Addrs)
		if len(addrs) == 0 {
			return nil, err
		}
		h.Peerstore().AddAddrs(to.ID, addrs, peerstore.TempAddrTTL)
		h.swarm.Backoff().Clear(to.ID) // for 5 s and more no other would be tried after one that failed
	}
	if err := h.Connect(ctx, peer.AddrInfo{ID: to.ID}); err != nil {
		return nil, err
	}
	s, err := h.NewStream(network.WithNoDial(ctx, "connected"), to.ID, Protocol)
	if err != nil && ctx.Err() == nil { // its gate closes, without a word, what was opened
		err = fmt.Errorf("it closes the connection, as it does if this site may not ask: %w", err)
	}
	return s, err
}

// resolved returns addresses with names in the place of addresses looked up.
func resolved(ctx context.Context, addrs []ma.Multiaddr) (all []ma.Multiaddr, err error) {
	err = errors.New("it has no address")
	for _, a := range addrs {
		found, rerr := madns.DefaultResolver.Resolve(ctx, a)
		if rerr != nil {
			err = rerr
			continue
		}
		for _, f := range found {
			if bare, _ := peer.SplitAddr(f); bare != nil && len(all) < maxResolved {
				all = append(all, bare)
			}
		}
	}
	return all, err
}

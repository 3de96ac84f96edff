package site

import (
	"context"
	"errors"
	"fmt"
	"io"
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

// Hello is what each end of a stream says before anything else, so that none talks to whom it should not: who
// dials, what shows that it may ask, and who is dialled, what shows that it is whom the other meant. The zero
// Hello of who is dialled is a refusal. What is in it is the business of who dials and listens; each end knows
// the ID of the other.
type Hello [32]byte

// helloWithin is how long the other end may take for it.
const helloWithin = 10 * time.Second

// ErrRefused is the error of a site that does not let this one ask.
var ErrRefused = errors.New("this site may not ask: it is known neither by its ID nor by a token")

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

// Listen returns the listener of a host, of which it has one. greet answers what another site says of itself;
// with the zero Hello it is refused.
func Listen(h host.Host, greet func(from peer.ID, said Hello) Hello) *Listener {
	l := &Listener{host: h, conns: make(chan Conn, maxWaiting), done: make(chan struct{})}
	h.SetStreamHandler(Protocol, func(s network.Stream) {
		if err := welcome(s, greet); err != nil {
			_ = s.Close()
			return
		}
		select {
		case l.conns <- Conn{s}:
		default:
			_ = s.Reset()
		}
	})
	return l
}

func welcome(s network.Stream, greet func(peer.ID, Hello) Hello) error {
	_ = s.SetDeadline(time.Now().Add(helloWithin))
	var said Hello
	if _, err := io.ReadFull(s, said[:]); err != nil {
		return err
	}
	reply := greet(s.Conn().RemotePeer(), said)
	if _, err := s.Write(reply[:]); err != nil {
		return err
	}
	if reply == (Hello{}) {
		return ErrRefused
	}
	return s.SetDeadline(time.Time{})
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
// 10 s, unless it is a site that is kept and has not been met for longer. The stream fails soon after the line has died. It says hello, and check is told what the other says: that
// comes when something is read, for nothing is waited for before.
func Dial(ctx context.Context, h *Host, to peer.AddrInfo, hello Hello, check func(said Hello) error) (net.Conn, error) {
	if !h.connected(to.ID) {
		if err := h.kept.givenUp(to.ID); err != nil {
			return nil, fmt.Errorf("site %s: %w", to.ID, err)
		}
	}
	ctx, cancel := context.WithTimeout(ctx, dialWithin)
	defer cancel()
	for {
		s, err := h.dial(ctx, to)
		if err == nil {
			_, err = s.Write(hello[:])
		}
		if err == nil {
			return &greeted{Conn: h.lines.add(h, s), check: check}, nil
		}
		if ctx.Err() != nil || !isTimeout(err) && !errors.Is(err, errDied) {
			return nil, fmt.Errorf("site %s: %w", to.ID, err)
		}
	}
}

// greeted is a stream whose other end has yet to say hello. One goroutine reads.
type greeted struct {
	net.Conn
	check func(Hello) error
	heard bool
	wrong error
}

// Read implements [net.Conn].
func (g *greeted) Read(p []byte) (int, error) {
	if !g.heard {
		g.heard = true
		var said Hello
		_, g.wrong = io.ReadFull(g.Conn, said[:])
		switch {
		case g.wrong != nil:
		case said == (Hello{}):
			g.wrong = ErrRefused
		default:
			g.wrong = g.check(said)
		}
	}
	if g.wrong != nil {
		return 0, g.wrong
	}
	return g.Conn.Read(p)
}

func isTimeout(err error) bool {
	var timed net.Error
	return errors.Is(err, context.DeadlineExceeded) || errors.As(err, &timed) && timed.Timeout()
}

// dial tries once.
func (h *Host) dial(ctx context.Context, to peer.AddrInfo) (network.Stream, error) {
	old := h.connected(to.ID)
	if err := h.connect(ctx, to); err != nil {
		return nil, err
	}
	s, err := h.NewStream(network.WithNoDial(ctx, "connected"), to.ID, Protocol)
	switch {
	case err == nil || ctx.Err() != nil:
	case old && !h.connected(to.ID):
		err = fmt.Errorf("%w: %w", errDied, err)
	case !old: // its gate closes, without a word, what was opened
		err = fmt.Errorf("it closes the connection, as it does if this site may not ask: %w", err)
	}
	return s, err
}

// errDied says that a connection which there was has ended meanwhile: there may be another.
var errDied = errors.New("the connection has ended")

func (h *Host) connected(id peer.ID) bool {
	return h.Network().Connectedness(id) == network.Connected
}

// connect has the host connected to a site.
func (h *Host) connect(ctx context.Context, to peer.AddrInfo) error {
	if !h.connected(to.ID) {
		addrs, err := resolved(ctx, to.Addrs)
		if len(addrs) == 0 {
			return err
		}
		h.Peerstore().AddAddrs(to.ID, addrs, peerstore.TempAddrTTL)
		h.swarm.Backoff().Clear(to.ID) // for 5 s and more no other would be tried after one that failed
	}
	return h.Connect(ctx, peer.AddrInfo{ID: to.ID})
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

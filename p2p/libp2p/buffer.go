package libp2p

import (
	"bufio"
	"context"
	"net"
	"sync"

	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/sec"
)

// TLS asks the kernel twice for each record of 16 KiB that it reads, and hands it
// each that it writes, which is a fifth of what moving a chunk costs. So connections
// are read in large pieces, and what one message of the layer above becomes is
// written in one.
const (
	readBuffer  = 128 << 10
	messageSize = 256 << 10 // bytes that yamux writes at a time
	writeBuffer = messageSize + messageSize/16
)

// buffered is a way to secure connections that uses the kernel less.
type buffered struct{ sec.SecureTransport }

func (b buffered) SecureInbound(ctx context.Context, c net.Conn, p peer.ID) (sec.SecureConn, error) {
	raw := newBufferedConn(c)
	secure, err := b.SecureTransport.SecureInbound(ctx, raw, p)
	return whole(secure, raw, err)
}

func (b buffered) SecureOutbound(ctx context.Context, c net.Conn, p peer.ID) (sec.SecureConn, error) {
	raw := newBufferedConn(c)
	secure, err := b.SecureTransport.SecureOutbound(ctx, raw, p)
	return whole(secure, raw, err)
}

func whole(secure sec.SecureConn, raw *bufferedConn, err error) (sec.SecureConn, error) {
	if err != nil {
		return nil, err
	}
	return &wholeWrites{secure, raw}, nil
}

// wholeWrites is a secured connection whose records go out together, as far as one
// call of Write makes them. Write is not called by two at once.
type wholeWrites struct {
	sec.SecureConn
	raw *bufferedConn
}

func (c *wholeWrites) Write(p []byte) (int, error) {
	c.raw.hold()
	n, err := c.SecureConn.Write(p)
	if ferr := c.raw.flush(); err == nil {
		err = ferr
	}
	return n, err
}

// bufferedConn is a connection below TLS. While it holds back what is written, that
// is gathered, also what TLS itself has to say in between: the order stays.
type bufferedConn struct {
	net.Conn
	r *bufio.Reader

	mu      sync.Mutex
	holding bool
	held    []byte
}

func newBufferedConn(c net.Conn) *bufferedConn {
	return &bufferedConn{Conn: c, r: bufio.NewReaderSize(c, readBuffer)}
}

func (c *bufferedConn) Read(p []byte) (int, error) { return c.r.Read(p) }

func (c *bufferedConn) Write(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.holding {
		return c.Conn.Write(p)
	}
	if len(c.held)+len(p) > writeBuffer {
		if err := c.send(); err != nil {
			return 0, err
		}
	}
	c.held = append(c.held, p...)
	return len(p), nil
}

func (c *bufferedConn) hold() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.holding = true
}

func (c *bufferedConn) flush() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.holding = false
	return c.send()
}

// send writes what is held; c.mu is held.
func (c *bufferedConn) send() error {
	if len(c.held) == 0 {
		return nil
	}
	_, err := c.Conn.Write(c.held)
	c.held = c.held[:0]
	if cap(c.held) > writeBuffer {
		c.held = nil
	}
	return err
}

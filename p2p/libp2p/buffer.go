package libp2p

import (
	"bufio"
	"context"
	"net"

	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/sec"
)

// readBuffer is how much is read from the kernel at a time. TLS alone asks it twice
// for each record of 16 KiB, which is a tenth of what moving a chunk costs.
const readBuffer = 128 << 10

// buffered is a way to secure connections that reads them in large pieces.
type buffered struct{ sec.SecureTransport }

func (b buffered) SecureInbound(ctx context.Context, c net.Conn, p peer.ID) (sec.SecureConn, error) {
	return b.SecureTransport.SecureInbound(ctx, bufferedConn{c, bufio.NewReaderSize(c, readBuffer)}, p)
}

func (b buffered) SecureOutbound(ctx context.Context, c net.Conn, p peer.ID) (sec.SecureConn, error) {
	return b.SecureTransport.SecureOutbound(ctx, bufferedConn{c, bufio.NewReaderSize(c, readBuffer)}, p)
}

type bufferedConn struct {
	net.Conn
	r *bufio.Reader
}

func (c bufferedConn) Read(p []byte) (int, error) { return c.r.Read(p) }

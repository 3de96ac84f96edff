package lend

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// maxIdle bounds the connections that a client keeps.
const maxIdle = 16

// Client asks a node for files. It is safe for concurrent use.
type Client struct {
	path string

	mu   sync.Mutex
	idle []*net.UnixConn // the one that was used last is the last
}

// NewClient returns a client of the node whose socket is at path. It connects when it
// is asked, and again after the node has been replaced.
func NewClient(path string) *Client { return &Client{path: path} }

// Close closes what is not in use.
func (c *Client) Close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, conn := range c.idle {
		conn.Close()
	}
	c.idle = nil
}

// Reach returns nil if there is a node at the socket.
func (c *Client) Reach() error {
	conn, _, err := c.conn()
	if err == nil {
		c.keep(conn)
	}
	return err
}

// Open returns a file that holds the content that q wants, which the caller closes, or
// [ErrNot]. Every other error is for a node that is away, or busy until ctx ended.
func (c *Client) Open(ctx context.Context, q Request) (*os.File, error) {
	if len(q.Parts) > MaxParts {
		return nil, ErrNot
	}
	for {
		conn, used, err := c.conn()
		if err != nil {
			return nil, fmt.Errorf("socket %s: %w", c.path, err)
		}
		f, err := ask(ctx, conn, q)
		if err == nil || errors.Is(err, ErrNot) {
			c.keep(conn)
			return f, err
		}
		conn.Close()
		if !used || ctx.Err() != nil { // one that was may have been closed meanwhile
			return nil, fmt.Errorf("socket %s: %w", c.path, err)
		}
	}
}

// conn returns a connection, which has been used before or not.
func (c *Client) conn() (conn *net.UnixConn, used bool, err error) {
	c.mu.Lock()
	if n := len(c.idle); n > 0 {
		conn, c.idle = c.idle[n-1], c.idle[:n-1]
	}
	c.mu.Unlock()
	if conn != nil {
		return conn, true, nil
	}
	name, done, err := address(c.path)
	if err != nil {
		return nil, false, err
	}
	defer done()
	conn, err = net.DialUnix("unix", nil, &net.UnixAddr{Net: "unix", Name: name})
	return conn, false, err
}

func (c *Client) keep(conn *net.UnixConn) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.idle) >= maxIdle {
		conn.Close()
		return
	}
	c.idle = append(c.idle, conn)
}

func ask(ctx context.Context, conn *net.UnixConn, q Request) (*os.File, error) {
	deadline := time.Now().Add(transferFor)
	if d, ok := ctx.Deadline(); ok && d.Before(deadline) {
		deadline = d
	}
	_ = conn.SetDeadline(deadline)
	defer context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })()
	if _, err := conn.Write(q.encode()); err != nil {
		return nil, err
	}
	answer, beside := [1]byte{}, make([]byte, unix.CmsgSpace(4))
	n, m, _, _, err := conn.ReadMsgUnix(answer[:], beside)
	if err != nil {
		return nil, err
	}
	f, err := received(beside[:m])
	switch {
	case n == 1 && answer[0] == no && f == nil:
		return nil, ErrNot
	case n == 1 && answer[0] == yes && f != nil:
		err = checkFile(f, q.Size)
	case err == nil:
		err = errors.New("the answer makes no sense")
	}
	if err != nil && f != nil {
		f.Close()
	}
	if err != nil {
		return nil, err
	}
	return f, nil
}

// received returns the file that came beside an answer, or nil.
func received(beside []byte) (*os.File, error) {
	all, err := unix.ParseSocketControlMessage(beside)
	if err != nil || len(all) == 0 {
		return nil, err
	}
	fds, err := unix.ParseUnixRights(&all[0])
	if err != nil || len(fds) == 0 {
		return nil, err
	}
	for _, more := range fds[1:] { // there may be room for two
		_ = unix.Close(more)
	}
	return os.NewFile(uintptr(fds[0]), "lent"), nil
}

func checkFile(f *os.File, size int64) error {
	info, err := f.Stat()
	if err == nil && (!info.Mode().IsRegular() || info.Size() != size) {
		err = fmt.Errorf("a file of %d bytes came, not of %d", info.Size(), size)
	}
	return err
}

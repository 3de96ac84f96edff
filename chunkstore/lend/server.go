package lend

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Lender opens the file of a content: all of it, as its digest has it, and nothing else.
// The caller closes the file. ok is false if there is none; the answer must not take
// long, but the lender may see to it that there is one the next time.
type Lender func(q Request) (f *os.File, ok bool)

// Server answers requests at a socket.
type Server struct {
	lender   Lender
	listener *net.UnixListener
	path     string
	done     func()
	report   func(error)

	once sync.Once // for Close
	err  error     // its
}

// Listen makes the socket, in place of one that an earlier process has left. The caller
// holds the lock of the directory. report is told of requests that were malformed.
func Listen(path string, lender Lender, report func(error)) (*Server, error) {
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	name, done, err := address(path)
	if err != nil {
		return nil, err
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Net: "unix", Name: name})
	if err != nil {
		done()
		return nil, err
	}
	l.SetUnlinkOnClose(false) // by a name that may not hold any more
	s := &Server{lender: lender, listener: l, path: path, done: done, report: report}
	if err := os.Chmod(path, 0o600); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return s, nil
}

// Close takes the socket away, and ends Serve.
func (s *Server) Close() error {
	s.once.Do(func() {
		err := s.listener.Close()
		s.done()
		s.err = errors.Join(err, os.Remove(s.path))
	})
	return s.err
}

// Serve answers until ctx ends or the server is closed.
func (s *Server) Serve(ctx context.Context) error {
	var all sync.WaitGroup
	defer all.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(ctx, func() { _ = s.Close() })()
	places := make(chan struct{}, maxConns)
	for {
		conn, err := s.listener.AcceptUnix()
		if errors.Is(err, net.ErrClosed) {
			return s.Close()
		}
		if err != nil {
			return fmt.Errorf("socket %s: %w", s.path, err)
		}
		select {
		case places <- struct{}{}:
		default:
			conn.Close()
			continue
		}
		all.Go(func() {
			defer func() { <-places }()
			defer conn.Close()
			defer context.AfterFunc(ctx, func() { conn.Close() })()
			if err := s.answer(conn); err != nil && ctx.Err() == nil {
				s.report(fmt.Errorf("socket %s: %w", s.path, err))
			}
		})
	}
}

// answer answers the requests of a connection until it ends or falls silent.
func (s *Server) answer(conn *net.UnixConn) error {
	if err := checkPeer(conn); err != nil {
		return err
	}
	in := bufio.NewReader(conn)
	for {
		_ = conn.SetDeadline(time.Now().Add(idleFor))
		if _, err := in.Peek(1); err != nil {
			return nil // it has had enough
		}
		_ = conn.SetDeadline(time.Now().Add(transferFor))
		q, err := readRequest(in)
		if err != nil {
			return err
		}
		if err := s.send(conn, q); err != nil {
			return err
		}
	}
}

func (s *Server) send(conn *net.UnixConn, q Request) error {
	f, ok := s.lender(q)
	if !ok {
		_, err := conn.Write([]byte{no})
		return err
	}
	defer f.Close()
	_, _, err := conn.WriteMsgUnix([]byte{yes}, unix.UnixRights(int(f.Fd())), nil)
	return err
}

// checkPeer refuses other users: the socket's mode does too, but for the moment between
// its making and that.
func checkPeer(conn *net.UnixConn) error {
	raw, err := conn.SyscallConn()
	if err != nil {
		return err
	}
	var peer *unix.Ucred
	cerr := raw.Control(func(fd uintptr) { peer, err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) })
	if err := errors.Join(cerr, err); err != nil {
		return err
	}
	if peer.Uid != 0 && int(peer.Uid) != os.Geteuid() {
		return fmt.Errorf("user %d: %w", peer.Uid, os.ErrPermission)
	}
	return nil
}

package node

import (
	"context"
	"errors"
	"net"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	largeWrite = 16 << 10 // bytes: more than one segment, whatever the MTU
	largeFor   = 3 * time.Second
	largePoll  = 20 * time.Millisecond
)

// ReachTCP connects to an address and sends segments of full size to it. refused is why
// there is no connection, large that such segments do not arrive though small ones do, as
// when a tunnel on the way has a smaller MTU and nobody says so. Whoever listens gets
// bytes that make no sense, and closes.
func ReachTCP(ctx context.Context, address string) (refused, large string) {
	conn, err := new(net.Dialer).DialContext(ctx, "tcp", address)
	if err != nil {
		return err.Error(), ""
	}
	defer conn.Close()
	raw, err := conn.(*net.TCPConn).SyscallConn()
	if err != nil {
		return err.Error(), ""
	}
	_ = conn.SetDeadline(time.Now().Add(largeFor))
	if _, err := conn.Write(make([]byte, largeWrite)); err != nil {
		return "", "" // it has read something, and closed
	}
	ctx, cancel := context.WithTimeout(ctx, largeFor)
	defer cancel()
	for {
		pending, err := unacknowledged(raw)
		switch {
		case err != nil || pending == 0:
			return "", ""
		case pending < largeWrite: // a part of it got there
			return "", ""
		}
		select {
		case <-ctx.Done():
			return "", "segments of full size are not acknowledged"
		case <-time.After(largePoll):
		}
	}
}

// unacknowledged returns how many bytes a connection has sent that the other end has not
// acknowledged. The error is that there is none any more.
func unacknowledged(raw syscall.RawConn) (n int, err error) {
	var state uint8
	cerr := raw.Control(func(fd uintptr) {
		if n, err = unix.IoctlGetInt(int(fd), unix.SIOCOUTQ); err != nil {
			return
		}
		var info *unix.TCPInfo
		if info, err = unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO); err == nil {
			state = info.State
		}
	})
	const closed = 7 // TCP_CLOSE, as after a reset
	if err == nil && state == closed {
		err = net.ErrClosed
	}
	return n, errors.Join(cerr, err)
}

package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// wire is a long cable between two namespaces: each end is a network device, and what
// goes in at one comes out of the other a fixed time later, however much there is of it.
// What a connection costs, its handshake and its slow start, is the kernel's own doing.
type wire struct {
	near, far string // names of its ends
	ends      [2]*os.File
	delay     time.Duration // each way
	payload   atomic.Int64  // bytes of TCP that came out of the far end
	trace     *trace        // of requests that came out of the near end; nil for none
	lost      atomic.Int64  // packets that a device refused
}

const (
	// A packet is up to 64 KiB, for the kernel hands over what it has not cut yet, with
	// a header that says how it is to be cut (virtio, "Network Device", 5.1.6).
	offloadHeader = 10
	maxPacket     = offloadHeader + 1<<16
	// inFlight is how many packets are under way each way. More wait in the device.
	inFlight = 4096
)

// newWire makes a cable whose ends are in the caller's namespace, until they are moved.
func newWire(near, far string, delay time.Duration, t *trace) (w *wire, err error) {
	w = &wire{near: near, far: far, delay: delay, trace: t}
	for i, name := range []string{near, far} {
		if w.ends[i], err = openEnd(name); err != nil {
			return nil, errors.Join(fmt.Errorf("device %s: %w", name, err), w.close())
		}
	}
	go w.carry(w.ends[0], w.ends[1], func(p []byte) { w.payload.Add(int64(len(p))) })
	go w.carry(w.ends[1], w.ends[0], t.request)
	return w, nil
}

// openEnd makes a device whose packets a program carries (kernel, networking/tuntap.rst).
func openEnd(name string) (*os.File, error) {
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	request, err := unix.NewIfreq(name)
	if err == nil {
		request.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI | unix.IFF_VNET_HDR)
		err = unix.IoctlIfreq(fd, unix.TUNSETIFF, request)
	}
	if err == nil {
		err = unix.IoctlSetInt(fd, unix.TUNSETOFFLOAD, unix.TUN_F_CSUM|unix.TUN_F_TSO4)
	}
	if err != nil {
		return nil, errors.Join(err, unix.Close(fd))
	}
	return os.NewFile(uintptr(fd), name), nil
}

func (w *wire) close() (err error) {
	for _, end := range w.ends {
		if end != nil {
			err = errors.Join(err, end.Close())
		}
	}
	return err
}

type packet struct {
	bytes []byte
	due   time.Time
}

// carry takes packets from one end to the other, until an end is closed. arrived is told
// what of TCP they carry.
func (w *wire) carry(from, to *os.File, arrived func(payload []byte)) {
	under := make(chan packet, inFlight)
	go func() {
		for p := range under {
			w.deliver(to, p, arrived)
		}
	}()
	defer close(under)
	buf := make([]byte, maxPacket)
	for {
		n, err := from.Read(buf)
		if errors.Is(err, fs.ErrClosed) {
			return
		}
		if err == nil {
			under <- packet{append([]byte(nil), buf[:n]...), time.Now().Add(w.delay)}
		}
	}
}

// deliver hands over a packet when it is due: to the tenth of a millisecond, which the
// timers of the language are not.
func (w *wire) deliver(to *os.File, p packet, arrived func(payload []byte)) {
	if wait := time.Until(p.due); wait > 0 {
		sleep := unix.NsecToTimespec(int64(wait))
		_ = unix.Nanosleep(&sleep, nil)
	}
	if _, err := to.Write(p.bytes); err != nil {
		w.lost.Add(1)
		return
	}
	arrived(tcpPayload(p.bytes[offloadHeader:]))
}

// tcpPayload returns what of a packet of IPv4 is a program's (RFC 791, RFC 9293): nothing
// if it is not TCP.
func tcpPayload(p []byte) []byte {
	if len(p) < 40 || p[0]>>4 != 4 || p[9] != unix.IPPROTO_TCP {
		return nil
	}
	ip := int(p[0]&15) * 4
	if len(p) < ip+20 {
		return nil
	}
	end := min(len(p), int(binary.BigEndian.Uint16(p[2:])))
	return p[min(end, ip+int(p[ip+12]>>4)*4):end]
}

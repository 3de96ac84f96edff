package netns

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

// Wire is a long cable between two namespaces: each end is a network device, and what
// goes in at one comes out of the other a fixed time later, however much there is of it.
// What a connection costs, its handshake and its slow start, is the kernel's own doing.
type Wire struct {
	Near, Far     string       // names of its ends
	ToNear, ToFar Count        // what came out of them
	Lost          atomic.Int64 // packets that a device refused
	Cut           atomic.Bool  // nothing comes out of the ends; what goes in is lost

	ends  [2]*os.File
	delay time.Duration // each way
}

// Count counts what came out of an end.
type Count struct {
	Payload atomic.Int64 // bytes that are a program's, of TCP and UDP
	All     atomic.Int64 // with the headers of IP, TCP and UDP: one of each for a segment that is handed over in one piece
}

const (
	// A packet is up to 64 KiB, for the kernel hands over what it has not cut yet, with
	// a header that says how it is to be cut (virtio, "Network Device", 5.1.6).
	offloadHeader = 10
	maxPacket     = offloadHeader + 1<<16
	// inFlight is how many packets are under way each way. More wait in the device.
	inFlight = 4096
)

// NewWire makes a cable whose ends are in the caller's namespace, until they are moved.
// seen is told of the payload of each packet that comes out of the near end; nil is nobody.
func NewWire(near, far string, delay time.Duration, seen func(payload []byte)) (w *Wire, err error) {
	w = &Wire{Near: near, Far: far, delay: delay}
	for i, name := range []string{near, far} {
		if w.ends[i], err = openEnd(name); err != nil {
			return nil, errors.Join(fmt.Errorf("device %s: %w", name, err), w.Close())
		}
	}
	go w.carry(w.ends[0], w.ends[1], func(p []byte) { w.ToFar.add(p) })
	go w.carry(w.ends[1], w.ends[0], func(p []byte) {
		if payload := w.ToNear.add(p); seen != nil {
			seen(payload)
		}
	})
	return w, nil
}

func (c *Count) add(packet []byte) (payload []byte) {
	payload = payloadOf(packet)
	c.All.Add(int64(len(packet)))
	c.Payload.Add(int64(len(payload)))
	return payload
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

// Close takes the cable away.
func (w *Wire) Close() (err error) {
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
// of each.
func (w *Wire) carry(from, to *os.File, arrived func(packet []byte)) {
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
func (w *Wire) deliver(to *os.File, p packet, arrived func(packet []byte)) {
	if wait := time.Until(p.due); wait > 0 {
		sleep := unix.NsecToTimespec(int64(wait))
		_ = unix.Nanosleep(&sleep, nil)
	}
	if w.Cut.Load() {
		return
	}
	if _, err := to.Write(p.bytes); err != nil {
		w.Lost.Add(1)
		return
	}
	arrived(p.bytes[offloadHeader:])
}

// payloadOf returns what of a packet of IPv4 is a program's (RFC 791, RFC 9293, RFC 768): nothing
// if it is neither TCP nor UDP.
func payloadOf(p []byte) []byte {
	if len(p) < 20 || p[0]>>4 != 4 {
		return nil
	}
	header := int(p[0]&15) * 4
	end := min(len(p), int(binary.BigEndian.Uint16(p[2:])))
	switch p[9] {
	case unix.IPPROTO_UDP:
		header += 8
	case unix.IPPROTO_TCP:
		if len(p) < header+20 {
			return nil
		}
		header += int(p[header+12]>>4) * 4
	default:
		return nil
	}
	return p[min(end, header):end]
}

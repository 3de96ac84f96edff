package dht

import (
	"sync"

	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
)

// maxStreams bounds the streams of one site that are open at once; it needs one.
// kad-dht makes room for a message when it has read its size, which may be 4 MiB.
const maxStreams = 4

// door is the host as kad-dht sees it: it lets in few streams of one site.
type door struct {
	host.Host

	mu   sync.Mutex
	open map[peer.ID]int
}

func newDoor(h host.Host) *door { return &door{Host: h, open: make(map[peer.ID]int)} }

// SetStreamHandler implements [host.Host].
func (d *door) SetStreamHandler(id protocol.ID, handle network.StreamHandler) {
	d.Host.SetStreamHandler(id, func(s network.Stream) {
		from := s.Conn().RemotePeer()
		if !d.enter(from) {
			_ = s.Reset()
			return
		}
		defer d.leave(from)
		handle(s)
	})
}

func (d *door) enter(id peer.ID) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.open[id] >= maxStreams {
		return false
	}
	d.open[id]++
	return true
}

func (d *door) leave(id peer.ID) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.open[id]--; d.open[id] == 0 {
		delete(d.open, id)
	}
}

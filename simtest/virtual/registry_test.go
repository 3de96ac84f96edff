package virtual

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"sync"

	"github.com/granary-oci/granary/chunkstore/chunk"
	"github.com/granary-oci/granary/p2p"
	"github.com/granary-oci/granary/p2p/p2ptest"
	"github.com/granary-oci/granary/tracker"
)

// registryID is the registry's in the network.
const registryID tracker.ID = "registry"

// registry sends the blobs of an image: each stream that is opened to it is one
// request of a blob's number, an offset and a length, and its answer.
type registry struct {
	img *image

	mu       sync.Mutex
	requests int
}

type registryRequest struct{ Blob, Offset, Length int64 }

func newRegistry(net *p2ptest.Network, img *image) *registry {
	r := &registry{img: img}
	net.Node(registryID).Handle(func(_ tracker.ID, s p2p.Stream) {
		defer s.Close()
		_ = r.answer(s)
		_, _ = s.Read(make([]byte, 1)) // whoever asked ends the stream
	})
	return r
}

func (r *registry) answer(s p2p.Stream) error {
	var q registryRequest
	if err := binary.Read(s, binary.BigEndian, &q); err != nil {
		return err
	}
	r.mu.Lock()
	r.requests++
	r.mu.Unlock()
	b := r.img.blobs[q.Blob]
	for off := q.Offset; off < q.Offset+q.Length; off += chunk.Size {
		if _, err := s.Write(r.img.bytes(b.At(b.Find(off)))); err != nil {
			return err
		}
	}
	return nil
}

func (r *registry) count() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.requests
}

// bodies is how many answers of a registry a node reads at a time, as proxy/upstream.
const bodies = 14

var errUnreachable = errors.New("registry cannot be reached")

// upstream is the registry as a node reads it.
type upstream struct {
	img    *image
	node   *p2ptest.Node
	places chan struct{}
}

func newUpstream(img *image, node *p2ptest.Node) *upstream {
	return &upstream{img, node, make(chan struct{}, bodies)}
}

// Get implements [chunk.Source].
func (u *upstream) Get(ctx context.Context, ref chunk.Ref) (p []byte, err error) {
	err = u.GetRun(ctx, []chunk.Ref{ref}, func(_ chunk.Ref, q []byte) error {
		p = q
		return nil
	})
	return p, err
}

// GetRun implements [chunk.Runner].
func (u *upstream) GetRun(ctx context.Context, refs []chunk.Ref, yield func(chunk.Ref, []byte) error) error {
	select {
	case u.places <- struct{}{}:
		defer func() { <-u.places }()
	case <-ctx.Done():
		return ctx.Err()
	}
	s, err := u.node.Open(ctx, tracker.Peer{ID: registryID})
	if err != nil {
		return errors.Join(errUnreachable, err)
	}
	defer s.Close()
	defer context.AfterFunc(ctx, func() { s.Close() })()
	q := registryRequest{int64(u.img.byID[refs[0].Blob].index), refs[0].Offset, 0}
	for _, ref := range refs {
		q.Length += ref.Size
	}
	if err := binary.Write(s, binary.BigEndian, q); err != nil {
		return errors.Join(errUnreachable, err)
	}
	for _, ref := range refs {
		got := make([]byte, ref.Size)
		if _, err := io.ReadFull(s, got); err != nil {
			return errors.Join(errUnreachable, err)
		}
		if err := yield(ref, got); err != nil {
			return err
		}
	}
	return nil
}

// interned returns chunks as the image has them in place of their copies, which are
// so garbage at once: a hundred nodes would not fit into memory.
type interned struct {
	src chunk.Source
	img *image
}

func (s interned) Get(ctx context.Context, ref chunk.Ref) ([]byte, error) {
	p, err := s.src.Get(ctx, ref)
	if err != nil {
		return nil, err
	}
	return s.img.intern(ref, p)
}

func (s interned) GetRun(ctx context.Context, refs []chunk.Ref, yield func(chunk.Ref, []byte) error) error {
	return chunk.GetRun(ctx, s.src, refs, func(ref chunk.Ref, p []byte) error {
		p, err := s.img.intern(ref, p)
		if err != nil {
			return err
		}
		return yield(ref, p)
	})
}

func (img *image) intern(ref chunk.Ref, p []byte) ([]byte, error) {
	if ours := img.bytes(ref); bytes.Equal(ours, p) {
		return ours, nil
	}
	return nil, fmt.Errorf("%s is not what the registry has", ref)
}

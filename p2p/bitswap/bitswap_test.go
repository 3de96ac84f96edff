package bitswap_test

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"
	"github.com/opencontainers/go-digest"

	"github.com/granary-oci/granary/chunkstore/chunk"
	"github.com/granary-oci/granary/p2p/bitswap"
	"github.com/granary-oci/granary/p2p/libp2p"
	"github.com/granary-oci/granary/p2p/site"
)

// chunks are what a node has.
type chunks map[digest.Digest][]byte

func (c chunks) Block(_ context.Context, d digest.Digest) ([]byte, error) {
	if p := c[d]; p != nil {
		return p, nil
	}
	return nil, fmt.Errorf("chunk %s: %w", d, chunk.ErrNotFound)
}

func (c chunks) BlockSize(ctx context.Context, d digest.Digest) (int64, error) {
	p, err := c.Block(ctx, d)
	return int64(len(p)), err
}

func some(n int) (all chunks, names []digest.Digest) {
	all = make(chunks)
	for i := range n {
		p := binary.BigEndian.AppendUint64(make([]byte, 1<<10), uint64(i))
		d := digest.FromBytes(p)
		all[d], names = p, append(names, d)
	}
	return all, names
}

// newNode starts a node, and returns how many bytes it has given, too.
func newNode(t *testing.T, has chunks, peers ...string) (*bitswap.Node, *atomic.Int64) {
	t.Helper()
	known, err := bitswap.ParsePeers(peers)
	if err != nil {
		t.Fatal(err)
	}
	i, err := libp2p.NewIdentity()
	if err != nil {
		t.Fatal(err)
	}
	h, err := site.NewHost(site.Config{
		Identity: i, Listen: []ma.Multiaddr{ma.StringCast("/ip4/127.0.0.1/tcp/0")}, Strangers: true,
		Allow: func(id peer.ID) bool {
			return slices.ContainsFunc(known, func(p peer.AddrInfo) bool { return p.ID == id })
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	out := new(atomic.Int64)
	n := bitswap.New(bitswap.Config{Host: h, Peers: known, Blocks: has, Exchanged: func(_, given int64) { out.Add(given) }})
	t.Cleanup(func() {
		if err := n.Close(); err != nil {
			t.Error(err)
		}
	})
	return n, out
}

// idOf returns a node's ID, as it ends an address.
func idOf(n *bitswap.Node) string {
	_, id, _ := strings.Cut(n.Addrs()[0], "/p2p/")
	return "/p2p/" + id
}

func fetch(t *testing.T, n *bitswap.Node, want []digest.Digest) map[digest.Digest]bool {
	t.Helper()
	got := make(map[digest.Digest]bool)
	err := n.Fetch(t.Context(), want, func(d digest.Digest, p []byte) error {
		if digest.FromBytes(p) != d {
			t.Errorf("chunk %s: other bytes", d)
		}
		got[d] = true
		return nil
	})
	if err != nil {
		t.Error(err)
	}
	return got
}

// TestMoreChunksThanABatchHas come from several peers, each of which has some.
func TestMoreChunksThanABatchHas(t *testing.T) {
	t.Parallel()
	all, names := some(2500)
	halves := [2]chunks{make(chunks), make(chunks)}
	for i, d := range names {
		halves[i%2][d] = all[d]
	}
	one, _ := newNode(t, halves[0])
	other, _ := newNode(t, halves[1])
	n, _ := newNode(t, nil, one.Addrs()[0], other.Addrs()[0])
	if got := fetch(t, n, names); len(got) != len(names) {
		t.Errorf("%d of %d chunks came", len(got), len(names))
	}
}

func TestWhatDoesNotComeEndsAFetch(t *testing.T) {
	t.Parallel()
	has, names := some(3)
	giver, given := newNode(t, has)
	gone, _ := newNode(t, has)
	n, _ := newNode(t, nil, giver.Addrs()[0], "/ip4/127.0.0.1/tcp/1"+idOf(gone)) // where nobody listens
	if got := fetch(t, n, append(names, digest.FromString("nowhere"))); len(got) != 3 {
		t.Errorf("%d of 3 chunks came", len(got))
	}
	if given.Load() != 3*(1<<10+8) {
		t.Errorf("%d bytes were counted", given.Load())
	}
	stop := errors.New("that is enough")
	if err := n.Fetch(t.Context(), names, func(digest.Digest, []byte) error { return stop }); !errors.Is(err, stop) {
		t.Errorf("who takes them has an error: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := n.Fetch(ctx, names, func(digest.Digest, []byte) error { return nil }); !errors.Is(err, context.Canceled) {
		t.Errorf("after who asks has left: %v", err)
	}
	nobody, _ := newNode(t, nil)
	if got := fetch(t, nobody, names); len(got) != 0 {
		t.Errorf("%d chunks came from nobody", len(got))
	}
}

func TestPeersHaveAnAddressAndAnID(t *testing.T) {
	t.Parallel()
	n, _ := newNode(t, nil)
	if peers, err := bitswap.ParsePeers(n.Addrs()); err != nil || len(peers) != 1 || len(peers[0].Addrs) != 1 {
		t.Errorf("%v: %v, %v", n.Addrs(), peers, err)
	}
	for _, s := range []string{"", "192.0.2.1:4001", "/ip4/192.0.2.1/tcp/4001", "/ip4/192.0.2.1/tcp/4001/p2p/me", idOf(n)} {
		if peers, err := bitswap.ParsePeers([]string{s}); err == nil {
			t.Errorf("%q: %v", s, peers)
		}
	}
}

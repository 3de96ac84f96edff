package peers

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/ipfs/boxo/bitswap"
	"github.com/ipfs/boxo/bitswap/network/bsnet"
	"github.com/ipfs/boxo/blockstore"
	block "github.com/ipfs/go-block-format"
	"github.com/ipfs/go-cid"
	"github.com/ipfs/go-datastore"
	"github.com/ipfs/go-datastore/sync"
	"github.com/libp2p/go-libp2p"
	libp2phost "github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/opencontainers/go-digest"

	"github.com/granary-oci/granary/chunkstore/blocks"
	"github.com/granary-oci/granary/cmd/granary/node"
)

// stock is a node as anybody makes one with boxo and libp2p.
type stock struct {
	*testing.T
	host  libp2phost.Host
	store blockstore.Blockstore
	*bitswap.Bitswap
}

func newStock(t *testing.T) *stock {
	t.Helper()
	h, err := libp2p.New(libp2p.ListenAddrStrings("/ip4/127.0.0.1/tcp/0"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = h.Close() })
	store := blockstore.NewBlockstore(sync.MutexWrap(datastore.NewMapDatastore()))
	s := &stock{t, h, store, bitswap.New(t.Context(), bsnet.NewFromIpfsHost(h), nil, store)}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

// address is where it is reached.
func (s *stock) address() string {
	return fmt.Sprintf("%s/p2p/%s", s.host.Addrs()[0], s.host.ID())
}

// put stores all chunks of an image's blobs.
func (s *stock) put(img *image) {
	s.Helper()
	for _, p := range img.blobs {
		for off := 0; off < len(p); off += 1 << 20 {
			c := p[off:min(off+1<<20, len(p))]
			id, err := blocks.CID(digest.FromBytes(c))
			if err != nil {
				s.Fatal(err)
			}
			b, err := block.NewBlockWithCid(c, id)
			if err == nil {
				err = s.store.Put(s.Context(), b)
			}
			if err != nil {
				s.Fatal(err)
			}
		}
	}
}

// connect connects to a node.
func (s *stock) connect(m *member) {
	s.Helper()
	at, err := peer.AddrInfoFromString(m.BitswapAddrs()[0])
	if err == nil {
		err = s.host.Connect(s.Context(), *at)
	}
	if err != nil {
		s.Fatal(err)
	}
}

// get returns those of the chunks that come within a time.
func (s *stock) get(want []digest.Digest, within time.Duration) map[digest.Digest][]byte {
	s.Helper()
	ctx, cancel := context.WithTimeout(s.Context(), within)
	defer cancel()
	var keys []cid.Cid
	for _, d := range want {
		c, err := blocks.CID(d)
		if err != nil {
			s.Fatal(err)
		}
		keys = append(keys, c)
	}
	got := make(map[digest.Digest][]byte)
	came, err := s.NewSession(ctx).GetBlocks(ctx, keys)
	if err != nil {
		s.Fatal(err)
	}
	for b := range came {
		got[digest.FromBytes(b.RawData())] = b.RawData()
	}
	return got
}

func exchanges(c *node.Config) { c.BitswapListen = []string{"/ip4/127.0.0.1/tcp/0"} }

// chunksOf returns what the chunks of an image's blobs are, as a node tells who may read it.
func (m *member) chunksOf(t *testing.T, img *image, authorization string) (all []digest.Digest) {
	t.Helper()
	for d, p := range img.blobs {
		if len(p) <= 1<<20 {
			all = append(all, d)
			continue
		}
		all = append(all, m.mapOf(t, "/v2/"+img.repository+"/_granary/map/"+string(d), authorization).Chunks...)
	}
	return all
}

// TestAStockNodeGetsWhatIsPublic by bitswap, and nothing else.
func TestAStockNodeGetsWhatIsPublic(t *testing.T) {
	t.Parallel()
	r := newRegistry(t)
	open, secret := r.push("open", "v1", random(5<<20+7, 111), random(100, 112)), r.push("secret", "v1", random(3<<20, 113))
	r.restrict("basic", map[string]string{username + ":" + password: "secret"}, "secret")
	m := alone(t, r, exchanges)
	for img, authorization := range map[*image]string{open: "", secret: basic(password)} {
		if err := m.pull(img, authorization); err != nil {
			t.Fatal(err)
		}
	}
	s := newStock(t)
	s.connect(m)
	want := m.chunksOf(t, open, "")
	got := s.get(want, time.Minute)
	for _, d := range want {
		if digest.FromBytes(got[d]) != d {
			t.Errorf("chunk %s did not come", d)
		}
	}
	if len(want) < 7 {
		t.Errorf("the image has only %d chunks", len(want))
	}
	if got := s.get(m.chunksOf(t, secret, basic(password)), 2*time.Second); len(got) > 0 {
		t.Errorf("%d chunks of a private image came", len(got))
	}
	if out := metric(t, m, `granary_bitswap_bytes_total{direction="out"}`); out < 5<<20 || out >= 5<<20+1<<20 {
		t.Errorf("%v bytes were given", out)
	}
}

// metric returns the value of one line of a node's metrics.
func metric(t *testing.T, m *member, line string) (v float64) {
	t.Helper()
	_, after, _ := strings.Cut("\n"+m.metrics(), "\n"+line+" ")
	if _, err := fmt.Sscan(after, &v); err != nil {
		t.Fatalf("%s: %v", line, err)
	}
	return v
}

// TestAPreheatTakesChunksFromAStockNode where a member knows what they are, and none is fetched from
// there or from the registry.
func TestAPreheatTakesChunksFromAStockNode(t *testing.T) {
	t.Parallel()
	r := newRegistry(t)
	img := r.push("app", "v1", random(12<<20+3, 121), random(1000, 122))
	s := newStock(t)
	s.put(img)
	c := newCluster(t, r, 0)
	hub := c.start(zone("hub"))
	edge := c.join(zone("edge"), func(c *node.Config) { c.BitswapPeer = []string{s.address()} })
	if err := hub.pull(img, ""); err != nil {
		t.Fatal(err)
	}
	time.Sleep(time.Second) // it is announced who has the blob
	sent := r.sent.Load()
	if p := edge.preheats(t, node.Preheat{Refs: []string{host + "/app:v1"}}); p.State != "done" {
		t.Fatalf("preheat: %+v", p)
	}
	if n := metric(t, edge, `granary_bitswap_bytes_total{direction="in"}`); n < 12<<20 {
		t.Errorf("%v bytes came from the stock node", n)
	}
	if n := r.sent.Load() - sent; n > 1<<20 {
		t.Errorf("the registry sent %d bytes", n)
	}
	if n, _ := edge.got(); n > 1<<20 {
		t.Errorf("members sent %d bytes", n)
	}
	hub.cancel()
	r.kill()
	if err := edge.pull(img, ""); err != nil {
		t.Errorf("afterwards: %v", err)
	}
}

// TestAPreheatDoesNotNeedItsPeers: what they do not have, or cannot give, comes from the registry.
func TestAPreheatDoesNotNeedItsPeers(t *testing.T) {
	t.Parallel()
	r := newRegistry(t)
	s, gone := newStock(t), newStock(t)
	img := r.push("app", "v1", random(3<<20, 131))
	m := alone(t, r, func(c *node.Config) { c.BitswapPeer = []string{s.address(), gone.address()} })
	_ = gone.host.Close()
	if p := m.preheats(t, node.Preheat{Refs: []string{host + "/app:v1"}}); p.State != "done" {
		t.Errorf("preheat: %+v", p)
	}
	r.kill()
	if err := m.pull(img, ""); err != nil {
		t.Error(err)
	}
}

// TestPeersAreAskedForWhatIsPublic alone: of a private image they are not told the digests.
func TestPeersAreAskedForWhatIsPublic(t *testing.T) {
	t.Parallel()
	r := newRegistry(t)
	s := newStock(t)
	open, secret := r.push("open", "v1", random(900<<10, 141), random(800<<10, 142)), r.push("secret", "v1", random(900<<10, 143))
	r.restrict("basic", map[string]string{username + ":" + password: "secret"}, "secret")
	s.put(open)
	s.put(secret)
	m := alone(t, r, func(c *node.Config) { c.BitswapPeer = []string{s.address()} })
	sent := r.sent.Load()
	for _, c := range []struct {
		img  *image
		came float64 // bytes at the least
	}{{secret, 0}, {open, 1700 << 10}} {
		q := node.Preheat{Refs: []string{host + "/" + c.img.repository + ":v1"}, Authorization: map[string]string{host: basic(password)}}
		if p := m.preheats(t, q); p.State != "done" {
			t.Fatalf("preheat of %s: %+v", c.img.repository, p)
		}
		if n := metric(t, m, `granary_bitswap_bytes_total{direction="in"}`); n < c.came || c.came == 0 && n > 0 {
			t.Errorf("%s: %v bytes came from the peer", c.img.repository, n)
		}
	}
	if n := r.sent.Load() - sent; n > 1<<20 {
		t.Errorf("the registry sent %d bytes", n)
	}
}

// TestAWrongMapFailsNoPreheat, though a peer has the chunks that it names: the blob does not match, and
// comes from the registry.
func TestAWrongMapFailsNoPreheat(t *testing.T) {
	t.Parallel()
	s := newStock(t)
	models, m, h := withHostileMaps(t, lies["nothing has changed"], func(c *node.Config) { c.BitswapPeer = []string{s.address()} })
	s.put(&image{blobs: map[digest.Digest][]byte{"old": oldModel()}})
	eventually(t, "the map is used", func() bool {
		model, path := models.next()
		if p := m.preheats(t, node.Preheat{Refs: []string{fmt.Sprintf("%s/model:v%d", host, models.n)}}); p.State != "done" {
			t.Errorf("preheat: %+v", p)
		}
		if err := m.gives(model, path); err != nil {
			t.Error(err)
		}
		return metric(t, m, `granary_bitswap_bytes_total{direction="in"}`) > 0
	})
	eventually(t, "the giver of the map is in quarantine", func() bool { return m.known(h.ID()).State == "quarantined" })
}

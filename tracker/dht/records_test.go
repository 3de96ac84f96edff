package dht

import (
	"context"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"
	"github.com/opencontainers/go-digest"
)

var (
	somewhere = ma.StringCast("/ip4/192.0.2.1/tcp/1")
	elsewhere = ma.StringCast("/ip4/192.0.2.2/udp/2/quic-v1")
)

// book is records with a clock.
type book struct {
	*records
	clock time.Time
}

func newBook(max int) *book {
	b := &book{clock: time.Unix(1e9, 0)}
	b.records = newRecords(max, time.Hour, func() time.Time { return b.clock },
		func(digest.Digest) (peer.AddrInfo, bool) { return peer.AddrInfo{}, false })
	return b
}

func (b *book) say(d digest.Digest, id peer.ID, addrs ...ma.Multiaddr) {
	_ = b.AddProvider(context.Background(), mustKey(d), peer.AddrInfo{ID: id, Addrs: addrs})
}

func (b *book) of(d digest.Digest) (ids []peer.ID) {
	infos, _ := b.GetProviders(context.Background(), mustKey(d))
	for _, i := range infos {
		ids = append(ids, i.ID)
	}
	slices.Sort(ids)
	return ids
}

func (b *book) has(t *testing.T, d digest.Digest, want ...peer.ID) {
	t.Helper()
	if got := b.of(d); !slices.Equal(got, want) {
		t.Errorf("of %s the providers are %q, want %q", d, got, want)
	}
	count := 0
	for _, s := range b.sites {
		count += s.said.Len()
	}
	for _, by := range b.blobs {
		count -= len(by)
	}
	if count != 0 {
		t.Errorf("there are %d records more by site than by blob", count)
	}
}

func TestARecordEnds(t *testing.T) {
	b, d := newBook(10), blobs(2)
	b.say(d[0], "a", somewhere)
	b.clock = b.clock.Add(40 * time.Minute)
	b.say(d[0], "b", somewhere)
	b.say(d[1], "a", somewhere)
	b.has(t, d[0], "a", "b")
	b.clock = b.clock.Add(40 * time.Minute)
	b.has(t, d[0], "b")
	b.say(d[1], "c", somewhere)
	if b.count != 3 {
		t.Errorf("%d records are left", b.count)
	}
	b.clock = b.clock.Add(2 * time.Hour)
	b.say(d[0], "a", somewhere)
	if len(b.sites) != 1 || len(b.blobs) != 1 || b.count != 1 {
		t.Errorf("%d sites, %d blobs, %d records are left", len(b.sites), len(b.blobs), b.count)
	}
}

func TestARecordIsTakenBackByWhoGaveIt(t *testing.T) {
	b, d := newBook(10), blobs(2)
	for _, id := range []peer.ID{"a", "b"} {
		b.say(d[0], id, somewhere)
		b.say(d[1], id, somewhere)
	}
	b.say(d[0], "a", withdrawn)
	b.say(d[0], "c", withdrawn)
	b.has(t, d[0], "b")
	b.has(t, d[1], "a", "b")
	bye := func(id, of peer.ID) {
		_ = b.AddProvider(t.Context(), []byte(of), peer.AddrInfo{ID: id, Addrs: []ma.Multiaddr{withdrawn}})
	}
	bye("a", "b")
	b.has(t, d[1], "a", "b")
	bye("b", "b")
	bye("b", "b")
	b.has(t, d[0])
	b.has(t, d[1], "a")
}

func TestTheLastAddressesHoldForAllThatASiteHas(t *testing.T) {
	b, d := newBook(10), blobs(2)
	b.say(d[0], "a", somewhere)
	b.say(d[1], "a", elsewhere)
	infos, _ := b.GetProviders(t.Context(), mustKey(d[0]))
	if len(infos) != 1 || !slices.EqualFunc(infos[0].Addrs, []ma.Multiaddr{elsewhere}, ma.Multiaddr.Equal) {
		t.Errorf("providers are %v", infos)
	}
}

func TestWhoSaysMostLosesFirst(t *testing.T) {
	b, d := newBook(20), blobs(1000)
	b.say(d[0], "small", somewhere)
	b.say(d[1], "small", somewhere)
	for i, blob := range d {
		b.say(blob, "large", somewhere)
		if i > 900 {
			b.say(blob, "other", somewhere)
		}
	}
	if b.count != 20 {
		t.Errorf("%d records are kept", b.count)
	}
	b.has(t, d[0], "small")
	b.has(t, d[1], "small")
	b.has(t, d[999], "large", "other")
}

func TestProvidersOfOneBlobAreBounded(t *testing.T) {
	b, d := newBook(1000), blobs(1)[0]
	for i := range 2 * maxProviders {
		b.clock = b.clock.Add(time.Second)
		b.say(d, peer.ID(fmt.Sprintf("site %03d", i)), somewhere)
	}
	got := b.of(d)
	if len(got) != maxProviders || got[0] != peer.ID(fmt.Sprintf("site %03d", maxProviders)) {
		t.Errorf("%d are kept, from %s on", len(got), got[0])
	}
}

func TestKeysAreDigests(t *testing.T) {
	for _, d := range []digest.Digest{digest.FromString("a"), digest.SHA512.FromString("a")} {
		key, ok := keyOf(d)
		if back, ok2 := digestOf(key); !ok || !ok2 || back != d {
			t.Errorf("%s becomes %x and %s", d, key, back)
		}
	}
	// https://cid.ipfs.tech names this one, which is of no bytes.
	key, _ := keyOf(digest.FromString(""))
	if got := cidOf(key).String(); got != "bafkreihdwdcefgh4dqkjv67uzcmw7ojee6xedzdetojuzjevtenxquvyku" {
		t.Errorf("the CID is %s", got)
	}
	for _, d := range []digest.Digest{"", "sha256:x", digest.SHA384.FromString("a")} {
		if key, ok := keyOf(d); ok {
			t.Errorf("%q becomes %x", d, key)
		}
	}
}

// FuzzRecords checks that whatever others say, it is of a digest or refused, and bounded.
func FuzzRecords(f *testing.F) {
	f.Add(mustKey(digest.FromString("a")), somewhere.Bytes(), "a")
	f.Add(mustKey(digest.SHA512.FromString("a")), withdrawn.Bytes(), "b")
	f.Add([]byte("a"), withdrawn.Bytes(), "a")
	f.Add([]byte{0x12, 0x20}, []byte{}, "")
	b := newBook(50)
	f.Fuzz(func(t *testing.T, key, addr []byte, id string) {
		var addrs []ma.Multiaddr
		if a, err := ma.NewMultiaddrBytes(addr); err == nil {
			addrs = sound([]ma.Multiaddr{a}, false)
			if a.Equal(withdrawn) {
				addrs = []ma.Multiaddr{a}
			}
		}
		_ = b.AddProvider(t.Context(), key, peer.AddrInfo{ID: peer.ID(id), Addrs: addrs})
		d, ok := digestOf(key)
		if !ok {
			return
		}
		if back, _ := keyOf(d); string(back) != string(key) {
			t.Errorf("%x is taken for %s", key, d)
		}
		if b.count > 50 || len(b.sites) > b.count || len(b.blobs) > b.count {
			t.Errorf("%d records, %d sites, %d blobs", b.count, len(b.sites), len(b.blobs))
		}
	})
}

package gossip

import (
	"bytes"
	"log/slog"
	"net"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/memberlist"
	"github.com/opencontainers/go-digest"

	"github.com/granary-oci/granary/tracker"
)

func TestMetadataTravels(t *testing.T) {
	for _, p := range []tracker.Peer{
		{},
		{Name: "host", Zone: "zone", Weight: 100, Draining: true},
		{Name: "Gerät", Addrs: []string{"/ip4/0.0.0.0/tcp/5052", "/ip6/::/tcp/5052"}, Weight: 1},
	} {
		meta, err := encodeMeta(p)
		if err != nil {
			t.Fatal(err)
		}
		got, err := decodeMeta(append(meta, "of later versions"...))
		if err != nil || !reflect.DeepEqual(got, p) {
			t.Errorf("%+v became %+v, %v", p, got, err)
		}
	}
}

func TestMetadataIsTheSameInAllVersions(t *testing.T) {
	meta, err := encodeMeta(tracker.Peer{Name: "n", Zone: "zo", Weight: 5, Draining: true, Addrs: []string{"/a", "/bc"}})
	if want := "\x01\x01\x05\x02zo\x01n\x02\x02/a\x03/bc"; err != nil || string(meta) != want {
		t.Errorf("metadata is %q, %v, want %q", meta, err, want)
	}
}

func TestALongNameIsCut(t *testing.T) {
	for name, want := range map[string]string{
		strings.Repeat("ä", 50):             strings.Repeat("ä", 32),
		"a" + strings.Repeat("ä", 50):       "a" + strings.Repeat("ä", 31),
		"two\nlines\xff":                    "twolines",
		strings.Repeat("n", 64):             strings.Repeat("n", 64),
		"\x00" + strings.Repeat("n", 64):    strings.Repeat("n", 64),
		strings.Repeat("n", 64) + "\u2028x": strings.Repeat("n", 64),
	} {
		meta, err := encodeMeta(tracker.Peer{Name: name})
		if err != nil {
			t.Fatal(err)
		}
		if p, err := decodeMeta(meta); err != nil || p.Name != want {
			t.Errorf("%q is %q, %v", name, p.Name, err)
		}
	}
}

func TestMetadataThatMakesNoSenseIsRefused(t *testing.T) {
	for name, meta := range map[string]string{
		"nothing":         "",
		"another version": "\x02\x00\x01\x00\x00\x00",
		"weight":          "\x01\x00\x65\x00\x00\x00",
		"early end":       "\x01\x00\x01\x05zo",
		"no addresses":    "\x01\x00\x01\x00\x00",
		"a newline":       "\x01\x00\x01\x01\n\x00\x00",
		"many addresses":  "\x01\x00\x01\x00\x00\x09" + strings.Repeat("\x02/a", 9),
		"no multiaddr":    "\x01\x00\x01\x00\x00\x01\x01a",
	} {
		if p, err := decodeMeta([]byte(meta)); err == nil {
			t.Errorf("%s: %+v", name, p)
		}
	}
}

func FuzzMetadata(f *testing.F) {
	meta, _ := encodeMeta(tracker.Peer{Name: "n", Zone: "z", Weight: 1, Addrs: []string{"/ip4/0.0.0.0/tcp/1"}})
	f.Add(meta, "peer@1f")
	f.Add([]byte("\x01\x00\x01\x05zo"), "@")
	f.Fuzz(func(t *testing.T, meta []byte, name string) {
		if id, boot, err := parseNodeName(name); err == nil && nodeName(id, boot) != name {
			t.Errorf("%q is %s, %d", name, id, boot)
		}
		m, err := parseMember(&memberlist.Node{Name: "peer@1f", Meta: meta, Addr: net.IP{10, 0, 0, 1}})
		if err != nil {
			return
		}
		m.peer.ID = ""
		m.peer.Addrs = nil // completed
		again, err := encodeMeta(m.peer)
		if err != nil {
			t.Fatalf("%+v cannot be said again: %v", m.peer, err)
		}
		if p, err := decodeMeta(again); err != nil || !reflect.DeepEqual(p, m.peer) {
			t.Errorf("%+v became %+v, %v", m.peer, p, err)
		}
	})
}

func TestNodeNames(t *testing.T) {
	id, boot, err := parseNodeName(nodeName("12D3KooWx", 1<<60))
	if err != nil || id != "12D3KooWx" || boot != 1<<60 {
		t.Errorf("%s, %d, %v", id, boot, err)
	}
	for _, name := range []string{"", "@", "a", "a@", "@1", "a@1@2", "a/b@1", "a@-1", "a@+1", "a@01", "a@A", "a@11111111111111111", strings.Repeat("a", 129) + "@1"} {
		if id, _, err := parseNodeName(name); err == nil {
			t.Errorf("%q is of %s", name, id)
		}
	}
}

func TestAddressesAreCompleted(t *testing.T) {
	v4, v6 := netip.MustParseAddr("192.0.2.7"), netip.MustParseAddr("2001:db8::7")
	for _, c := range []struct {
		addr string
		ip   netip.Addr
		want string
	}{
		{"/ip4/0.0.0.0/tcp/5052", v4, "/ip4/192.0.2.7/tcp/5052"},
		{"/ip4/0.0.0.0/tcp/5052", v6, "/ip6/2001:db8::7/tcp/5052"},
		{"/ip6/::/tcp/5052", v6, "/ip6/2001:db8::7/tcp/5052"},
		{"/ip6/0:0:0:0:0:0:0:0/udp/1/quic-v1", v4, "/ip4/192.0.2.7/udp/1/quic-v1"},
		{"/tcp/5052", v4, "/ip4/192.0.2.7/tcp/5052"},
		{"/ip4/10.0.0.1/tcp/5052", v4, "/ip4/10.0.0.1/tcp/5052"},
		{"/dns4/x/tcp/5052", v4, "/dns4/x/tcp/5052"},
		{"/ip4/0.0.0.0", v4, "/ip4/0.0.0.0"},
		{"/", v4, "/"},
		{"/ip4/0.0.0.0/tcp/5052", netip.Addr{}, "/ip4/0.0.0.0/tcp/5052"},
	} {
		if got := withIP(c.addr, c.ip); got != c.want {
			t.Errorf("%s at %s is %s, want %s", c.addr, c.ip, got, c.want)
		}
	}
	if got := reachable([]string{"/ip4/0.0.0.0/tcp/1", "/ip6/::/tcp/1"}, v4); len(got) != 1 {
		t.Errorf("an address is there twice: %v", got)
	}
}

func TestJoinEntries(t *testing.T) {
	for entry, want := range map[string]string{
		"10.0.0.1":              "10.0.0.1 5053",
		"10.0.0.1:1":            "10.0.0.1 1",
		"host.example":          "host.example 5053",
		"host.example:7":        "host.example 7",
		"2001:db8::1":           "2001:db8::1 5053",
		"[2001:db8::1]":         "2001:db8::1 5053",
		"[2001:db8::1]:9":       "2001:db8::1 9",
		"":                      "",
		":5053":                 "",
		"host:0":                "",
		"host:65536":            "",
		"host:x":                "",
		"http://host.example:1": "",
	} {
		host, port, err := splitJoin(entry, 5053)
		if got := strings.TrimSpace(host + " " + port); err == nil && got != want || (err != nil) != (want == "") {
			t.Errorf("%q is %q, %v, want %q", entry, got, err, want)
		}
	}
}

func TestMessagesTravel(t *testing.T) {
	var all []digest.Digest
	for i, d := range blobs(2500) {
		switch i % 3 {
		case 1:
			d = digest.SHA384.FromString(string(d))
		case 2:
			d = digest.SHA512.FromString(string(d))
		}
		all = append(all, d)
	}
	for _, hold := range []bool{true, false} {
		var got []digest.Digest
		for _, p := range (message{hold, "sender", append(all, "md5:1")}).encode() {
			if len(p) > maxMessage {
				t.Errorf("a message has %d bytes", len(p))
			}
			m, err := decode(p)
			if err != nil || m.hold != hold || m.from != "sender" {
				t.Fatalf("%v, %s, %v", m.hold, m.from, err)
			}
			got = append(got, m.blobs...)
		}
		if !slices.Equal(got, all) {
			t.Errorf("of %d digests %d arrived, or others", len(all), len(got))
		}
	}
	if got := (message{true, "sender", nil}).encode(); len(got) != 0 {
		t.Errorf("nothing is said with %q", got)
	}
}

func TestMessagesThatMakeNoSenseAreRefused(t *testing.T) {
	sum := strings.Repeat("x", 32)
	for name, p := range map[string]string{
		"nothing":         "",
		"another version": "\x02\x01\x01a",
		"another kind":    "\x01\x03\x01a",
		"from nobody":     "\x01\x01\x00",
		"from nonsense":   "\x01\x01\x01\n",
		"an early end":    "\x01\x01\x01a\x01" + sum[1:],
		"md5":             "\x01\x01\x01a\x04" + sum,
		"algorithm 0":     "\x01\x01\x01a\x00" + sum,
		"one that is not": "\x01\x01\x01a\x01" + sum + "\x01",
		"very much":       "\x01\x01\x01a" + strings.Repeat("\x01"+sum, 1001),
	} {
		if m, err := decode([]byte(p)); err == nil {
			t.Errorf("%s: %+v", name, m)
		}
	}
}

func FuzzMessage(f *testing.F) {
	f.Add(message{true, "a", blobs(2)}.encode()[0])
	f.Add([]byte("\x01\x02\x01a\x03"))
	f.Fuzz(func(t *testing.T, p []byte) {
		m, err := decode(p)
		if err != nil || len(m.blobs) == 0 {
			return
		}
		for _, d := range m.blobs {
			if err := d.Validate(); err != nil {
				t.Error(err)
			}
		}
		if again := m.encode(); len(again) != 1 || !bytes.Equal(again[0], p) {
			t.Errorf("%q became %q", p, again)
		}
	})
}

func TestKeysAreThoseOfTheSecrets(t *testing.T) {
	keys, err := deriveKeys([][]byte{[]byte("a"), []byte("b"), []byte("a")})
	if err != nil || len(keys) != 2 || len(keys[0]) != 32 || bytes.Equal(keys[0], keys[1]) {
		t.Fatalf("%d keys, %v", len(keys), err)
	}
	ring, err := memberlist.NewKeyring(keys, keys[0])
	if err != nil {
		t.Fatal(err)
	}
	more, _ := deriveKeys([][]byte{[]byte("c"), []byte("d"), []byte("b")})
	for _, want := range [][][]byte{{more[0], keys[1]}, more, {keys[0]}, {keys[1], keys[0], more[1]}, {more[1], keys[1]}} {
		before, was := ring.GetKeys(), slices.Clone(ring.GetKeys())
		if err := setKeys(ring, want); err != nil {
			t.Fatal(err)
		}
		got := ring.GetKeys()
		if len(got) != len(want) || !bytes.Equal(got[0], want[0]) || slices.ContainsFunc(want, func(k []byte) bool { return !contains(got, k) }) {
			t.Errorf("keys are %x, want %x", got, want)
		}
		if !reflect.DeepEqual(before, was) {
			t.Error("keys change while they are read")
		}
	}
}

func TestAMessageWaitsForItsSenderToBeKnown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		providers := tracker.NewProviders(10, time.Hour)
		r := newRoster(1, tracker.Peer{ID: "self"}, providers, slog.New(slog.DiscardHandler))
		meta, err := encodeMeta(tracker.Peer{})
		if err != nil {
			t.Fatal(err)
		}
		held := blobs(3)
		r.receive(message{true, "late", held[:1]})
		r.receive(message{true, "later", held[1:2]})
		r.receive(message{true, "self", held[2:]})
		time.Sleep(earlyTime - time.Second)
		r.NotifyJoin(&memberlist.Node{Name: "late@1", Meta: meta, Addr: net.IP{10, 0, 0, 1}})
		r.current()
		time.Sleep(2 * time.Second)
		r.current()
		r.NotifyJoin(&memberlist.Node{Name: "later@1", Meta: meta, Addr: net.IP{10, 0, 0, 1}})
		r.current()
		if got := providers.Of(held[0]); !slices.Equal(got, []tracker.ID{"late"}) {
			t.Errorf("of the first blob there are %v", got)
		}
		if len(providers.Of(held[1])) > 0 || len(providers.Of(held[2])) > 0 {
			t.Error("what is too late, or said in this node's name, counts")
		}
	})
}

func TestOfSeveralMembersWithOneIDTheLastStartedIsThePeer(t *testing.T) {
	r := newRoster(5, tracker.Peer{ID: "self"}, tracker.NewProviders(1, 1), slog.New(slog.DiscardHandler))
	meta := func(name string) []byte {
		m, err := encodeMeta(tracker.Peer{Name: name})
		if err != nil {
			t.Fatal(err)
		}
		return m
	}
	for _, name := range []string{"a@2", "a@10", "a@3", "self@4", "self@6"} {
		r.NotifyJoin(&memberlist.Node{Name: name, Meta: meta(name), Addr: net.IP{10, 0, 0, 1}})
	}
	want := func(name string) {
		t.Helper()
		if p, _ := r.current().view.Peer("a"); p.Name != name {
			t.Errorf("the peer is %q, want %s", p.Name, name)
		}
	}
	want("a@10")
	r.NotifyLeave(&memberlist.Node{Name: "a@2", Addr: net.IP{10, 0, 0, 1}})
	want("a@10")
	r.NotifyLeave(&memberlist.Node{Name: "a@10", Addr: net.IP{10, 0, 0, 1}})
	want("a@3")
	r.NotifyUpdate(&memberlist.Node{Name: "a@3", Meta: []byte("nonsense"), Addr: net.IP{10, 0, 0, 1}})
	r.NotifyJoin(&memberlist.Node{Name: "b@1", Meta: meta("of nowhere")})
	if got := r.current().view.Peers(); len(got) != 1 || got[0].Name != "" {
		t.Errorf("peers are %+v", got)
	}
}

func TestLinesOfMemberlistAreLoggedAtDebugLevel(t *testing.T) {
	var b bytes.Buffer
	l := lines{slog.New(slog.NewTextHandler(&b, &slog.HandlerOptions{Level: slog.LevelDebug})), new(witness)}
	_, _ = l.Write([]byte("[WARN] memberlist: something is odd\n"))
	if !strings.Contains(b.String(), `level=DEBUG msg=memberlist says="something is odd"`) {
		t.Errorf("logged is %s", &b)
	}
}

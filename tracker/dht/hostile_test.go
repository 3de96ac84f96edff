package dht

import (
	"context"
	"crypto/rand"
	"fmt"
	"testing"
	"time"

	pb "github.com/libp2p/go-libp2p-kad-dht/pb"
	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-msgio"
	"github.com/libp2p/go-msgio/pbio"
	ma "github.com/multiformats/go-multiaddr"
	"github.com/opencontainers/go-digest"
	"google.golang.org/protobuf/proto"
)

func unmarshal(p []byte, m *pb.Message) error { return proto.Unmarshal(p, m) }

// lie is a handler that answers each question about providers with 2,000, of which
// every other one has an address, too many or one that leads nowhere.
func lie() network.StreamHandler {
	var infos []peer.AddrInfo
	for i := range 2000 {
		_, public, _ := crypto.GenerateEd25519Key(rand.Reader)
		id, _ := peer.IDFromPublicKey(public)
		info := peer.AddrInfo{ID: id}
		switch i % 4 {
		case 1:
			info.Addrs = []ma.Multiaddr{ma.StringCast("/ip4/0.0.0.0/tcp/1")}
		case 2:
			for range 50 {
				info.Addrs = append(info.Addrs, ma.StringCast("/ip4/192.0.2.1/tcp/1"))
			}
		case 3:
			info.Addrs = []ma.Multiaddr{withdrawn}
		}
		infos = append(infos, info)
	}
	return func(s network.Stream) {
		defer s.Close()
		_ = s.SetDeadline(time.Now().Add(5 * time.Second))
		r := msgio.NewVarintReaderSize(s, 4<<20)
		for {
			p, err := r.ReadMsg()
			m := new(pb.Message)
			if err != nil || unmarshal(p, m) != nil {
				return
			}
			answer := pb.NewMessage(m.Type, m.Key, 0)
			if m.Type == pb.Message_GET_PROVIDERS {
				answer.ProviderPeers = pb.RawPeerInfosToPBPeers(infos)
			}
			if pbio.NewDelimitedWriter(s).WriteMsg(answer) != nil {
				return
			}
		}
	}
}

// ask sends a site a message as a stranger may, and returns the answer.
func ask(t *testing.T, from host.Host, to *node, m *pb.Message) (*pb.Message, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if err := from.Connect(ctx, to.info()); err != nil {
		t.Fatal(err)
	}
	s, err := from.NewStream(ctx, to.host.ID(), "/granary/test/kad/1.0.0")
	if err != nil {
		return nil, err
	}
	defer s.Reset()
	_ = s.SetDeadline(time.Now().Add(5 * time.Second))
	if err := pbio.NewDelimitedWriter(s).WriteMsg(m); err != nil {
		return nil, err
	}
	if m.Type == pb.Message_ADD_PROVIDER {
		return nil, s.CloseWrite()
	}
	_ = s.CloseWrite()
	answer := new(pb.Message)
	p, err := msgio.NewVarintReaderSize(s, 4<<20).ReadMsg()
	if err != nil {
		return nil, err
	}
	return answer, unmarshal(p, answer)
}

func TestHostileRecords(t *testing.T) {
	a := newNode(t, nil)
	b := newNode(t, nil, a)
	stranger := newHost(t, loopback)
	d := blobs(1)[0]
	say := func(key []byte, infos ...peer.AddrInfo) {
		m := pb.NewMessage(pb.Message_ADD_PROVIDER, key, 0)
		m.ProviderPeers = pb.RawPeerInfosToPBPeers(infos)
		_, _ = ask(t, stranger, a, m)
	}
	addr := []ma.Multiaddr{ma.StringCast("/ip4/192.0.2.1/tcp/1")}
	var many []ma.Multiaddr
	for i := range 10_000 {
		many = append(many, ma.StringCast(fmt.Sprintf("/ip4/192.0.2.1/tcp/%d", i+1)))
	}
	b.Announce(d)
	eventually(t, "who has it is found", func() bool { return a.finds(t, d, b) })
	say(mustKey(d), peer.AddrInfo{ID: b.host.ID(), Addrs: addr})                      // for somebody else
	say(mustKey(d), peer.AddrInfo{ID: b.host.ID(), Addrs: []ma.Multiaddr{withdrawn}}) // the same
	say([]byte(b.host.ID()), peer.AddrInfo{ID: b.host.ID(), Addrs: []ma.Multiaddr{withdrawn}})
	say(mustKey(d), peer.AddrInfo{ID: stranger.ID(), Addrs: []ma.Multiaddr{ma.StringCast("/ip4/0.0.0.0/tcp/1")}})
	say(mustKey(d), peer.AddrInfo{ID: stranger.ID()})
	say([]byte("chunk"), peer.AddrInfo{ID: stranger.ID(), Addrs: addr})
	say(make([]byte, 1<<20), peer.AddrInfo{ID: stranger.ID(), Addrs: addr})
	last := digest.FromString("last")
	say(mustKey(last), peer.AddrInfo{ID: stranger.ID(), Addrs: many})
	eventually(t, "the last is found", func() bool {
		peers, err := b.Providers(t.Context(), last, 3)
		return err == nil && len(peers) == 1 && len(peers[0].Addrs) == maxAddrs
	})
	if !a.finds(t, d, b) {
		peers, err := a.Providers(t.Context(), d, 8)
		t.Errorf("who has it are %v, %v", peers, err)
	}
}

func TestNothingButProvidersIsKept(t *testing.T) {
	a := newNode(t, nil)
	stranger := newHost(t, loopback)
	for _, kind := range []pb.Message_MessageType{pb.Message_PUT_VALUE, pb.Message_GET_VALUE} {
		if answer, err := ask(t, stranger, a, pb.NewMessage(kind, []byte("/pk/x"), 0)); err == nil {
			t.Errorf("to %v it answers %v", kind, answer)
		}
	}
}

func TestStreamsOfOneSiteAreBounded(t *testing.T) {
	a := newNode(t, nil)
	stranger := newHost(t, loopback)
	if err := stranger.Connect(t.Context(), a.info()); err != nil {
		t.Fatal(err)
	}
	answered := 0
	for range 3 * maxStreams {
		s, err := stranger.NewStream(t.Context(), a.host.ID(), "/granary/test/kad/1.0.0")
		if err != nil {
			continue
		}
		defer s.Reset()
		_ = s.SetDeadline(time.Now().Add(5 * time.Second))
		if pbio.NewDelimitedWriter(s).WriteMsg(pb.NewMessage(pb.Message_PING, nil, 0)) != nil {
			continue
		}
		if _, err := msgio.NewVarintReaderSize(s, 4<<20).ReadMsg(); err == nil {
			answered++
		}
	}
	if answered != maxStreams {
		t.Errorf("%d streams are answered at a time", answered)
	}
}

func TestWhoHasClosedAnswersNoMore(t *testing.T) {
	a := newNode(t, nil)
	b := newNode(t, nil, a)
	d := blobs(1)[0]
	b.Announce(d)
	eventually(t, "it is found", func() bool { return a.finds(t, d, b) })
	b.Close()
	if answer, err := ask(t, newHost(t), b, pb.NewMessage(pb.Message_GET_PROVIDERS, mustKey(d), 0)); err == nil {
		t.Errorf("it answers %v", answer)
	}
}

func TestHostileAnswers(t *testing.T) {
	a := newNode(t, nil)
	liar := newHost(t, loopback)
	liar.SetStreamHandler("/granary/test/kad/1.0.0", lie())
	if err := liar.Connect(t.Context(), a.info()); err != nil {
		t.Fatal(err)
	}
	eventually(t, "it is asked", func() bool {
		peers, _ := a.Providers(t.Context(), blobs(1)[0], 5)
		if len(peers) > 5 {
			t.Fatalf("asked for 5, it returns %d", len(peers))
		}
		for _, p := range peers {
			if len(p.Addrs) == 0 || len(p.Addrs) > maxAddrs {
				t.Fatalf("%s has the addresses %v", p.ID, p.Addrs)
			}
		}
		return len(peers) == 5
	})
}

package p2p_test

import (
	"bufio"
	"encoding/binary"
	"io"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"

	"github.com/granary-oci/granary/chunkstore/chunk"
	"github.com/granary-oci/granary/p2p"
	"github.com/granary-oci/granary/p2p/p2ptest"
	"github.com/granary-oci/granary/p2p/wire"
	"github.com/granary-oci/granary/tracker"
)

// lane is a lane as a test speaks on it.
type lane struct {
	p2p.Stream
	r *bufio.Reader
}

func (l lane) write(f wire.Frame) error {
	head, err := f.Head()
	if err == nil {
		_, err = l.Stream.Write(append(head, f.Body...))
	}
	return err
}

func (l lane) read() (wire.Frame, error) { return wire.Read(l.r) }

// pretend makes a node answer requests for chunks as behave does, and pings like
// anybody.
func (c *cluster) pretend(id tracker.ID, behave func(l lane, id uint32, q wire.Get)) {
	c.net.Node(id).Handle(func(_ tracker.ID, s p2p.Stream) {
		defer s.Close()
		l := lane{s, bufio.NewReader(s)}
		if _, err := wire.ReadPreface(l.r); err != nil {
			return
		}
		s.Write(wire.Preface[:])
		for {
			f, err := l.read()
			if err != nil {
				return
			}
			switch f.Type {
			case wire.TypeGet:
				if q, err := wire.ReadGet(f.Header); err == nil {
					behave(l, f.ID, q)
				}
			case wire.TypeMap:
				l.write(wire.Frame{Type: wire.TypeMapAnswer, ID: f.ID})
			case wire.TypePing:
				l.write(wire.Frame{Type: wire.TypeDone, ID: f.ID})
			}
		}
	})
}

// data returns a frame of a chunk that signer says is the one asked for.
func data(signer tracker.ID, id uint32, ref chunk.Ref, p []byte) wire.Frame {
	claim := wire.Claim{Digest: digest.FromBytes(p), Signer: signer}
	claim.Signature, _ = p2ptest.Signer(signer).Sign(claim.Text(ref))
	return wire.Frame{Type: wire.TypeData, ID: id, Header: wire.Data{Index: ref.Index(), Claim: claim}.Header(), Body: p}
}

func compressed(p []byte) []byte {
	w, _ := zstd.NewWriter(nil)
	return w.EncodeAll(p, nil)
}

func TestAMemberThatAnswersWronglyHarmsNobody(t *testing.T) {
	tests := []struct {
		name   string
		behave func(l lane, id uint32, q wire.Get, ref chunk.Ref, p []byte) // p is right
		state  string                                                       // of the member afterwards
	}{
		{"wrong bytes", func(l lane, id uint32, _ wire.Get, ref chunk.Ref, p []byte) {
			f := data("z", id, ref, p)
			f.Body = content(len(p), 99)
			l.write(f)
		}, "quarantined"},
		{"too few bytes", func(l lane, id uint32, _ wire.Get, ref chunk.Ref, p []byte) {
			l.write(data("z", id, ref, p[:100]))
		}, "quarantined"},
		{"too many bytes", func(l lane, id uint32, _ wire.Get, ref chunk.Ref, p []byte) {
			l.write(data("z", id, ref, append(p[:len(p):len(p)], 0)))
		}, "quarantined"},
		{"no bytes", func(l lane, id uint32, _ wire.Get, ref chunk.Ref, _ []byte) {
			l.write(data("z", id, ref, nil))
		}, "quarantined"},
		{"another chunk than was asked for", func(l lane, id uint32, _ wire.Get, ref chunk.Ref, p []byte) {
			ref.Offset += chunk.Size
			l.write(data("z", id, ref, p))
		}, "quarantined"},
		{"a claim on another chunk", func(l lane, id uint32, _ wire.Get, ref chunk.Ref, p []byte) {
			other := ref
			other.Offset += chunk.Size
			f := data("z", id, other, p)
			d, _ := wire.ReadData(f.Header)
			d.Index = ref.Index()
			f.Header = d.Header()
			l.write(f)
		}, "quarantined"},
		{"no claim", func(l lane, id uint32, _ wire.Get, ref chunk.Ref, p []byte) {
			l.write(wire.Frame{Type: wire.TypeData, ID: id, Header: wire.Data{Index: ref.Index()}.Header(), Body: p})
		}, "quarantined"},
		{"a claim that another has not signed", func(l lane, id uint32, _ wire.Get, ref chunk.Ref, p []byte) {
			f := data("z", id, ref, p)
			d, _ := wire.ReadData(f.Header)
			d.Claim.Signer = "b"
			f.Header = d.Header()
			l.write(f)
		}, "quarantined"},
		{"a claim of a stranger", func(l lane, id uint32, _ wire.Get, ref chunk.Ref, p []byte) {
			l.write(data("stranger", id, ref, p))
		}, "up"},
		{"a header that is none", func(l lane, id uint32, _ wire.Get, ref chunk.Ref, p []byte) {
			l.write(wire.Frame{Type: wire.TypeData, ID: id, Header: []byte{0xff, 0xff, 0xff}, Body: p})
		}, "quarantined"},
		{"what cannot be decompressed", func(l lane, id uint32, _ wire.Get, ref chunk.Ref, p []byte) {
			f := data("z", id, ref, p)
			d, _ := wire.ReadData(f.Header)
			d.Compressed = true
			f.Header = d.Header()
			l.write(f)
		}, "quarantined"},
		{"little that becomes much", func(l lane, id uint32, _ wire.Get, ref chunk.Ref, p []byte) {
			f := data("z", id, ref, p)
			d, _ := wire.ReadData(f.Header)
			d.Compressed = true
			f.Header, f.Body = d.Header(), compressed(make([]byte, 256<<20))
			l.write(f)
		}, "quarantined"},
		{"more chunks than were asked for", func(l lane, id uint32, q wire.Get, ref chunk.Ref, p []byte) {
			for l.write(data("z", id, ref, p)) == nil {
			}
		}, "quarantined"},
		{"chunks without end, of an answer that is over", func(l lane, id uint32, _ wire.Get, ref chunk.Ref, p []byte) {
			l.write(wire.Frame{Type: wire.TypeNotFound, ID: id})
			for l.write(data("z", id, ref, p)) == nil {
			}
		}, "quarantined"},
		{"progress without end", func(l lane, id uint32, _ wire.Get, _ chunk.Ref, _ []byte) {
			for n := int64(0); l.write(wire.Frame{Type: wire.TypeProgress, ID: id, Header: wire.Progress{Bytes: n}.Header()}) == nil; n += 1 << 20 {
				time.Sleep(200 * time.Millisecond)
			}
		}, "up"},
		{"a frame that is too large", func(l lane, _ uint32, _ wire.Get, _ chunk.Ref, _ []byte) {
			head := make([]byte, 12)
			head[0] = byte(wire.TypeData)
			binary.BigEndian.PutUint32(head[8:], 1<<31)
			l.Write(head)
			io.Copy(io.Discard, l.r)
		}, "quarantined"},
		{"an answer to no question", func(l lane, id uint32, _ wire.Get, _ chunk.Ref, _ []byte) {
			l.write(wire.Frame{Type: wire.TypeDone, ID: id + 1000})
		}, "quarantined"},
		{"an answer to another kind of question", func(l lane, id uint32, _ wire.Get, _ chunk.Ref, _ []byte) {
			l.write(wire.Frame{Type: wire.TypeMapAnswer, ID: id})
		}, "quarantined"},
		{"an end before the beginning", func(l lane, id uint32, _ wire.Get, _ chunk.Ref, _ []byte) {
			l.write(wire.Frame{Type: wire.TypeDone, ID: id})
		}, "quarantined"},
		{"noise", func(l lane, _ uint32, _ wire.Get, _ chunk.Ref, _ []byte) {
			l.Write(content(1<<20, 5))
			io.Copy(io.Discard, l.r)
		}, "quarantined"},
		{"nothing", func(lane, uint32, wire.Get, chunk.Ref, []byte) {}, "up"},
		{"the end of the lane", func(l lane, _ uint32, _ wire.Get, _ chunk.Ref, _ []byte) { l.Close() }, "up"},
		{"half a frame", func(l lane, id uint32, _ wire.Get, ref chunk.Ref, p []byte) {
			f := data("z", id, ref, p)
			head, _ := f.Head()
			l.Write(append(head, p[:1000]...))
			io.Copy(io.Discard, l.r)
		}, "up"},
		{"referrals to everybody and itself", func(l lane, id uint32, _ wire.Get, _ chunk.Ref, _ []byte) {
			l.write(wire.Frame{Type: wire.TypeBusy, ID: id, Header: wire.Busy{Referrals: []tracker.ID{"a", "b", "z", "", "stranger"}}.Header()})
		}, "up"},
		{"an unreadable excuse", func(l lane, id uint32, _ wire.Get, _ chunk.Ref, _ []byte) {
			l.write(wire.Frame{Type: wire.TypeUnavailable, ID: id, Header: wire.Unavailable{Message: "\xff\xfe\x00"}.Header()})
		}, "up"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := newCluster(t, nil, "a", "b", "z")
				m := c.blob(4<<20, "z")
				c.registry.mu.Lock()
				p := c.registry.blobs[m.Blob()]
				c.registry.mu.Unlock()
				c.pretend("z", func(l lane, id uint32, q wire.Get) {
					ref := m.At(q.First)
					tt.behave(l, id, q, ref, p[ref.Offset:ref.Offset+ref.Size])
				})
				took := c.mustGet("a", m)
				time.Sleep(2 * time.Second)
				if took > 11*time.Minute {
					t.Errorf("it took %v", took)
				}
				if s := c.nodes["a"].state("z"); s.State != tt.state {
					t.Errorf("the member is %s (%s), want %s", s.State, s.Fault, tt.state)
				}
				if in, _ := c.net.Traffic("a"); in > 24<<20 {
					t.Errorf("%d bytes came for %d", in, m.Size())
				}
				if s := c.nodes["a"].state("b"); s.State != "up" {
					t.Errorf("a bystander is %s (%s)", s.State, s.Fault)
				}
				if i := slices.IndexFunc(c.reports(), func(err error) bool { return !chunk.IsCorrupt(err) }); i >= 0 {
					t.Errorf("what is no wrong bytes is reported as such: %v", c.reports()[i])
				}
			})
		})
	}
}

func TestAMemberThatSpeaksNothingWeKnowIsNotWaitedFor(t *testing.T) {
	for name, greet := range map[string]func(s p2p.Stream){
		"nothing":    func(s p2p.Stream) { io.Copy(io.Discard, s) },
		"noise":      func(s p2p.Stream) { s.Write(content(1<<20, 7)) },
		"version 0":  func(s p2p.Stream) { s.Write([]byte("grnry\x00")); io.Copy(io.Discard, s) },
		"its end":    func(p2p.Stream) {},
		"never ends": func(s p2p.Stream) { io.Copy(s, endless{}) },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := newCluster(t, nil, "a", "z")
				c.net.Node("z").Handle(func(_ tracker.ID, s p2p.Stream) { greet(s); s.Close() })
				if took := c.mustGet("a", c.blob(4<<20, "z")); took > 3*time.Second {
					t.Errorf("it took %v", took)
				}
			})
		})
	}
}

type endless struct{}

func (endless) Read(p []byte) (int, error) { return len(p), nil }

func TestAQuarantineOfOneFaultIsNotThatOfMany(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, nil, "a", "z")
		m := c.blob(64<<20, "z", "z")
		c.pretend("z", func(l lane, id uint32, q wire.Get) {
			ref := m.At(q.First)
			l.write(data("z", id, ref, []byte("wrong")))
		})
		c.mustGet("a", m)
		if s := c.nodes["a"].state("z"); s.Strikes != 1 || time.Until(s.Quarantined) > time.Minute {
			t.Errorf("answers that were under way at once were %d strikes, until %v", s.Strikes, time.Until(s.Quarantined))
		}
	})
}

func TestWhoeverHasSignedForWrongBytesIsBlamedAndNotWhoeverSentThem(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, nil, "a", "b", "z")
		m := c.blob(1<<20+1, "b")
		wrong := content(1<<20, 1234)
		c.pretend("b", func(l lane, id uint32, q wire.Get) { // it lends what z has signed for
			if q.First > 0 {
				l.write(wire.Frame{Type: wire.TypeNotFound, ID: id})
				return
			}
			l.write(data("z", id, m.At(0), wrong))
			l.write(wire.Frame{Type: wire.TypeUnavailable, ID: id, Header: wire.Unavailable{Cause: wire.CauseUnreachable}.Header()})
		})
		a := c.nodes["a"]
		if err := c.get(t.Context(), a.read, m); err == nil {
			t.Fatal("wrong bytes were right")
		}
		a.client.Claims().Of(host).Refuted(m.Blob())
		a.store.drop()
		c.mustGet("a", m)
		a.client.Claims().Of(host).Proven(m.Blob())
		if s := a.state("z"); s.State != "quarantined" {
			t.Errorf("the signer is %s", s.State)
		}
		if s := a.state("b"); s.State != "up" {
			t.Errorf("who sent it is %s", s.State)
		}
	})
}

// TestWhatIsSentOfABlobThatIsRefutedMeanwhileIsNotTaken: what a lying member was sending would be in
// the store after the wrong bytes were dropped, and the next reader would find them.
func TestWhatIsSentOfABlobThatIsRefutedMeanwhileIsNotTaken(t *testing.T) {
	sources := map[string]func(a *node) chunk.Source{
		"an owner":       func(a *node) chunk.Source { return a.read },
		"a provider":     func(a *node) chunk.Source { return chunk.First(a.client.Held(host), a.own) },
		"a first reader": func(a *node) chunk.Source { return chunk.First(a.client.First(app), a.own) },
	}
	for name, source := range sources {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := newCluster(t, nil, "a", "z")
				m := c.blob(3<<20, "z")
				a := c.nodes["a"]
				a.providers.Announce(m.Blob(), "z")
				lies := 0
				c.pretend("z", func(l lane, id uint32, q wire.Get) {
					for i := q.First; i < q.First+q.Count; i++ {
						ref := m.At(i)
						p := c.registry.blobs[m.Blob()][ref.Offset : ref.Offset+ref.Size]
						if i > 0 {
							a.client.Claims().Of(host).Refuted(m.Blob())
							p = content(int(ref.Size), 99)
							lies++
						}
						l.write(data("z", id, ref, p))
						synctest.Wait() // the first is taken before the blob is refuted
					}
				})
				for range 2 {
					if err := c.get(t.Context(), source(a), m); err != nil {
						t.Error(err)
					}
				}
				if lies == 0 || lies > 2 {
					t.Errorf("z, which was to be asked once, told %d lies", lies)
				}
			})
		})
	}
}

// dial opens a lane from a member that is only here in the test.
func (c *cluster) dial(from, to tracker.ID, preface string) lane {
	c.t.Helper()
	s, err := c.net.Node(from).Open(c.t.Context(), tracker.Peer{ID: to})
	if err != nil {
		c.t.Fatal(err)
	}
	s.Write([]byte(preface))
	l := lane{s, bufio.NewReader(s)}
	s.SetReadDeadline(time.Now().Add(time.Minute))
	return l
}

const preface = "grnry\x01"

func (l lane) greeted(t *testing.T) lane {
	t.Helper()
	if v, err := wire.ReadPreface(l.r); err != nil || v != 1 {
		t.Fatalf("version %d was agreed on, error %v", v, err)
	}
	return l
}

func get(m *chunk.Map, first, count int) wire.Get {
	return wire.Get{Repository: app, Role: wire.ToOwner, Blob: m.Blob(), Total: m.Size(), First: first, Count: count}
}

func TestAServerAnswersWhatItDoesNotKnowPolitely(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, nil, "a", "z")
		m := c.blob(1000, "a")
		l := c.dial("z", "a", "grnry\x09").greeted(t) // of a later version
		defer l.Close()
		tests := []struct {
			name string
			f    wire.Frame
			want wire.Type
		}{
			{"a ping", wire.Frame{Type: wire.TypePing}, wire.TypeDone},
			{"a request of a later version", wire.Frame{Type: 14, Header: []byte("?"), Body: []byte("?")}, wire.TypeUnavailable},
			{"an answer", wire.Frame{Type: wire.TypeDone}, wire.TypeUnavailable},
			{"chunks without a header", wire.Frame{Type: wire.TypeGet}, wire.TypeUnavailable},
			{"chunks with half a header", wire.Frame{Type: wire.TypeGet, Header: get(m, 0, 1).Header()[:30]}, wire.TypeUnavailable},
			{"chunks beyond the blob", wire.Frame{Type: wire.TypeGet, Header: get(m, 5, 1).Header()}, wire.TypeUnavailable},
			{"no chunks", wire.Frame{Type: wire.TypeGet, Header: get(m, 0, 0).Header()}, wire.TypeUnavailable},
			{"a field that is not known", wire.Frame{Type: wire.TypeGet, Header: append(get(m, 0, 1).Header(), 0xf8, 0x01, 0x01)}, wire.TypeData},
			{"a map of nothing", wire.Frame{Type: wire.TypeMap}, wire.TypeUnavailable},
			{"a question that is none", wire.Frame{Type: wire.TypeAsk, Header: []byte{0xff}}, wire.TypeUnavailable},
			{"facts of nothing", wire.Frame{Type: wire.TypeLearn, Header: []byte{0xff}}, wire.TypeUnavailable},
			{"a tag that is none", wire.Frame{Type: wire.TypeForget, Header: []byte{0xff}}, wire.TypeUnavailable},
			{"an order that is none", wire.Frame{Type: wire.TypeOrder, Header: []byte{0xff}}, wire.TypeUnavailable},
		}
		for i, tt := range tests {
			tt.f.ID = uint32(i + 1)
			l.write(tt.f)
			f, err := l.read()
			if err != nil || f.Type != tt.want || f.ID != tt.f.ID {
				t.Fatalf("%s was answered with type %d for request %d, error %v; want %d", tt.name, f.Type, f.ID, err, tt.want)
			}
			for !f.Type.Last() {
				f, _ = l.read()
			}
		}
	})
}

func TestAServerCutsOffWhoBreaksTheProtocol(t *testing.T) {
	for _, tt := range []struct {
		name    string
		preface string
		say     func(l lane, m *chunk.Map)
	}{
		{"no preface", "", func(lane, *chunk.Map) {}},
		{"another protocol", "GET / HTTP/1.1\r\n\r\n", func(lane, *chunk.Map) {}},
		{"a number twice", preface, func(l lane, m *chunk.Map) {
			for range 2 {
				l.write(wire.Frame{Type: wire.TypeGet, ID: 1, Header: get(m, 0, 1).Header()})
			}
		}},
		{"too many requests", preface, func(l lane, m *chunk.Map) {
			for i := range uint32(100000) {
				if l.write(wire.Frame{Type: wire.TypeGet, ID: i + 1, Header: get(m, 0, 1).Header()}) != nil {
					return
				}
			}
		}},
		{"pings without reading what answers them", preface, func(l lane, _ *chunk.Map) {
			for i := uint32(1); l.write(wire.Frame{Type: wire.TypePing, ID: i}) == nil; i++ {
			}
		}},
		{"a header that is too large", preface, func(l lane, _ *chunk.Map) {
			l.Write([]byte{1, 0, 0, 0, 1, 0xff, 0xff, 0xff, 0, 0, 0, 0})
		}},
		{"a body that is too large", preface, func(l lane, _ *chunk.Map) {
			l.Write([]byte{4, 0, 0, 0, 1, 0, 0, 0, 0xff, 0xff, 0xff, 0xff})
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := newCluster(t, nil, "a", "z")
				defer c.registry.stall()()
				m := c.blob(1000, "a")
				l := c.dial("z", "a", tt.preface)
				defer l.Close()
				tt.say(l, m)
				if _, err := io.Copy(io.Discard, l.r); err != nil {
					t.Errorf("the lane goes on: %v", err)
				}
				time.Sleep(time.Second)
				if n := c.registry.readers(); n != 0 {
					t.Errorf("%d requests go on without their asker", n)
				}
			})
		})
	}
}

func TestOneMemberDoesNotTakeAllOfANode(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, nil, "a", "b", "z")
		goOn := c.registry.stall()
		var lanes []lane
		for range 20 {
			l := c.dial("z", "a", preface)
			defer l.Close()
			if _, err := wire.ReadPreface(l.r); err == nil {
				lanes = append(lanes, l)
			}
		}
		if len(lanes) != 16 {
			t.Errorf("one member has %d lanes, want 16", len(lanes))
		}
		var overloaded int
		var mu sync.Mutex
		for i, l := range lanes {
			for j := range 100 {
				l.write(wire.Frame{Type: wire.TypeGet, ID: uint32(j + 1), Header: get(c.registry.add(content(100+i*100+j, 3)), 0, 1).Header()})
			}
			go func() {
				for {
					f, err := l.read()
					if err != nil {
						return
					}
					if f.Type == wire.TypeUnavailable {
						mu.Lock()
						overloaded++
						mu.Unlock()
					}
				}
			}()
		}
		time.Sleep(time.Second)
		mu.Lock()
		if overloaded < 1000 {
			t.Errorf("%d of 1600 requests at once were turned away", overloaded)
		}
		mu.Unlock()
		goOn()
		c.registry.mu.Lock()
		c.registry.stalled = nil
		c.registry.mu.Unlock()
		time.Sleep(time.Second)
		defer c.registry.stall()()
		for i, l := range lanes {
			for j := range 30 {
				l.write(wire.Frame{Type: wire.TypeGet, ID: uint32(j + 1001), Header: get(c.registry.add(content(10000+i*100+j, 3)), 0, 1).Header()})
			}
		}
		time.Sleep(time.Second)
		m := c.blob(1000, "a")
		c.registry.mu.Lock()
		p := c.registry.blobs[m.Blob()]
		c.registry.mu.Unlock()
		c.nodes["a"].store.Put(t.Context(), m.At(0), p)
		if took := c.mustGet("b", m); took > 100*time.Millisecond {
			t.Errorf("another member waits %v for what is stored", took)
		}
	})
}

func TestAnAskerThatDoesNotReadHoldsUpNobodyElse(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, nil, "a", "b", "z")
		m := c.blob(64<<20, "a")
		c.mustGet("a", m)
		l := c.dial("z", "a", preface).greeted(t)
		for i := range 200 {
			l.write(wire.Frame{Type: wire.TypeGet, ID: uint32(i + 1), Header: get(m, i%64, 1).Header()})
		}
		time.Sleep(time.Second)
		if took := c.mustGet("b", m); took > time.Second {
			t.Errorf("another member waits %v", took)
		}
		time.Sleep(time.Minute)
		if _, err := l.read(); err == nil {
			for err == nil {
				_, err = l.read()
			}
		}
		l.Close()
	})
}

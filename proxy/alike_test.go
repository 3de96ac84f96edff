package proxy_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"net/http"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/granary-oci/granary/chunkstore/chunk"
	"github.com/granary-oci/granary/proxy"
)

// mapmaker is a cluster of which another member has nothing but the maps of blobs.
type mapmaker struct {
	proxy.Peers // for what nobody asks

	mu     sync.Mutex
	blobs  map[digest.Digest][]byte
	asked  int
	mapped map[int]bool // chunks
}

type noSource struct{}

func (noSource) Get(context.Context, chunk.Ref) ([]byte, error) { return nil, chunk.ErrNotFound }

func (m *mapmaker) StripeSize(int64) int64                                 { return chunk.StripeSize }
func (m *mapmaker) Alone() bool                                            { return false }
func (m *mapmaker) Source(_ proxy.In, own chunk.Source) chunk.Source       { return own }
func (m *mapmaker) Held(string) chunk.Source                               { return noSource{} }
func (m *mapmaker) First(proxy.In) chunk.Source                            { return noSource{} }
func (m *mapmaker) Own(string, chunk.Ref) bool                             { return false }
func (m *mapmaker) Fetched(string, chunk.Ref, []byte, string)              {}
func (m *mapmaker) Upstream(_ proxy.In, up proxy.Upstream) proxy.Upstream  { return up }
func (m *mapmaker) Recall(context.Context, proxy.In, string, func([]byte)) {}
func (m *mapmaker) Tell(proxy.In, []byte)                                  {}

func (m *mapmaker) Digests(_ context.Context, host string, of *chunk.Map, first, n int) (all chunk.Digests, giver string, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.asked++
	for i := range n {
		ref := of.At(first + i)
		d := sha256.Sum256(m.blobs[of.Blob()][ref.Offset : ref.Offset+ref.Size])
		all = append(all, d[:]...)
	}
	return all, "another of " + host, nil
}

func (m *mapmaker) Mapped(host string, ref chunk.Ref, giver string) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.mapped[ref.Index()] = true
	return host == "origin.test" && giver == "another of origin.test"
}

// TestWhatIsAlikeIsOfTheSameRepository: what else is stored is nobody's to compare, however
// alike it is.
func TestWhatIsAlikeIsOfTheSameRepository(t *testing.T) {
	old := random(12<<20+5, 90)
	model := bytes.Clone(old)
	copy(model[5<<20:], "other bytes")
	for _, tt := range []struct {
		name   string
		before func(o *origin, s *stack) // what is done before the model is read
		from   bool                      // chunks are taken from what is stored
	}{
		{"nothing is stored", func(*origin, *stack) {}, false},
		{"the same repository's", func(_ *origin, s *stack) { s.readAll(t, "app", old) }, true},
		{"another repository's", func(_ *origin, s *stack) { s.readAll(t, "other", old) }, false},
		{"another's that this one has too", func(o *origin, s *stack) {
			s.readAll(t, "other", old)
			s.do(t, http.MethodHead, "/v2/app/blobs/"+string(digest.FromBytes(old)))
		}, true},
		{"a part of it", func(_ *origin, s *stack) {
			s.do(t, http.MethodGet, "/v2/app/blobs/"+string(digest.FromBytes(old)), "Range", "bytes=0-11534335")
		}, false},
		{"much smaller", func(o *origin, s *stack) { o.add("app", old[:5<<20]); s.readAll(t, "app", old[:5<<20]) }, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			o := newOrigin()
			o.add("app", old)
			o.add("other", old)
			o.add("app", model)
			peers := &mapmaker{blobs: map[digest.Digest][]byte{digest.FromBytes(model): model}, mapped: make(map[int]bool)}
			s := newStack(t, o, true, func(c *proxy.Config) { c.Peers = peers })
			tt.before(o, s)
			sent := o.sent.Load()
			s.readAll(t, "app", model)
			fetched := o.sent.Load() - sent
			peers.mu.Lock()
			defer peers.mu.Unlock()
			want := int64(len(model))
			if tt.from {
				want = chunk.Size
			}
			if fetched != want || (len(peers.mapped) > 0) != tt.from || (peers.asked > 0) != tt.from {
				t.Errorf("%d bytes were fetched, and %d chunks mapped, with %d questions", fetched, len(peers.mapped), peers.asked)
			}
		})
	}
}

// TestALieAboutABlobThatIsKnown by how it was hashed is found out before anybody is told it: of what
// only passes through nothing else is left.
func TestALieAboutABlobThatIsKnown(t *testing.T) {
	old := random(12<<20+5, 92)
	model := bytes.Clone(old)
	copy(model[5<<20:], "other bytes")
	d := digest.FromBytes(model)
	o := newOrigin()
	o.add("app", old)
	o.add("app", model)
	o.add("other", model)
	peers := &mapmaker{blobs: map[digest.Digest][]byte{d: old}, mapped: make(map[int]bool)}
	s := newStack(t, o, true, func(c *proxy.Config) {
		c.Peers = peers
		c.Keeps = func(ref chunk.Ref) bool { return ref.Blob != d }
	})
	s.readAll(t, "app", old)
	for _, repository := range []string{"other", "app"} { // of which the first has nothing that is alike
		resp, body := s.do(t, http.MethodGet, "/v2/"+repository+"/blobs/"+string(d))
		if resp.StatusCode != http.StatusOK || !bytes.Equal(body, model) {
			t.Errorf("%s: %d, %d bytes", repository, resp.StatusCode, len(body))
		}
	}
	if len(peers.mapped) == 0 {
		t.Error("the map was not used")
	}
}

// readAll reads all of a blob, and waits until it has been written.
func (s *stack) readAll(t *testing.T, repository string, p []byte) {
	t.Helper()
	d := digest.FromBytes(p)
	resp, body := s.do(t, http.MethodGet, "/v2/"+repository+"/blobs/"+string(d))
	if resp.StatusCode != http.StatusOK || !bytes.Equal(body, p) {
		t.Fatalf("%s: %d, %d bytes", d, resp.StatusCode, len(body))
	}
	for begun := time.Now(); ; time.Sleep(time.Millisecond) {
		if _, err := s.registry.Digests(t.Context(), "origin.test", d, int64(len(p)), 0, 1); err == nil {
			return
		} else if time.Since(begun) > time.Minute {
			t.Fatal(err)
		}
	}
}

// TestDigestsAreGivenOfWhatIsLent: of all of a blob, and of the host that has shown it.
func TestDigestsAreGivenOfWhatIsLent(t *testing.T) {
	blob := random(12<<20+5, 91)
	o := newOrigin()
	o.add("app", blob)
	s := newStack(t, o, true)
	d, size := digest.FromBytes(blob), int64(len(blob))
	if _, err := s.registry.Digests(t.Context(), "origin.test", d, size, 0, 1); !errors.Is(err, chunk.ErrNotFound) {
		t.Errorf("of what is not there: %v", err)
	}
	s.readAll(t, "app", blob)
	if _, err := s.registry.Digests(t.Context(), "another.test", d, size, 0, 1); !errors.Is(err, chunk.ErrNotFound) {
		t.Errorf("of another host's: %v", err)
	}
	all, err := s.registry.Digests(t.Context(), "origin.test", d, size, 11, 2)
	if err != nil || all.Len() != 2 || all.At(0) != digest.FromBytes(blob[11<<20:12<<20]) || all.At(1) != digest.FromBytes(blob[12<<20:]) {
		t.Errorf("%d digests, %v", all.Len(), err)
	}
}

package peers

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/granary-oci/granary/cmd/granary/node"
)

// small is as much of a blob as is fetched without the chunk that it is in.
const small = 256 << 10

// part asks for a small part of a blob.
func (m *member) part(img *image, layer []byte, off int) error {
	return m.gives(layer[off:off+small], img.path(digest.FromBytes(layer)), "Range", fmt.Sprintf("bytes=%d-%d", off, off+small-1))
}

// partly has a parent's answers to ranges of blobs spoiled.
func partly(spoil func(resp *http.Response)) *func(q *http.Request, resp *http.Response) {
	f := func(q *http.Request, resp *http.Response) {
		if strings.Contains(q.URL.Path, "/blobs/") && resp.StatusCode == http.StatusPartialContent {
			spoil(resp)
		}
	}
	return &f
}

// withoutLength is a body that says nothing of its length.
func withoutLength(resp *http.Response, body io.Reader) {
	resp.Body, resp.ContentLength = io.NopCloser(body), -1
	resp.Header.Del("Content-Length")
}

// TestAPartGoesOnElsewhere: of what a parent does not send to its end, or sends more of than there is, the
// rest comes from the next one, or from the registry. The parent is named, and at fault if it was no accident.
func TestAPartGoesOnElsewhere(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		spoil func(resp *http.Response)
		state string
		says  string
	}{
		"cut": {func(resp *http.Response) {
			resp.Body = io.NopCloser(io.MultiReader(io.LimitReader(resp.Body, 1000), broken{}))
		}, "down", "unexpected EOF"},
		"a short end": {func(resp *http.Response) { withoutLength(resp, io.LimitReader(resp.Body, 1000)) }, "down", "early"},
		"nothing":     {func(resp *http.Response) { withoutLength(resp, strings.NewReader("")) }, "down", "are the answer"},
		"endless":     {func(resp *http.Response) { withoutLength(resp, io.MultiReader(resp.Body, endless{})) }, "quarantined", "more bytes"},
		"another length": {func(resp *http.Response) {
			resp.Body = io.NopCloser(io.MultiReader(resp.Body, strings.NewReader("more")))
			resp.ContentLength += 4
			resp.Header.Set("Content-Length", fmt.Sprint(resp.ContentLength))
		}, "down", "are the answer"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newRegistry(t)
			layer := random(5<<20, 6)
			img := r.push("app", "v1", layer)
			first, second := newHub(t, r), newHub(t, r)
			first.spoil.Store(partly(c.spoil))
			for _, changes := range [][]func(*node.Config){{under(first, second), unreachable}, {under(first)}} {
				m := newCluster(t, r, 1, changes...).members[0]
				for off := 0; off < 2<<20; off += 3*small + 100 {
					if err := m.part(img, layer, off); err != nil {
						t.Errorf("from %d on: %v", off, err)
					}
				}
				s := parentsOf(m)[0]
				if s.State != c.state || !strings.Contains(s.Error, c.says) || !strings.Contains(s.Error, s.Name) {
					t.Errorf("the parent is %+v", s)
				}
				if fault := c.state == "quarantined"; fault == strings.Contains(metricsOf(t, m), `granary_corrupt_total{source="parent"} 0`) {
					t.Error("a fault is counted, or one that was none")
				}
			}
		})
	}
}

// broken is a body whose connection breaks.
type broken struct{}

func (broken) Read([]byte) (int, error) { return 0, io.ErrUnexpectedEOF }

// TestWrongPartsAreAParentsFault: a chunk that was put together of a parent's parts is as much its word as one that
// it gave as a whole.
func TestWrongPartsAreAParentsFault(t *testing.T) {
	t.Parallel()
	r := newRegistry(t)
	layer := random(5<<20, 6)
	img := r.push("app", "v1", layer)
	h := newHub(t, r)
	h.spoil.Store(partly(func(resp *http.Response) {
		p, _ := io.ReadAll(resp.Body)
		p[len(p)/2] ^= 1
		resp.Body = io.NopCloser(bytes.NewReader(p))
	}))
	m := newCluster(t, r, 1, under(h)).members[0]
	for off := 0; off < 1<<20; off += small {
		_ = m.part(img, layer, off) // for what is right of it shows in the end
	}
	h.spoil.Store(nil)
	eventually(t, "the pull ends", func() bool { return m.pullToTheEnd(t, img) == nil })
	eventually(t, "the parent is at fault", func() bool { return parentsOf(m)[0].Faults == 1 })
	if strings.Contains(metricsOf(t, m), `granary_corrupt_total{source="parent"} 0`) {
		t.Error("it is not counted")
	}
}

// TestRangesRestOnTheRegistryAndNotOnParents where they are to rest on the upstream alone, and are fetched there
// once. Without a registry the parents are the upstream.
func TestRangesRestOnTheRegistryAndNotOnParents(t *testing.T) {
	t.Parallel()
	for name, only := range map[string]bool{"with a registry": false, "parents only": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newRegistry(t)
			layer := random(24<<20, 78)
			img := r.push("app", "v1", layer)
			h := newHub(t, r)
			var asked atomic.Int64
			h.spoil.Store(partly(func(*http.Response) { asked.Add(1) }))
			c := newCluster(t, r, 2, under(h), func(c *node.Config) { c.UnprovenRanges, c.ParentsOnly = "upstream", only })
			for _, m := range c.members {
				for range 3 {
					if err := m.part(img, layer, 9<<20); err != nil {
						t.Fatal(err)
					}
				}
			}
			want := [2]int{len(c.members), 0} // of the registry, and the parent
			if only {
				want = [2]int{1, len(c.members)} // which asks the registry for the stripe
			}
			if got := [2]int{r.count("GET", "/blobs/"+string(digest.FromBytes(layer))), int(asked.Load())}; got != want {
				t.Errorf("registry and parent were asked %d times, want %d", got, want)
			}
		})
	}
}

// TestWhatAParentGaveIsNoRangeOfTheRegistrys: chunks that came from a parent, of a blob that has not matched yet, are
// not what a range is made of that is to rest on the upstream, before the registry has sent the same.
func TestWhatAParentGaveIsNoRangeOfTheRegistrys(t *testing.T) {
	t.Parallel()
	for name, wrong := range map[string]bool{"wrong chunks": true, "right chunks": false} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newRegistry(t)
			layer := random(48<<20, 78) // more than is read ahead
			img := r.push("app", "v1", layer)
			h := newHub(t, r)
			if wrong {
				h.spoil.Store(partly(func(resp *http.Response) {
					p, _ := io.ReadAll(resp.Body)
					for i := 0; i < len(p); i += 1000 {
						p[i] ^= 1
					}
					resp.Body = io.NopCloser(bytes.NewReader(p))
				}))
			}
			m := newCluster(t, r, 1, under(h), func(c *node.Config) { c.UnprovenRanges = "upstream" }).members[0]
			m.readsSome(t, img.path(digest.FromBytes(layer)), 4<<20)
			if h.sent.Load() < 4<<20 {
				t.Fatalf("%d bytes came from the parent", h.sent.Load())
			}
			var received [2]int64
			for again := range received {
				for off := 0; off < 4<<20; off += 1 << 20 {
					if err := m.part(img, layer, off); err != nil {
						t.Errorf("from %d on: %v", off, err)
					}
				}
				received[again] = m.Status().Received
			}
			if received[0] < 4<<20 || !wrong && received[1] != received[0] {
				t.Errorf("%d bytes had come from the registry after one reading and after two", received)
			}
		})
	}
}

// readsSome begins to read a blob as a whole, and leaves.
func (m *member) readsSome(t *testing.T, path string, n int64) {
	t.Helper()
	resp, err := m.send(http.MethodGet, path)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if _, err := io.CopyN(io.Discard, resp.Body, n); err != nil {
		t.Fatal(err)
	}
}

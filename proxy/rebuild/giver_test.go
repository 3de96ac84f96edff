package rebuild

import (
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"testing"

	"github.com/klauspost/compress/zstd"
	"github.com/klauspost/pgzip"
	"github.com/opencontainers/go-digest"

	"github.com/granary-oci/granary/chunkstore/chunk"
	"github.com/granary-oci/granary/proxy/upstream"
	"github.com/granary-oci/granary/toc/cdc"
	"github.com/granary-oci/granary/toc/recipe"
	"github.com/granary-oci/granary/toc/treetest"
)

// version is the tar of a version of a layer: 30 files of 6 to 18 KB, of which it has every tenth of its own.
func version(t testing.TB, n byte) []byte {
	t.Helper()
	p, err := treetest.Tar(30, func(i int) (string, []byte) {
		seed := [32]byte{byte(i)}
		if i%10 == 3 {
			seed[1] = n
		}
		return fmt.Sprintf("usr/lib/file%04d", i), words(6_000+400*i, seed)
	})
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// words are n bytes that compress to less than half.
func words(n int, seed [32]byte) []byte {
	r := rand.New(rand.NewChaCha8(seed))
	p := make([]byte, 0, n+8)
	for len(p) < n {
		p = fmt.Appendf(p, "%x ", r.Uint32())
	}
	return p[:n]
}

func goGzip(w io.Writer) io.WriteCloser     { return gzip.NewWriter(w) }
func parallelGz(w io.Writer) io.WriteCloser { return pgzip.NewWriter(w) }

func pack(t testing.TB, tar []byte, open func(io.Writer) io.WriteCloser) []byte {
	t.Helper()
	var b bytes.Buffer
	w := open(&b)
	_, err := w.Write(tar)
	if err := errors.Join(err, w.Close()); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// giver is a hub that has one layer.
type giver struct {
	t      testing.TB
	name   string
	tar    []byte
	older  []byte // a tar, of whose chunks there may be dictionaries; nil if it is not there
	offer  []byte
	m      *cdc.Map
	pace   int64
	making int // how often an offer is being made

	// spoil changes an answer at a path; nil leaves it.
	spoil   func(path string, p []byte) ([]byte, error)
	waiting func() // is called when it is asked for an offer that is being made; nil does nothing
	asked   int
	moved   int64
	blamed  []string
}

func newGiver(t testing.TB, tar, blob []byte) *giver {
	t.Helper()
	r, err := recipe.Find(t.Context(), bytes.NewReader(blob), int64(len(blob)))
	if err != nil {
		t.Fatal(err)
	}
	m, err := cdc.Of(t.Context(), bytes.NewReader(tar))
	if err != nil {
		t.Fatal(err)
	}
	h := &giver{t: t, name: "parent hub", tar: tar, m: m}
	h.offers(r, m)
	return h
}

func (h *giver) offers(r *recipe.Recipe, m *cdc.Map) {
	h.t.Helper()
	var err error
	if h.offer, err = EncodeOffer(r, m); err != nil {
		h.t.Fatal(err)
	}
}

func (h *giver) Origin() string { return h.name }
func (h *giver) Pace() int64    { return h.pace }

func (h *giver) Blame(_ chunk.Ref, reason string) { h.blamed = append(h.blamed, reason) }

func (h *giver) Own(_ context.Context, _ chunk.Ref, path string, query url.Values, _ string, most int64) (p []byte, err error) {
	h.asked++
	switch {
	case path == OfferPath && h.making > 0:
		h.making--
		if h.waiting != nil {
			h.waiting()
		}
		return nil, &upstream.StatusError{Code: http.StatusServiceUnavailable}
	case path == OfferPath:
		p = h.offer
	default:
		p, err = h.contents(query)
	}
	if h.spoil != nil && err == nil {
		p, err = h.spoil(path, p)
	}
	if int64(len(p)) > most {
		h.t.Errorf("%d bytes for a question of %d", len(p), most)
	}
	h.moved += int64(len(p))
	return p, err
}

func (h *giver) contents(query url.Values) ([]byte, error) {
	p, err := chunksOf(h.tar, h.m, query.Get(ChunksQuery))
	if err != nil {
		h.t.Errorf("%q: %v", query, err)
		return nil, err
	}
	if h.older == nil || !query.Has(DictionaryQuery) {
		return compressed(p), nil
	}
	m, err := cdc.Of(context.Background(), bytes.NewReader(h.older))
	if err != nil {
		return nil, err
	}
	words, err := chunksOf(h.older, m, query.Get(DictionaryChunksQuery))
	if err != nil {
		h.t.Errorf("%q: %v", query, err)
		return nil, err
	}
	return compress(p, words)
}

// chunksOf are the chunks of a tar that a query names.
func chunksOf(tar []byte, m *cdc.Map, query string) (p []byte, err error) {
	chunks, err := ParseChunks(query, m)
	for _, i := range chunks {
		c := m.Chunks[i]
		p = append(p, tar[c.Offset:c.Offset+c.Size]...)
	}
	return p, err
}

func compressed(p []byte) []byte {
	z, _ := zstd.NewWriter(nil)
	return z.EncodeAll(p, nil)
}

// site is an edge that wants a layer, of which it has older ones.
type site struct {
	*Edge
	dir  string
	blob []byte
	want *Wanted
	kept []byte
}

func newSite(t testing.TB, blob []byte, givers []Giver, old ...[]byte) *site {
	t.Helper()
	b := &site{dir: filepath.Join(t.TempDir(), "rebuild"), blob: blob}
	var err error
	if b.Edge, err = NewEdge(b.dir, true); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = b.Close() })
	b.want = &Wanted{Repository: "registry.test/app", Digest: digest.FromBytes(blob), Size: int64(len(blob)), Givers: givers}
	for _, p := range old {
		b.want.Old = append(b.want.Old, Old{digest.FromBytes(p), int64(len(p)), func(context.Context) io.ReadCloser { return io.NopCloser(bytes.NewReader(p)) }})
	}
	b.want.Keep = func(_ context.Context, r io.Reader) (err error) {
		b.kept, err = io.ReadAll(r)
		return err
	}
	return b
}

// rebuild makes the layer, and holds what is made to be it.
func (b *site) rebuild(t testing.TB) error {
	t.Helper()
	b.kept = nil
	err := b.Rebuild(t.Context(), b.want)
	if err == nil && !bytes.Equal(b.kept, b.blob) {
		t.Error("another layer is kept")
	}
	if err != nil && b.kept != nil {
		t.Errorf("something is kept, and %v", err)
	}
	left, err2 := os.ReadDir(b.dir)
	if err2 != nil || len(left) > 0 {
		t.Errorf("%d files are left, %v", len(left), err2)
	}
	return err
}

package rebuild

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/granary-oci/granary/chunkstore/chunk"
	"github.com/granary-oci/granary/toc/cdc"
	"github.com/granary-oci/granary/toc/recipe"
)

// TestOnlyWhatChangedComes of a layer, whatever packed it: some 1.15 times what its new chunks take in zstd, and the offer.
func TestOnlyWhatChangedComes(t *testing.T) {
	for name, open := range map[string]func(io.Writer) io.WriteCloser{"Go's gzip": goGzip, "pgzip": parallelGz} {
		t.Run(name, func(t *testing.T) {
			old, now := version(t, 1), version(t, 2)
			blob := pack(t, now, open)
			h := newGiver(t, now, blob)
			h.making = 2
			b := newSite(t, blob, []Giver{h}, pack(t, old, goGzip))
			if err := b.rebuild(t); err != nil {
				t.Fatal(err)
			}
			most := newBytes(t, old, now)*115/100 + int64(len(h.offer))
			if h.moved > most || h.moved > int64(len(blob))/3 {
				t.Errorf("%d bytes came, of a layer of %d; new are %d", h.moved, len(blob), most)
			}
			l := b.Ledger()
			if l.Layers != 1 || l.Asked != int64(len(blob)) || l.Moved.Moved != h.moved || l.Saved != l.Asked-h.moved {
				t.Errorf("%+v", l)
			}
			if len(l.Last) != 1 || l.Last[0].Repository != "registry.test/app" || l.Last[0].Moved != l.Moved {
				t.Errorf("%+v", l.Last)
			}
		})
	}
}

// newBytes is what the chunks that are new in a tar take in zstd.
func newBytes(t testing.TB, old, now []byte) int64 {
	t.Helper()
	known := make(map[string]bool)
	var fresh []byte
	for i, tar := range [][]byte{old, now} {
		err := cdc.Walk(t.Context(), bytes.NewReader(tar), func(c cdc.Chunk, p []byte) error {
			if i == 1 && c.Inline == nil && !known[string(c.Digest[:])] {
				fresh = append(fresh, p...)
			}
			known[string(c.Digest[:])] = true
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	return int64(len(compressed(fresh)))
}

// TestTheNextHubGoesOn where one stopped that gave wrong bytes or has gone: what came is not asked for again.
func TestTheNextHubGoesOn(t *testing.T) {
	old, now := version(t, 1), version(t, 2)
	blob := pack(t, now, goGzip)
	for name, spoil := range map[string]func(path string, p []byte) ([]byte, error){
		"wrong bytes": func(path string, p []byte) ([]byte, error) {
			if path == ContentsPath {
				p = compressed(words(60_000, [32]byte{8}))
			}
			return p, nil
		},
		"no offer": func(string, []byte) ([]byte, error) { return nil, chunk.ErrNotFound },
		"gone":     func(string, []byte) ([]byte, error) { return nil, errors.New("gone") },
	} {
		t.Run(name, func(t *testing.T) {
			first := newGiver(t, now, blob)
			second := *first
			second.name = "parent second"
			first.spoil = spoil
			reads := 0
			b := newSite(t, blob, []Giver{first, &second}, pack(t, old, goGzip))
			open := b.want.Old[0].Open
			b.want.Old[0].Open = func(ctx context.Context) io.ReadCloser { reads++; return open(ctx) }
			if err := b.rebuild(t); err != nil {
				t.Fatal(err)
			}
			if reads != 1 || len(second.blamed) > 0 || len(first.blamed) > 0 != (name == "wrong bytes") {
				t.Errorf("the older layer is read %d times; %q, %q", reads, first.blamed, second.blamed)
			}
			if l := b.Ledger(); l.Last[0].From != second.name {
				t.Errorf("%+v", l)
			}
		})
	}
}

// TestNothingIsWorthIt where older layers have nothing, or fetching is fast: then nobody is asked, or no contents are.
func TestNothingIsWorthIt(t *testing.T) {
	now := version(t, 2)
	blob := pack(t, now, goGzip)
	h := newGiver(t, now, blob)
	var no *notWorthError
	b := newSite(t, blob, []Giver{h}, pack(t, words(300_000, [32]byte{7}), goGzip), []byte("no gzip"), blob[:len(blob)/20])
	if err := b.rebuild(t); !errors.As(err, &no) || h.asked != 1 {
		t.Errorf("of another layer: %v, after %d questions", err, h.asked)
	}
	h.asked, h.pace = 0, 1<<20
	b = newSite(t, blob, []Giver{h}, pack(t, version(t, 1), goGzip))
	b.bytes = false
	if err := b.rebuild(t); !errors.As(err, &no) || h.asked != 0 {
		t.Errorf("on a fast line: %v, after %d questions", err, h.asked)
	}
	h.pace = 1 << 12
	b = newSite(t, blob, []Giver{h}, pack(t, version(t, 1), goGzip))
	b.bytes = false
	if err := b.rebuild(t); err != nil {
		t.Errorf("on a slow one: %v", err)
	}
}

func TestDecisions(t *testing.T) {
	r := recipeOf(250_000_000)
	for _, c := range []struct {
		decision
		old, missing int64
		ask, follow  bool
	}{
		{decision{true, 100_000_000, 1 << 40}, 100_000_000, 50_000_000, true, true},
		{decision{true, 100_000_000, 1000}, 100_000_000, 240_000_000, true, false},
		{decision{false, 100_000_000, 0}, 100_000_000, 50_000_000, true, true},
		{decision{false, 100_000_000, 1_000_000}, 100_000_000, 50_000_000, true, true},
		{decision{false, 100_000_000, 1_000_000}, 100_000_000, 230_000_000, true, false}, // too little saved
		{decision{false, 100_000_000, 6_000_000}, 100_000_000, 50_000_000, true, true},   // 3.3 + 12.5 of 16.7 s
		{decision{false, 100_000_000, 7_000_000}, 100_000_000, 50_000_000, true, false},  // 2.9 + 12.5 of 14.3 s
		{decision{false, 100_000_000, 50_000_000}, 100_000_000, 0, false, false},
		{decision{false, 1_000_000, 600_000}, 1_000_000, 0, false, true}, // 1.7 s are short
	} {
		ask := c.decision.ask(c.old) == nil
		how := *r
		how.Members = []recipe.Member{{Header: r.Members[0].Header, Size: c.size * 5 / 2}}
		follow := c.decision.follow(&how, 100_000, c.missing) == nil
		if ask != c.ask || follow != c.follow {
			t.Errorf("%+v: asks %v, follows %v", c, ask, follow)
		}
	}
}

// TestBatches holds requests to what a hub takes, and to about a megabyte.
func TestBatches(t *testing.T) {
	for name, sizes := range map[string][]int64{
		"large":     slices.Repeat([]int64{cdc.MaxSize}, 100),
		"small":     slices.Repeat([]int64{10}, 3000),
		"with gaps": slices.Repeat([]int64{2000, 2001}, 1500),
	} {
		for _, packed := range []float64{0, 0.01, 0.4, 2} {
			m := mapOf(sizes...)
			l := &line{m: m, of: chunk.Ref{Total: int64(packed * float64(m.Size()))}}
			var all, got []int
			for i, c := range m.Chunks {
				if c.Size != 2001 {
					all = append(all, i)
				}
			}
			for _, b := range l.batches(all) {
				asked, err := ParseChunks(FormatChunks(b, m), m)
				if err != nil || !slices.Equal(asked, b) {
					t.Errorf("%s: a hub refuses %d chunks: %v", name, len(b), err)
				}
				if n := float64(l.bytes(b)) * packed; n > 1.001*batchBytes && len(b) > 1 {
					t.Errorf("%s: a request brings %.0f bytes", name, n)
				}
				got = append(got, b...)
			}
			if !slices.Equal(got, all) {
				t.Errorf("%s: %d chunks are asked for of %d", name, len(got), len(all))
			}
		}
	}
}

// TestWhatACrashHasLeft is gone when an edge begins.
func TestWhatACrashHasLeft(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "rebuild")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "layer-1"), []byte("tar"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := NewEdge(dir, true); err != nil {
		t.Fatal(err)
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
		t.Errorf("%d files are left, %v", len(left), err)
	}
}

// TestWhoEndsEndsAtOnce: an edge that is closed, or whose caller goes, waits for no hub.
func TestWhoEndsEndsAtOnce(t *testing.T) {
	now := version(t, 2)
	blob := pack(t, now, goGzip)
	for name, end := range map[string]func(b *site, cancel func()){
		"the edge":   func(b *site, _ func()) { b.end() },
		"the caller": func(_ *site, cancel func()) { cancel() },
	} {
		t.Run(name, func(t *testing.T) {
			h := newGiver(t, now, blob)
			h.making = 1 << 30
			b := newSite(t, blob, []Giver{h}, pack(t, version(t, 1), goGzip))
			ctx, cancel := context.WithCancel(t.Context())
			h.waiting = func() { end(b, cancel) }
			if err := b.Rebuild(ctx, b.want); !errors.Is(err, context.Canceled) {
				t.Error(err)
			}
			if !b.Tries(b.want.Digest) {
				t.Error("it is not tried again")
			}
		})
	}
}

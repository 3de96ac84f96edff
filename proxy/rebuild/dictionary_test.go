package rebuild

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/granary-oci/granary/chunkstore/chunk"
	"github.com/granary-oci/granary/toc/cdc"
	"github.com/granary-oci/granary/toc/treetest"
)

// program is the tar of a version of a layer in which one file of ten is built anew: each of its chunks changes, and most
// of its bytes do not. Two of the files are of so many bytes, one of which is among these.
func program(t testing.TB, n, large int) []byte {
	t.Helper()
	p, err := treetest.Tar(30, func(i int) (string, []byte) {
		size := 6_000 + 400*i
		if i == 13 || i == 20 {
			size = large
		}
		p := make([]byte, size)
		_, _ = rand.NewChaCha8([32]byte{byte(i)}).Read(p)
		for k := range p {
			p[k] = 'a' + p[k]&15
		}
		for at := n * 7; i%10 == 3 && at < len(p); at += 3_000 {
			p[at] = byte('A' + n)
		}
		return fmt.Sprintf("usr/lib/file%04d", i), p
	})
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// TestOfAFileThatIsLikeAnOlderOne comes what is different: of a layer that is made again, and of one that is read here and there.
func TestOfAFileThatIsLikeAnOlderOne(t *testing.T) {
	old, now := program(t, 1, 300_000), program(t, 2, 300_000)
	blob, oldBlob, fresh := pack(t, now, goGzip), pack(t, old, parallelGz), newBytes(t, old, now)
	hub := newGiver(t, now, blob)
	for name, c := range map[string]struct {
		hub  func(h *giver)
		like bool
	}{
		"the hub has it":   {func(h *giver) { h.older = old }, true},
		"it has not":       {func(*giver) {}, false},
		"it takes another": {func(h *giver) { h.older = program(t, 3, 300_000) }, false},
	} {
		for how, get := range map[string]func(t *testing.T, h *giver) error{
			"made again": func(t *testing.T, h *giver) error {
				err := newSite(t, blob, []Giver{h}, oldBlob).rebuild(t)
				h.moved -= int64(len(h.offer))
				return err
			},
			"read": func(t *testing.T, h *giver) error {
				older := lookedAt(t, oldBlob)
				<-older.ready
				r := newReading(t, now, older, &door{giver: h})
				return r.get(t, t.Context(), r.all()...)
			},
		} {
			t.Run(name+", "+how, func(t *testing.T) {
				h := *hub
				c.hub(&h)
				if err := get(t, &h); err != nil || len(h.blamed) > 0 {
					t.Errorf("%v, blamed for %q", err, h.blamed)
				}
				if c.like && h.moved > fresh/4 || !c.like && h.moved < fresh*9/10 {
					t.Errorf("%d bytes came, new are %d", h.moved, fresh)
				}
			})
		}
	}
}

// TestAHubThatLiesByADictionary is at fault: both mean the same one.
func TestAHubThatLiesByADictionary(t *testing.T) {
	old, now := program(t, 1, 100_000), program(t, 2, 100_000)
	blob := pack(t, now, goGzip)
	h := newGiver(t, now, blob)
	h.older = old
	h.tar = bytes.ReplaceAll(now, []byte{'C'}, []byte{'D'})
	if err := newSite(t, blob, []Giver{h}, pack(t, old, goGzip)).rebuild(t); !chunk.IsCorrupt(err) || len(h.blamed) != 1 {
		t.Errorf("%v, blamed for %q", err, h.blamed)
	}
}

// TestADictionaryThatNobodyHasNamed is its sender's fault, with the first of the contents and in their midst, and whatever was asked.
func TestADictionaryThatNobodyHasNamed(t *testing.T) {
	old, now := program(t, 1, 100_000), program(t, 2, 100_000)
	blob := pack(t, now, goGzip)
	words := []byte("a dictionary of words that were never here")
	for name, spoil := range map[string]func(p []byte) []byte{
		"at first": func(p []byte) []byte { return packedWith(t, unpacked(t, p), words) },
		"in the midst": func(p []byte) []byte {
			q := unpacked(t, p)
			return append(compressed(q[:len(q)-1]), packedWith(t, q[len(q)-1:], words)...)
		},
	} {
		for how, layers := range map[string][][]byte{"alone": nil, "beside an older layer": {old}} {
			h := &door{giver: newGiver(t, now, blob)}
			h.spoil = func(_ string, p []byte) ([]byte, error) { return spoil(p), nil }
			older := lookedAt(t, layers...)
			<-older.ready
			r := newReading(t, now, older, h)
			if err := r.get(t, t.Context(), r.all()...); !chunk.IsCorrupt(err) || len(h.blamed) == 0 {
				t.Errorf("%s, %s: %v, blamed for %q", name, how, err, h.blamed)
			}
		}
	}
}

func packedWith(t *testing.T, p, words []byte) []byte {
	t.Helper()
	p, err := compress(p, words)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// TestADictionaryThatIsGone: what was to be read with it is asked for again, without it.
func TestADictionaryThatIsGone(t *testing.T) {
	old, now := program(t, 1, 100_000), program(t, 2, 100_000)
	h := &door{giver: newGiver(t, now, pack(t, now, goGzip))}
	h.older = old
	older := lookedAt(t, old)
	<-older.ready
	for i := range older.maps {
		older.maps[i].read = func(context.Context, []int) ([]byte, error) { return nil, errors.New("gone") }
	}
	r := newReading(t, now, older, h)
	if err := r.get(t, t.Context(), r.all()...); err != nil || len(h.blamed) > 0 {
		t.Errorf("%v, blamed for %q", err, h.blamed)
	}
}

// TestAHubCompressesWithADictionary that it can have at once; else it answers without one.
func TestAHubCompressesWithADictionary(t *testing.T) {
	old, now := program(t, 1, 1_200_000), program(t, 2, 1_200_000)
	oldBlob, blob := pack(t, old, goGzip), pack(t, now, goGzip)
	b := newBench(oldBlob, blob)
	ctx, stop := context.WithCancel(t.Context())
	running := make(chan struct{})
	go func() { defer close(running); b.Run(ctx) }()
	defer func() { stop(); <-running }()
	name, oldName := digest.FromBytes(blob), digest.FromBytes(oldBlob)
	for d, p := range b.layers {
		for later := new(LaterError); ; {
			if _, err := b.Map(ctx, d, int64(len(p))); err == nil {
				break
			} else if !errors.As(err, &later) {
				t.Fatal(err)
			}
		}
	}
	m, err := cdc.Of(ctx, bytes.NewReader(now))
	if err != nil {
		t.Fatal(err)
	}
	m1, err := cdc.Of(ctx, bytes.NewReader(old))
	if err != nil {
		t.Fatal(err)
	}
	dicts, had := newDictionaries(m), newDictionaries(m1).has
	dicts.add(oldMap{oldName, m1, func(*cdc.Chunk) bool { return true }, nil})
	var fresh []int
	for i := range m.Chunks {
		if c := &m.Chunks[i]; c.Inline == nil && !had[c.Digest] {
			fresh = append(fresh, i)
		}
	}
	d := dicts.of(fresh)
	if d == nil {
		t.Fatal("there is none")
	}
	lent, err := b.open(ctx, oldName)
	if err != nil {
		t.Fatal(err)
	}
	for name2, c := range map[string]struct {
		*Dictionary
		with bool
	}{
		"none":                {nil, false},
		"one":                 {&Dictionary{oldName, lent, d.chunks}, true},
		"of unknown chunks":   {&Dictionary{oldName, lent, "1-999999"}, false},
		"of no chunks":        {&Dictionary{oldName, lent, ""}, false},
		"of an unknown layer": {&Dictionary{digest.FromString("x"), Layer{strings.NewReader("x"), 1, func() {}}, d.chunks}, false},
	} {
		p, err := b.packed(t, name, FormatChunks(fresh, m), c.Dictionary)
		if err != nil {
			t.Fatalf("%s: %v", name2, err)
		}
		if with := dictionaryOf(p) != 0; with != c.with || with != (len(p) < len(now)/20) {
			t.Errorf("%s: %d bytes, with one: %v", name2, len(p), with)
		}
	}
}

// TestFilesOf a tar are told by its map, however long their names are, and behind more headers than that has inline.
func TestFilesOf(t *testing.T) {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	contents := make(map[string]string)
	for i := range 2 * cdc.MaxInline / block {
		if err := w.WriteHeader(&tar.Header{Name: fmt.Sprint("dir/link", i), Linkname: "target", Typeflag: tar.TypeSymlink}); err != nil {
			t.Fatal(err)
		}
	}
	for i, name := range []string{"of this the header is not inline", "a", "dir/" + strings.Repeat("long/", 60) + "name", "empty", "large", "./dot", "z"} {
		p := words([]int{1000, 10, 70_000, 0, 900_000, 1, 512}[i], [32]byte{byte(i)})
		format := []tar.Format{tar.FormatPAX, tar.FormatGNU}[i%2]
		err := w.WriteHeader(&tar.Header{Name: name, Size: int64(len(p)), Typeflag: tar.TypeReg, Format: format})
		if _, err2 := w.Write(p); errors.Join(err, err2) != nil {
			t.Fatal(err, err2)
		}
		if len(p) > 0 && i > 0 {
			contents["/"+strings.TrimPrefix(name, "./")] = string(p)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	m, err := cdc.Of(t.Context(), &b)
	if err != nil {
		t.Fatal(err)
	}
	files := filesOf(m)
	if len(files) != len(contents) {
		t.Errorf("%d files, want %d", len(files), len(contents))
	}
	for _, f := range files {
		if f.end-f.start != int64(len(contents[f.name])) || at(files, f.start).name != f.name || at(files, f.end-1).name != f.name || at(files, f.end) == at(files, f.start) {
			t.Errorf("%.30s is from %d to %d", f.name, f.start, f.end)
		}
		if c := m.Chunks[m.Find(f.start)]; c.Offset != f.start || c.Inline != nil {
			t.Errorf("%.30s does not begin with a chunk", f.name)
		}
	}
}

// FuzzDictionaries: whatever maps say, no dictionary is one that a hub would refuse.
func FuzzDictionaries(f *testing.F) {
	for n := range 2 {
		m, err := cdc.Of(f.Context(), bytes.NewReader(version(f, byte(n))))
		if err != nil {
			f.Fatal(err)
		}
		f.Add(m.Append(nil), m.Append(nil), 3)
	}
	f.Fuzz(func(t *testing.T, newer, older []byte, first int) {
		m, err := cdc.Decode(newer)
		if err != nil {
			return
		}
		o, err := cdc.Decode(older)
		if err != nil {
			return
		}
		d := newDictionaries(m)
		clear(d.has)
		d.add(oldMap{"sha256:x", o, func(c *cdc.Chunk) bool { return c.Size > 1 }, nil})
		var some []int
		for i := max(first, 0); i < len(m.Chunks) && len(some) < 50; i++ {
			if m.Chunks[i].Inline == nil {
				some = append(some, i)
			}
		}
		if got := d.of(some); got != nil {
			if _, err := ParseChunks(got.chunks, o); err != nil {
				t.Error(err)
			}
		}
	})
}

// TestDictionariesGrow while older layers are looked at, whoever asks for chunks meanwhile.
func TestDictionariesGrow(t *testing.T) {
	old, err := cdc.Of(t.Context(), bytes.NewReader(version(t, 1)))
	if err != nil {
		t.Fatal(err)
	}
	now, err := cdc.Of(t.Context(), bytes.NewReader(version(t, 2)))
	if err != nil {
		t.Fatal(err)
	}
	var all []int
	for i, c := range now.Chunks {
		if c.Inline == nil {
			all = append(all, i)
		}
	}
	o := &Older{ready: make(chan struct{})}
	tar := (&Edge{}).Tar(chunk.Ref{}, now, o)
	var asking sync.WaitGroup
	for range 4 {
		asking.Go(func() {
			for len(o.looked()) < 50 {
				tar.dictionary(all[:1])
			}
		})
	}
	for range 50 {
		o.addMap(oldMap{"sha256:x", old, func(*cdc.Chunk) bool { return true }, nil})
		time.Sleep(time.Millisecond) // for some to know of it, and others not
	}
	asking.Wait()
	if tar.dictionary(all) == nil || tar.like.added != 50 {
		t.Errorf("of 50 layers %d were taken", tar.like.added)
	}
}

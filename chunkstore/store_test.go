package chunkstore_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/granary-oci/granary/chunkstore"
	"github.com/granary-oci/granary/chunkstore/chunk"
	"github.com/granary-oci/granary/chunkstore/storetest"
)

// faults collects what a store reports.
type faults struct {
	mu  sync.Mutex
	all []error
}

func (f *faults) report(err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.all = append(f.all, err)
}

func (f *faults) count() int { return len(f.list()) }

func (f *faults) list() []error {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.all)
}

func open(t testing.TB, dir string, cfg chunkstore.Config) *chunkstore.Disk {
	t.Helper()
	if cfg.SyncEvery == 0 {
		cfg.SyncEvery = 20 * time.Millisecond
	}
	s, err := chunkstore.Open(dir, cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

func TestStores(t *testing.T) {
	disk := func(t *testing.T) chunk.Store { return open(t, t.TempDir(), chunkstore.Config{}) }
	memory := func(*testing.T) chunk.Store { return chunkstore.NewMemory(64 << 20) }
	for name, store := range map[string]func(t *testing.T) chunk.Store{
		"memory":              memory,
		"disk":                disk,
		"disk, verify always": func(t *testing.T) chunk.Store { return open(t, t.TempDir(), chunkstore.Config{VerifyAlways: true}) },
		"disk with a budget":  func(t *testing.T) chunk.Store { return open(t, t.TempDir(), chunkstore.Config{Budget: 80 << 20}) },
		"memory before disk":  func(t *testing.T) chunk.Store { return chunk.Tier(chunkstore.NewMemory(4<<20), disk(t)) },
		"named":               func(t *testing.T) chunk.Store { return chunk.NamedStore("disk", disk(t)) },
		"stack": func(t *testing.T) chunk.Store {
			return chunkstore.NewStack(chunkstore.NewMemory(4<<20), disk(t).(*chunkstore.Disk))
		},
		"stack without disk": func(*testing.T) chunk.Store { return chunkstore.NewStack(chunkstore.NewMemory(64<<20), nil) },
	} {
		t.Run(name, func(t *testing.T) { storetest.Run(t, store) })
	}
}

// fill puts all chunks of a blob.
func fill(t testing.TB, s chunk.Store, b storetest.Blob) {
	t.Helper()
	for i := range b.Len() {
		if err := s.Put(context.Background(), b.At(i), b.Chunk(i)); err != nil {
			t.Fatal(err)
		}
	}
}

// written waits until what was put is on disk, and not on its way there.
func written(t testing.TB, s *chunkstore.Disk) {
	t.Helper()
	if err := s.Sync(); err != nil {
		t.Fatal(err)
	}
}

// has reports whether the store gives chunk i, right.
func has(t testing.TB, s chunk.Source, b storetest.Blob, i int) bool {
	t.Helper()
	p, err := s.Get(context.Background(), b.At(i))
	if err == nil && !bytes.Equal(p, b.Chunk(i)) {
		t.Fatalf("%s: wrong bytes were served", b.At(i))
	}
	return err == nil
}

func read(t testing.TB, s *chunkstore.Disk, b storetest.Blob, far chunk.Source, report func(error)) {
	t.Helper()
	src := chunk.Cache(s, chunk.Verify("far", far), new(chunk.Flight), report)
	r := chunk.NewBlob(b.Map, src, chunk.BlobConfig{Window: 8 << 20, Proofs: s}).Open(context.Background())
	defer r.Close()
	got, err := io.ReadAll(r)
	if err != nil || !bytes.Equal(got, b.Bytes) {
		t.Fatalf("read %d of %d bytes: %v", len(got), len(b.Bytes), err)
	}
}

func TestWhatIsReadInOrderIsProvenAndSurvives(t *testing.T) {
	dir := t.TempDir()
	for _, algorithm := range []digest.Algorithm{digest.SHA256, digest.SHA512} {
		b := storetest.NewBlob(t, algorithm, 9*chunk.Size+17, 1)
		s := open(t, dir, chunkstore.Config{})
		read(t, s, b, b, nil)
		if !s.Proven(b.Blob()) {
			t.Error("the blob is not proven")
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		s = open(t, dir, chunkstore.Config{})
		if !s.Proven(b.Blob()) {
			t.Error("the proof did not survive")
		}
		if f, ok := s.Lend(b.Blob(), 0, b.Size()); ok {
			f.Close()
			t.Error("a file was lent that this process has not checked")
		}
		for i := range b.Len() {
			if !has(t, s, b, i) {
				t.Errorf("chunk %d did not survive", i)
			}
		}
		f, ok := s.Lend(b.Blob(), 5, b.Size()-5)
		if !ok {
			t.Fatal("a checked file was not lent")
		}
		got, err := io.ReadAll(io.LimitReader(f, b.Size()-5))
		f.Close()
		if err != nil || !bytes.Equal(got, b.Bytes[5:]) {
			t.Errorf("the lent file is not the blob: %v", err)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

func TestABlobThatFillsUpIsProvenInTheBackground(t *testing.T) {
	s := open(t, t.TempDir(), chunkstore.Config{})
	b := storetest.NewBlob(t, digest.SHA256, 4*chunk.Size+1, 2)
	for _, i := range []int{3, 0, 4, 2, 1} {
		if err := s.Put(t.Context(), b.At(i), b.Chunk(i)); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, "the blob is proven", func() bool { return s.Proven(b.Blob()) })
}

func TestABlobThatDoesNotMatchIsDropped(t *testing.T) {
	var f faults
	s := open(t, t.TempDir(), chunkstore.Config{Report: f.report})
	b := storetest.NewBlob(t, digest.SHA256, 3*chunk.Size, 3)
	for i := range b.Len() {
		p := bytes.Clone(b.Chunk(i))
		p[7] ^= byte(i) // all but the first are wrong
		if err := s.Put(t.Context(), b.At(i), p); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, "the blob is dropped", func() bool {
		_, err := s.Stat(b.Blob())
		return errors.Is(err, chunk.ErrNotFound) && f.count() > 0
	})
	if f.count() != 1 || !chunk.IsCorrupt(f.list()[0]) {
		t.Errorf("reported: %v", f.list())
	}
	if u := s.Usage(); u.Bytes != 0 {
		t.Errorf("%d bytes are counted after the drop", u.Bytes)
	}
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for range 1000 {
		if ok() {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Fatalf("never: %s", what)
}

func TestDigestsOfChunksAreFoundInOtherBlobs(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir, chunkstore.Config{})
	shared := storetest.Content(chunk.Size, 4)
	a := append(bytes.Clone(shared), storetest.Content(100, 5)...)
	ma, _ := chunk.Grid(digest.FromBytes(a), int64(len(a)))
	blobA := storetest.Blob{Map: ma, Bytes: a}
	fill(t, s, blobA)
	other := chunk.Ref{Blob: digest.FromString("b"), Total: 5 * chunk.Size, Offset: 2 * chunk.Size, Size: chunk.Size, Digest: digest.FromBytes(shared)}
	for _, state := range []string{"after a sync", "after a restart"} {
		if err := s.Sync(); err != nil {
			t.Fatal(err)
		}
		if state == "after a restart" {
			_ = s.Close()
			s = open(t, dir, chunkstore.Config{})
			other.Blob = digest.FromString("c")
		}
		if p, err := s.Get(t.Context(), other); err != nil || !bytes.Equal(p, shared) {
			t.Errorf("%s: %d bytes, %v", state, len(p), err)
		}
		other.Digest = ""
		if p, err := s.Get(t.Context(), other); err != nil || !bytes.Equal(p, shared) {
			t.Errorf("%s: the chunk was not copied: %d bytes, %v", state, len(p), err)
		}
		other.Digest = digest.FromBytes(shared)
	}
}

func TestEviction(t *testing.T) {
	dir := t.TempDir()
	const budget = 20 << 20
	s := open(t, dir, chunkstore.Config{Budget: budget})
	manifest := storetest.NewBlob(t, digest.SHA256, 1000, 100)
	fill(t, s, manifest)
	held := storetest.NewBlob(t, digest.SHA256, 3*chunk.Size, 101)
	fill(t, s, held)
	release := s.Retain(held.Blob(), held.Size())
	var blobs []storetest.Blob
	for i := range 20 {
		b := storetest.NewBlob(t, digest.SHA256, 2*chunk.Size, uint64(200+i))
		blobs = append(blobs, b)
		fill(t, s, b)
		if u := s.Usage(); u.Bytes > budget {
			t.Fatalf("%d bytes are kept, above the budget", u.Bytes)
		}
	}
	if !has(t, s, manifest, 0) {
		t.Error("the manifest went before the layers")
	}
	for i := range held.Len() {
		if !has(t, s, held, i) {
			t.Error("a blob that is being read was evicted")
		}
	}
	if has(t, s, blobs[0], 0) || !has(t, s, blobs[19], 0) {
		t.Error("not the least recently read went first")
	}
	release()
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	var bytesOnDisk int64
	_ = filepath.Walk(filepath.Join(dir, "blobs"), func(_ string, info os.FileInfo, err error) error {
		if err == nil && info.Mode().IsRegular() {
			bytesOnDisk += info.Size()
		}
		return nil
	})
	if bytesOnDisk > budget {
		t.Errorf("%d bytes are in files, above the budget", bytesOnDisk)
	}
	s = open(t, dir, chunkstore.Config{Budget: budget})
	for i := range 9 { // the order of reads survived
		fill(t, s, storetest.NewBlob(t, digest.SHA256, 2*chunk.Size, uint64(300+i)))
	}
	if has(t, s, blobs[13], 0) {
		t.Error("an old blob outlived newer ones after the restart")
	}
}

func TestEverythingHeldIsAFullStore(t *testing.T) {
	s := open(t, t.TempDir(), chunkstore.Config{Budget: 2 << 20})
	b := storetest.NewBlob(t, digest.SHA256, 4*chunk.Size, 1)
	defer s.Retain(b.Blob(), b.Size())()
	var full error
	for i := range b.Len() {
		full = errors.Join(full, s.Put(t.Context(), b.At(i), b.Chunk(i)))
	}
	if !errors.Is(full, chunkstore.ErrFull) {
		t.Errorf("got %v, want %v", full, chunkstore.ErrFull)
	}
}

// TestUsageAddsUp does everything at once and then counts.
func TestUsageAddsUp(t *testing.T) {
	s := open(t, t.TempDir(), chunkstore.Config{Budget: 12 << 20, SyncEvery: 5 * time.Millisecond})
	var blobs []storetest.Blob
	for i := range 12 {
		blobs = append(blobs, storetest.NewBlob(t, digest.SHA256, (i%3)*chunk.Size+i+1, uint64(i)))
	}
	var wg sync.WaitGroup
	for w := range 6 {
		wg.Go(func() {
			rng := rand.New(rand.NewPCG(uint64(w), 0))
			for range 150 {
				b := blobs[rng.IntN(len(blobs))]
				i := rng.IntN(b.Len())
				switch rng.IntN(8) {
				case 0:
					release := s.Retain(b.Blob(), b.Size())
					_ = has(t, s, b, i)
					release()
				case 1:
					if f, ok := s.Lend(b.Blob(), 0, b.Size()); ok {
						got, err := io.ReadAll(io.LimitReader(f, b.Size()))
						if err != nil || !bytes.Equal(got, b.Bytes) {
							t.Errorf("lent: %d bytes, %v", len(got), err)
						}
						f.Close()
					}
				case 2:
					s.Refute(b.Blob())
				case 3:
					_ = s.Sync()
				case 4, 5:
					_ = has(t, s, b, i)
				default:
					if err := s.Put(context.Background(), b.At(i), b.Chunk(i)); err != nil && !errors.Is(err, chunkstore.ErrFull) {
						t.Error(err)
					}
				}
			}
		})
	}
	wg.Wait()
	if err := s.Sync(); err != nil {
		t.Fatal(err)
	}
	var want int64
	for _, b := range blobs {
		for i := range b.Len() {
			if has(t, s, b, i) {
				want += b.At(i).Size
			}
		}
	}
	if u := s.Usage(); u.Bytes != want {
		t.Errorf("usage is %d bytes, %d are there", u.Bytes, want)
	}
}

func TestLock(t *testing.T) {
	dir := t.TempDir()
	unlock, err := chunkstore.Lock(dir, "pid 1, admin http://127.0.0.1:1")
	if err != nil {
		t.Fatal(err)
	}
	var locked *chunkstore.LockedError
	if _, err := chunkstore.Lock(dir, "another"); !errors.As(err, &locked) || locked.Holder != "pid 1, admin http://127.0.0.1:1" {
		t.Errorf("got %v", err)
	}
	unlock()
	again, err := chunkstore.Lock(dir, "another")
	if err != nil {
		t.Fatal(err)
	}
	again()
}

// TestAChunkIsFoundByItsDigest in whatever blob has it, and is stored nowhere else for
// that: the digest may be a stranger's.
func TestAChunkIsFoundByItsDigest(t *testing.T) {
	s := open(t, t.TempDir(), chunkstore.Config{})
	b := storetest.NewBlob(t, digest.SHA256, 2*chunk.Size+1, 1)
	for i := range b.Len() {
		if err := s.Put(t.Context(), b.At(i), b.Chunk(i)); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Sync(); err != nil { // which digests the chunks that nobody has linked
		t.Fatal(err)
	}
	before := s.Usage()
	for i := range b.Len() {
		p, ref, err := s.Find(t.Context(), digest.FromBytes(b.Chunk(i)))
		if err != nil || !bytes.Equal(p, b.Chunk(i)) || ref.Key() != b.At(i).Key() {
			t.Errorf("chunk %d: %s, %v", i, ref, err)
		}
	}
	if _, _, err := s.Find(t.Context(), digest.FromString("nowhere")); !errors.Is(err, chunk.ErrNotFound) {
		t.Errorf("a chunk that is nowhere: %v", err)
	}
	if after := s.Usage(); after != before {
		t.Errorf("the store holds %+v, and held %+v", after, before)
	}
}

func TestLinksOfAProvenBlob(t *testing.T) {
	s, err := chunkstore.Open(t.TempDir(), chunkstore.Config{})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	whole := make([]byte, 2*chunk.Size+9)
	m, err := chunk.Grid(digest.FromBytes(whole), int64(len(whole)))
	if err != nil {
		t.Fatal(err)
	}
	var links []chunk.Link
	prefix := chunk.NewPrefix(m.Blob())
	for i := range m.Len() {
		ref := m.At(i)
		p := whole[ref.Offset : ref.Offset+ref.Size]
		if err := s.Put(t.Context(), ref, p); err != nil {
			t.Fatal(err)
		}
		_, _ = prefix.Write(p)
		links = append(links, prefix.Link())
		s.Link(ref, prefix.Link())
		if _, _, ok := s.Links(ref); ok {
			t.Errorf("chunk %d has links that prove it before the blob has matched", i)
		}
	}
	s.Prove(m.Blob(), m.Size())
	for i, want := range [][2]chunk.Link{{"", links[0]}, {links[0], links[1]}, {links[1], ""}} {
		if before, after, ok := s.Links(m.At(i)); !ok || before != want[0] || after != want[1] {
			t.Errorf("chunk %d: %x %x %v", i, before, after, ok)
		}
	}
	if _, _, ok := s.Links(chunk.Ref{Blob: m.Blob(), Total: 5, Size: 5}); ok {
		t.Error("a chunk of another size has links")
	}
}

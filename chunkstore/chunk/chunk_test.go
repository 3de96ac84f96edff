package chunk_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"testing/iotest"
	"testing/synctest"

	"github.com/opencontainers/go-digest"

	"github.com/granary-oci/granary/chunkstore/chunk"
)

// blob is a blob in memory, and a source of its chunks.
type blob struct {
	*chunk.Map
	bytes []byte
	gets  atomic.Int64
}

func newBlob(t testing.TB, n int) *blob {
	t.Helper()
	p := make([]byte, n)
	_, _ = rand.NewChaCha8([32]byte{byte(n)}).Read(p)
	m, err := chunk.Grid(digest.FromBytes(p), int64(n))
	if err != nil {
		t.Fatal(err)
	}
	return &blob{Map: m, bytes: p}
}

func (b *blob) Get(ctx context.Context, ref chunk.Ref) ([]byte, error) {
	b.gets.Add(1)
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	return b.bytes[ref.Offset : ref.Offset+ref.Size], nil
}

// memory is a store without limits.
type memory struct {
	mu     sync.Mutex
	chunks map[chunk.Key][]byte
	fail   error // of every Put
	bad    error // of every Get
}

func (m *memory) Get(_ context.Context, ref chunk.Ref) ([]byte, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.bad != nil {
		return nil, m.bad
	}
	p, ok := m.chunks[ref.Key()]
	if !ok {
		return nil, chunk.ErrNotFound
	}
	return p, nil
}

func (m *memory) Put(_ context.Context, ref chunk.Ref, p []byte) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.fail != nil {
		return m.fail
	}
	if m.chunks == nil {
		m.chunks = make(map[chunk.Key][]byte)
	}
	m.chunks[ref.Key()] = p
	return nil
}

// proofs records what readers say.
type proofs struct {
	mu              sync.Mutex
	proven, refuted int
	links           map[int]chunk.Link
}

func (p *proofs) Proven(digest.Digest) bool  { p.mu.Lock(); defer p.mu.Unlock(); return p.proven > 0 }
func (p *proofs) Prove(digest.Digest, int64) { p.mu.Lock(); defer p.mu.Unlock(); p.proven++ }
func (p *proofs) Refute(digest.Digest)       { p.mu.Lock(); defer p.mu.Unlock(); p.refuted++ }
func (p *proofs) Link(ref chunk.Ref, after chunk.Link) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.links == nil {
		p.links = make(map[int]chunk.Link)
	}
	p.links[ref.Index()] = after
}

// sourceFunc is a source that is a function.
type sourceFunc func(context.Context, chunk.Ref) ([]byte, error)

func (f sourceFunc) Get(ctx context.Context, ref chunk.Ref) ([]byte, error) { return f(ctx, ref) }

var sizes = []int{1, 1000, chunk.Size - 1, chunk.Size, chunk.Size + 1, 4 * chunk.Size, 9*chunk.Size + 17}

func TestReadersKeepTheContractsOfIo(t *testing.T) {
	for _, n := range []int{1, 1000, chunk.Size + 1} {
		b := newBlob(t, n)
		whole := chunk.NewBlob(b.Map, b, chunk.BlobConfig{Window: 4 << 20, Proofs: new(proofs)})
		if err := iotest.TestReader(struct{ io.ReadSeeker }{whole.Open(t.Context())}, b.bytes); err != nil {
			t.Errorf("%d bytes: %v", n, err)
		}
		if err := iotest.TestReader(io.NewSectionReader(whole.ReaderAt(t.Context()), 0, int64(n)), b.bytes); err != nil {
			t.Errorf("%d bytes, at: %v", n, err)
		}
	}
}

func TestSectionsOfEveryKind(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	for _, n := range sizes {
		b := newBlob(t, n)
		for range 12 {
			off := rng.Int64N(int64(n))
			s := chunk.Section{Offset: off, Length: 1 + rng.Int64N(int64(n)-off), OnDemand: rng.IntN(2) == 0, Complete: rng.IntN(2) == 0}
			if rng.IntN(3) == 0 {
				s.Length = int64(n) - off
			}
			whole := chunk.NewBlob(b.Map, b, chunk.BlobConfig{Window: rng.Int64N(10 << 20), Budget: chunk.NewBudget(3 << 20), Proofs: new(proofs)})
			r := whole.OpenSection(t.Context(), s)
			got, err := io.ReadAll(r)
			if err != nil || !bytes.Equal(got, b.bytes[off:off+s.Length]) {
				t.Errorf("%d bytes, %+v: %d bytes, %v", n, s, len(got), err)
			}
			if r.Close() != nil {
				t.Error("close")
			}
			if _, err := r.Read(make([]byte, 1)); err == nil || err == io.EOF {
				t.Errorf("read after close: %v", err)
			}
		}
	}
}

func TestTheLastChunkIsHeldBackUntilTheDigestMatches(t *testing.T) {
	b := newBlob(t, 5*chunk.Size+9)
	for wrong := -1; wrong < b.Len(); wrong++ {
		for _, offset := range []int64{0, 3 * chunk.Size} {
			src := sourceFunc(func(ctx context.Context, ref chunk.Ref) ([]byte, error) {
				p, err := b.Get(ctx, ref)
				p = bytes.Clone(p)
				if ref.Index() == wrong {
					p[3] ^= 1
				}
				return p, err
			})
			var p proofs
			whole := chunk.NewBlob(b.Map, src, chunk.BlobConfig{Window: 8 << 20, Proofs: &p})
			r := whole.OpenSection(t.Context(), chunk.Section{Offset: offset, Length: b.Size() - offset, Complete: true})
			got, err := io.ReadAll(r)
			_ = r.Close()
			if wrong < 0 {
				if err != nil || !bytes.Equal(got, b.bytes[offset:]) || p.proven != 1 || p.refuted != 0 || len(p.links) != b.Len()-1 {
					t.Errorf("right bytes: %d bytes, %v, %+v", len(got), err, &p)
				}
				for i := range b.Len() {
					ref := b.At(i)
					c := b.bytes[ref.Offset : ref.Offset+ref.Size]
					if err := ref.CheckLink("x", p.links[i-1], p.links[i], c); err != nil {
						t.Error(err)
					}
					bad := bytes.Clone(c)
					bad[len(bad)-1] ^= 0x80
					if err := ref.CheckLink("x", p.links[i-1], p.links[i], bad); !chunk.IsCorrupt(err) {
						t.Errorf("chunk %d with a flipped bit: %v", i, err)
					}
					if err := ref.CheckLink("x", p.links[i-1]+"more", "short", c); i > 0 && !chunk.IsCorrupt(err) {
						t.Errorf("chunk %d between nonsense: %v", i, err)
					}
				}
				continue
			}
			if !chunk.IsCorrupt(err) || int64(len(got))+offset > b.At(b.Len()-1).Offset || p.proven != 0 || p.refuted == 0 {
				t.Errorf("chunk %d wrong, from %d: %d bytes, %v, proven %d, refuted %d", wrong, offset, len(got), err, p.proven, p.refuted)
			}
		}
	}
}

func TestLinksOfOtherAlgorithms(t *testing.T) {
	data := newBlob(t, 3*chunk.Size+5).bytes
	for _, algorithm := range []digest.Algorithm{digest.SHA384, digest.SHA512} {
		m, err := chunk.Grid(algorithm.FromBytes(data), int64(len(data)))
		if err != nil {
			t.Fatal(err)
		}
		prefix, before := chunk.NewPrefix(m.Blob()), chunk.Link("")
		for i := range m.Len() {
			ref := m.At(i)
			c := data[ref.Offset : ref.Offset+ref.Size]
			_, _ = prefix.Write(c)
			if err := ref.CheckLink("x", before, prefix.Link(), c); err != nil {
				t.Errorf("%s: %v", algorithm, err)
			}
			before = prefix.Link()
		}
		if !prefix.Matches() {
			t.Errorf("%s does not match", algorithm)
		}
	}
}

func TestARefIsOnTheGridOfItsBlob(t *testing.T) {
	d := digest.FromString("x")
	for _, r := range []chunk.Ref{
		{},
		{Blob: "sha256:1", Total: 1, Size: 1},
		{Blob: d, Total: -1, Size: -1},
		{Blob: d, Total: chunk.MaxBlobSize + 1, Size: chunk.Size},
		{Blob: d, Total: 5, Size: 4},
		{Blob: d, Total: 5, Offset: 1, Size: 4},
		{Blob: d, Total: chunk.Size, Offset: chunk.Size, Size: 0},
		{Blob: d, Total: 5, Size: 5, Digest: "sha256:1"},
		{Blob: d, Total: 3 * chunk.Size, Offset: -chunk.Size, Size: chunk.Size},
	} {
		if err := r.Validate(); err == nil {
			t.Errorf("%+v is valid", r)
		}
	}
	for _, n := range []int64{-1, chunk.MaxBlobSize + 1, 0} {
		if _, err := chunk.Grid(d, n); err == nil {
			t.Errorf("a grid of %d bytes", n)
		}
	}
	if _, err := chunk.Grid(digest.FromBytes(nil), 0); err != nil {
		t.Error(err)
	}
}

// TestAReaderThatStopsReadingStopsFetching looks at what is fetched once all
// goroutines wait.
func TestAReaderThatStopsReadingStopsFetching(t *testing.T) {
	b := newBlob(t, 40*chunk.Size)
	for _, c := range []struct {
		onDemand bool
		window   int64
		want     int64
	}{{false, 8 << 20, 8}, {false, 1, 1}, {false, 0, 1}, {true, 8 << 20, 1}} {
		b.gets.Store(0)
		synctest.Test(t, func(t *testing.T) {
			whole := chunk.NewBlob(b.Map, b, chunk.BlobConfig{Window: c.window})
			r := whole.OpenSection(t.Context(), chunk.Section{Length: b.Size(), OnDemand: c.onDemand})
			defer r.Close()
			if _, err := io.ReadFull(r, make([]byte, 100)); err != nil {
				t.Fatal(err)
			}
			synctest.Wait()
			if got := b.gets.Load(); got > c.want {
				t.Errorf("%+v: %d chunks were fetched for 100 bytes", c, got)
			}
			if c.onDemand {
				if _, err := io.CopyN(io.Discard, r, 5*chunk.Size-100); err != nil {
					t.Fatal(err)
				}
				synctest.Wait()
				if got := b.gets.Load(); got != 5 {
					t.Errorf("%d chunks were fetched for 5 that were read", got)
				}
			}
		})
	}
}

// TestTheBudgetBoundsAllReaders counts what readers hold together.
func TestTheBudgetBoundsAllReaders(t *testing.T) {
	const readers, chunks = 8, 5
	b := newBlob(t, 12*chunk.Size)
	var held, most atomic.Int64
	src := sourceFunc(func(ctx context.Context, ref chunk.Ref) ([]byte, error) {
		for n := held.Add(1); ; {
			if old := most.Load(); n <= old || most.CompareAndSwap(old, n) {
				break
			}
		}
		return b.Get(ctx, ref)
	})
	budget := chunk.NewBudget(chunks * chunk.Size)
	var wg sync.WaitGroup
	for range readers {
		wg.Go(func() {
			r := chunk.NewBlob(b.Map, src, chunk.BlobConfig{Window: 8 << 20, Budget: budget}).Open(context.Background())
			defer r.Close()
			for n := 0; ; n++ {
				_, _, err := r.Next()
				if n > 0 {
					held.Add(-1) // the one before has been given back
				}
				if err != nil {
					if err != io.EOF {
						t.Error(err)
					}
					return
				}
			}
		})
	}
	wg.Wait()
	if n := most.Load(); n > chunks+readers { // a reader gives back before it is counted
		t.Errorf("%d chunks were held with memory for %d", n, chunks)
	}
}

// slow is a source whose fetches wait to be let go.
type slow struct {
	*blob
	fetches atomic.Int64
	ended   atomic.Int64
	goOn    chan struct{}
}

func (s *slow) GetRun(ctx context.Context, refs []chunk.Ref, yield func(chunk.Ref, []byte) error) error {
	s.fetches.Add(1)
	for _, ref := range refs {
		select {
		case <-s.goOn:
		case <-ctx.Done():
			s.ended.Add(1)
			return ctx.Err()
		}
		p, _ := s.Get(context.Background(), ref)
		if err := yield(ref, p); err != nil {
			return err
		}
	}
	return nil
}

func TestAFetchLivesWhileAnyoneWaits(t *testing.T) {
	b := newBlob(t, 4*chunk.Size)
	synctest.Test(t, func(t *testing.T) {
		far := &slow{blob: b, goOn: make(chan struct{})}
		src := chunk.Cache(new(memory), far, new(chunk.Flight), nil)
		get := func(ctx context.Context) <-chan error {
			c := make(chan error, 1)
			go func() {
				p, err := src.Get(ctx, b.At(1))
				if err == nil && !bytes.Equal(p, b.bytes[chunk.Size:2*chunk.Size]) {
					err = errors.New("wrong bytes")
				}
				c <- err
			}()
			synctest.Wait()
			return c
		}
		first, leave := context.WithCancel(t.Context())
		a := get(first)
		second := get(t.Context())
		leave()
		if err := <-a; !errors.Is(err, context.Canceled) {
			t.Errorf("the one that left: %v", err)
		}
		synctest.Wait()
		if far.ended.Load() != 0 {
			t.Error("the fetch ended with the one that had started it")
		}
		far.goOn <- struct{}{}
		if err := <-second; err != nil || far.fetches.Load() != 1 {
			t.Errorf("the one that stayed: %v, %d fetches", err, far.fetches.Load())
		}

		src = chunk.Cache(new(memory), far, new(chunk.Flight), nil)
		third, leave := context.WithCancel(t.Context())
		c := get(third)
		leave()
		<-c
		d := get(t.Context()) // before or after the fetch has noticed
		synctest.Wait()
		if far.ended.Load() != 1 {
			t.Error("the fetch that nobody wanted went on")
		}
		far.goOn <- struct{}{}
		if err := <-d; err != nil {
			t.Errorf("the one that came after: %v", err)
		}
	})
}

func TestManyReadersThatComeAndGo(t *testing.T) {
	b := newBlob(t, 9*chunk.Size)
	var flight chunk.Flight
	near := new(memory)
	src := chunk.Cache(near, b, &flight, nil)
	var wg sync.WaitGroup
	for w := range 16 {
		wg.Go(func() {
			rng := rand.New(rand.NewPCG(uint64(w), 9))
			for range 20 {
				ctx, cancel := context.WithCancel(context.Background())
				stop := rng.Int64N(b.Size() * 2)
				r := chunk.NewBlob(b.Map, src, chunk.BlobConfig{Window: 6 << 20, Proofs: new(proofs)}).Open(ctx)
				got, err := io.ReadAll(io.LimitReader(r, stop))
				if err != nil || !bytes.Equal(got, b.bytes[:min(stop, b.Size())]) {
					t.Errorf("%d bytes: %v", len(got), err)
				}
				if rng.IntN(2) == 0 {
					cancel()
				}
				_ = r.Close()
				cancel()
				if rng.IntN(5) == 0 {
					near.mu.Lock()
					near.chunks = nil
					near.mu.Unlock()
				}
			}
		})
	}
	wg.Wait()
}

func TestACacheAsksFarForTheGapsOnly(t *testing.T) {
	b := newBlob(t, 8*chunk.Size)
	for pattern := range 1 << 8 {
		near := new(memory)
		for i := range 8 {
			if pattern&(1<<i) != 0 {
				_ = near.Put(t.Context(), b.At(i), b.bytes[i*chunk.Size:(i+1)*chunk.Size])
			}
		}
		var asked, runs int
		far := runner(func(ctx context.Context, refs []chunk.Ref, yield func(chunk.Ref, []byte) error) error {
			runs++
			for _, r := range refs {
				asked |= 1 << r.Index()
			}
			return chunk.GetRun(ctx, sourceFunc(b.Get), refs, yield)
		})
		var refs []chunk.Ref
		for i := range 8 {
			refs = append(refs, b.At(i))
		}
		next := 0
		err := chunk.GetRun(t.Context(), chunk.Cache(near, far, new(chunk.Flight), nil), refs, func(r chunk.Ref, p []byte) error {
			if r.Index() != next || !bytes.Equal(p, b.bytes[r.Offset:r.Offset+r.Size]) {
				t.Errorf("pattern %b: chunk %d, want %d", pattern, r.Index(), next)
			}
			next++
			return nil
		})
		gaps := 0
		for i := range 8 {
			if pattern&(1<<i) == 0 && (i == 0 || pattern&(1<<(i-1)) != 0) {
				gaps++
			}
		}
		if err != nil || asked != ^pattern&0xff || runs != gaps || next != 8 {
			t.Errorf("pattern %08b: asked %08b in %d runs, want %d; %v", pattern, asked, runs, gaps, err)
		}
	}
}

type runner func(context.Context, []chunk.Ref, func(chunk.Ref, []byte) error) error

func (f runner) Get(ctx context.Context, ref chunk.Ref) (p []byte, err error) {
	err = f(ctx, []chunk.Ref{ref}, func(_ chunk.Ref, q []byte) error { p = q; return nil })
	return p, err
}

func (f runner) GetRun(ctx context.Context, refs []chunk.Ref, yield func(chunk.Ref, []byte) error) error {
	return f(ctx, refs, yield)
}

func TestAFaultyStoreFailsNoRead(t *testing.T) {
	b := newBlob(t, 2*chunk.Size)
	ref := b.At(0)
	for name, near := range map[string]*memory{
		"Put fails":   {fail: errors.New("disk full")},
		"Get fails":   {bad: errors.New("input/output error")},
		"Get corrupt": {bad: &chunk.CorruptError{Source: "disk", Ref: ref}},
	} {
		var reported []error
		src := chunk.Cache(near, b, new(chunk.Flight), func(err error) { reported = append(reported, err) })
		if p, err := src.Get(t.Context(), ref); err != nil || !bytes.Equal(p, b.bytes[:chunk.Size]) {
			t.Errorf("%s: %v", name, err)
		}
		if len(reported) != 1 {
			t.Errorf("%s: reported %v", name, reported)
		}
	}
}

func TestFirst(t *testing.T) {
	b := newBlob(t, 4*chunk.Size)
	refs := []chunk.Ref{b.At(0), b.At(1), b.At(2), b.At(3)}
	absent := sourceFunc(func(context.Context, chunk.Ref) ([]byte, error) { return nil, chunk.ErrNotFound })
	broken := sourceFunc(func(context.Context, chunk.Ref) ([]byte, error) { return nil, errors.New("broken") })
	half := sourceFunc(func(ctx context.Context, ref chunk.Ref) ([]byte, error) {
		if ref.Index() >= 2 {
			return nil, chunk.ErrNotFound
		}
		return b.Get(ctx, ref)
	})
	lying := chunk.Verify("liar", sourceFunc(func(context.Context, chunk.Ref) ([]byte, error) { return []byte("lie"), nil }))
	for name, src := range map[string]chunk.Source{
		"absent": chunk.First(absent, b), "broken": chunk.First(broken, b), "half": chunk.First(half, b), "lying": chunk.First(lying, b),
	} {
		n := 0
		err := chunk.GetRun(t.Context(), src, refs, func(r chunk.Ref, _ []byte) error {
			if r.Index() != n {
				t.Errorf("%s: chunk %d came as number %d", name, r.Index(), n)
			}
			n++
			return nil
		})
		if err != nil || n != 4 {
			t.Errorf("%s: %d chunks, %v", name, n, err)
		}
	}
	if _, err := chunk.First(absent, absent).Get(t.Context(), refs[0]); err != chunk.ErrNotFound {
		t.Errorf("nobody has it: %v", err)
	}
	if _, err := chunk.First(absent, lying, broken).Get(t.Context(), refs[0]); !chunk.IsCorrupt(err) || errors.Is(err, context.Canceled) {
		t.Errorf("nobody has it, and one lies: %v", err)
	}
}

func TestReadersTellWhereChunksCameFrom(t *testing.T) {
	b := newBlob(t, 3*chunk.Size)
	near := new(memory)
	_ = near.Put(t.Context(), b.At(1), b.bytes[chunk.Size:2*chunk.Size])
	src := chunk.Cache(chunk.NamedStore("disk", near), chunk.Named("upstream", b), new(chunk.Flight), nil)
	r := chunk.NewBlob(b.Map, src, chunk.BlobConfig{Window: 4 << 20}).Open(t.Context())
	defer r.Close()
	for _, want := range []string{"upstream", "disk", "upstream"} {
		if _, from, err := r.Next(); err != nil || from != want {
			t.Errorf("from %s, %v; want %s", from, err, want)
		}
	}
}

func TestTier(t *testing.T) {
	b := newBlob(t, 10)
	fast, slow := new(memory), &memory{}
	_ = slow.Put(t.Context(), b.At(0), b.bytes)
	if _, err := chunk.Tier(fast, slow).Get(t.Context(), b.At(0)); err != nil || len(fast.chunks) != 1 {
		t.Errorf("not kept in the fast one: %v", err)
	}
	if err := chunk.Tier(&memory{fail: errors.New("no")}, slow).Put(t.Context(), b.At(0), b.bytes); err != nil {
		t.Error(err)
	}
	if err := chunk.Tier(fast, &memory{fail: errors.New("no")}).Put(t.Context(), b.At(0), b.bytes); err == nil {
		t.Error("the slow one's failure is lost")
	}
}

func ExampleCache() {
	data := bytes.Repeat([]byte("granary "), 300_000)
	m, _ := chunk.Grid(digest.FromBytes(data), int64(len(data)))
	upstream := sourceFunc(func(_ context.Context, ref chunk.Ref) ([]byte, error) {
		return data[ref.Offset : ref.Offset+ref.Size], nil
	})
	near := new(memory)
	var flight chunk.Flight
	b := chunk.NewBlob(m, chunk.Cache(near, chunk.Verify("upstream", upstream), &flight, nil), chunk.BlobConfig{Window: 4 << 20})
	r := b.Open(context.Background())
	defer r.Close()
	n, err := io.Copy(io.Discard, r)
	fmt.Println(n, err, len(near.chunks))
	// Output: 2400000 <nil> 3
}

func FuzzRef(f *testing.F) {
	d := string(digest.FromString("x"))
	f.Add(d, "", int64(5), int64(0), int64(5))
	f.Add(d, d, int64(3<<20), int64(1<<20), int64(1<<20))
	f.Add("sha256:", "x", int64(-1), int64(1<<62), int64(0))
	f.Fuzz(func(t *testing.T, blob, own string, total, offset, size int64) {
		r := chunk.Ref{Blob: digest.Digest(blob), Digest: digest.Digest(own), Total: total, Offset: offset, Size: size}
		if r.Validate() != nil {
			return
		}
		if total == 0 {
			return
		}
		m, err := chunk.Grid(r.Blob, total)
		if err != nil {
			t.Fatalf("%+v: %v", r, err)
		}
		want := m.At(r.Index())
		if want.Offset != offset || want.Size != size {
			t.Fatalf("%+v is not %+v", r, want)
		}
	})
}

func BenchmarkReader(b *testing.B) {
	data := newBlob(b, 64<<20)
	for name, p := range map[string]chunk.Proofs{"hashing": new(unproven), "proven": nil} {
		b.Run(name, func(b *testing.B) {
			b.SetBytes(data.Size())
			for b.Loop() {
				r := chunk.NewBlob(data.Map, data, chunk.BlobConfig{Window: 16 << 20, Proofs: p}).Open(context.Background())
				for {
					if _, _, err := r.Next(); err != nil {
						break
					}
				}
				_ = r.Close()
			}
		})
	}
}

type unproven struct{ proofs }

func (*unproven) Proven(digest.Digest) bool { return false }

package delta

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/granary-oci/granary/chunkstore/chunk"
)

// content are the bytes of a blob. Chunks of the same letter are the same.
type content struct {
	*chunk.Map
	chunks []byte // a letter for each
}

// contentOf returns a blob of a chunk for each letter.
func contentOf(letters string) content {
	m, err := chunk.Grid(digest.FromString(letters), int64(len(letters))*chunk.Size)
	if err != nil {
		panic(err)
	}
	return content{m, []byte(letters)}
}

// letters are what chunks consist of, made once.
var bytesOfAll, sumsOfAll = func() (all [128][]byte, sums [128][sha256.Size]byte) {
	for l := range all {
		if l >= 'A' {
			all[l] = bytes.Repeat([]byte{byte(l)}, chunk.Size)
			sums[l] = sha256.Sum256(all[l])
		}
	}
	return all, sums
}()

func bytesOf(letter byte) []byte { return bytesOfAll[letter] }

func digestOf(letter byte) digest.Digest { return chunk.Digests(sumsOfAll[letter][:]).At(0) }

// world is what a blob's reader lives in.
type world struct {
	blob   content
	alike  []content
	others string // letters of chunks that other blobs have, of which the digests are known

	mu       sync.Mutex
	asked    []int // first chunks
	compared int
	mapped   []int // chunks
	fetched  []int

	answers  func(first, n int) (digests chunk.Digests, err error) // nil is the blob's map
	believed bool
	unfit    bool // what is found
}

func (w *world) Digests(_ context.Context, m *chunk.Map, first, n int) (chunk.Digests, string, error) {
	w.mu.Lock()
	w.asked = append(w.asked, first)
	answers := w.answers
	w.mu.Unlock()
	if answers == nil {
		answers = w.right
	}
	all, err := answers(first, n)
	return all, "giver", err
}

func (w *world) right(first, n int) (all chunk.Digests, err error) {
	for _, letter := range w.blob.chunks[first : first+n] {
		all = append(all, sumsOfAll[letter][:]...)
	}
	return all, nil
}

func (w *world) Mapped(ref chunk.Ref, giver string) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	if giver != "giver" || ref.Digest != digestOf(w.blob.chunks[ref.Index()]) {
		panic(fmt.Sprint(ref, giver))
	}
	w.mapped = append(w.mapped, ref.Index())
	return w.believed
}

func (w *world) Fits(ref chunk.Ref, p []byte) bool {
	return ref.Digest == "" && !w.unfit && int64(len(p)) == ref.Size
}

func (w *world) Alike(context.Context, *chunk.Map) (all []*chunk.Map) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, c := range w.alike {
		all = append(all, c.Map)
	}
	return all
}

func (w *world) Match(_ context.Context, ref chunk.Ref, want digest.Digest) ([]byte, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.compared++
	for _, c := range w.alike {
		if letter := c.chunks[min(ref.Index(), len(c.chunks)-1)]; c.Blob() == ref.Blob && digestOf(letter) == want {
			return bytesOf(letter), nil
		}
	}
	return nil, chunk.ErrNotFound
}

func (w *world) Find(_ context.Context, ref chunk.Ref) ([]byte, error) {
	for _, letter := range []byte(w.others) {
		if digestOf(letter) == ref.Digest {
			return bytesOf(letter), nil
		}
	}
	return nil, chunk.ErrNotFound
}

// Get is where chunks are fetched.
func (w *world) Get(ctx context.Context, ref chunk.Ref) ([]byte, error) {
	if ref.Digest != "" {
		return nil, fmt.Errorf("chunk %s: it is asked for by the digest that a map gives, which is one member's word", ref)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.fetched = append(w.fetched, ref.Index())
	chunk.SetOrigin(ctx, "peer")
	return bytesOf(w.blob.chunks[ref.Index()]), nil
}

// source is the world as it is read.
type source struct {
	*world
	b *Blob
}

func (s source) Get(ctx context.Context, ref chunk.Ref) ([]byte, error) {
	return chunk.GetOne(ctx, s, ref)
}

func (s source) GetRun(ctx context.Context, refs []chunk.Ref, yield func(chunk.Ref, []byte) error) error {
	return s.b.GetRun(ctx, refs, s.world, yield)
}

func newWorld(blob string, alike ...string) *world {
	w := &world{blob: contentOf(blob), believed: true}
	for _, letters := range alike {
		w.alike = append(w.alike, contentOf(letters))
	}
	return w
}

func (w *world) open() source { return source{w, new(Blobs).Of("app", w.blob.Map, w, w)} }

// read reads all of the blob in order as a client does, and checks it.
func (w *world) read(t *testing.T, s source) {
	t.Helper()
	r := chunk.NewBlob(w.blob.Map, s, chunk.BlobConfig{Window: 8 << 20, Run: chunk.StripeSize}).Open(t.Context())
	defer r.Close()
	for i := 0; ; i++ {
		p, from, err := r.Next()
		if err == io.EOF && i == len(w.blob.chunks) {
			break
		}
		if err != nil {
			t.Fatalf("chunk %d: %v", i, err)
		}
		if want := bytesOf(w.blob.chunks[i]); len(p) != len(want) || &p[0] != &want[0] {
			t.Errorf("chunk %d is wrong", i)
		}
		if want := map[bool]string{true: "peer", false: "disk"}[slices.Contains(w.fetchedSorted(), i)]; from != want {
			t.Errorf("chunk %d comes from %s, not %s", i, from, want)
		}
	}
}

func (w *world) fetchedSorted() []int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Sorted(slices.Values(w.fetched))
}

func letters(letter string, n int) string { return string(bytes.Repeat([]byte(letter), n)) }

func TestOnlyWhatDiffersIsFetched(t *testing.T) {
	v1 := letters("a", 10) + "bc" + letters("d", 30)
	for _, tt := range []struct {
		name    string
		blob    string
		alike   []string
		others  string
		fetched []int
	}{
		{"nothing has changed but the digest", v1, []string{v1 + "e"}, "", nil},
		{"two chunks", letters("a", 3) + "x" + letters("a", 6) + "by" + letters("d", 30), []string{v1}, "", []int{3, 11}},
		{"the first and the last", "x" + v1[1:len(v1)-1] + "y", []string{v1}, "", []int{0, len(v1) - 1}},
		{"what was added", v1 + "xy", []string{v1}, "", []int{len(v1), len(v1) + 1}},
		{"one of several is the one", v1[:20] + "x" + v1[21:], []string{letters("p", 42), letters("q", 42), v1}, "", []int{20}},
		{"each has something", letters("p", 20) + letters("q", 22), []string{letters("p", 42), letters("q", 42)}, "", nil},
		{"what another blob has somewhere", "xyz" + v1[3:], []string{v1}, "yz", []int{0}},
		{"a shorter one", v1, []string{v1[:12]}, "", []int{12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31, 32, 33, 34, 35, 36, 37, 38, 39, 40, 41}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(tt.blob, tt.alike...)
				w.others = tt.others
				w.read(t, w.open())
				synctest.Wait()
				if got := w.fetchedSorted(); !slices.Equal(got, tt.fetched) {
					t.Errorf("chunks %d were fetched, want %d", got, tt.fetched)
				}
				if len(w.mapped)+len(w.fetched) != len(tt.blob) {
					t.Errorf("members were told of %d chunks", len(w.mapped))
				}
			})
		})
	}
}

// TestTheRightOneOfManyIsFound: a model may be in many files of one size.
func TestTheRightOneOfManyIsFound(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var all []string
		for i := range maxAlike {
			all = append(all, letters(string(rune('A'+i)), 60))
		}
		w := newWorld(letters(string(rune('A'+maxAlike-1)), 40)+"x"+letters(string(rune('A'+maxAlike-1)), 19), all...)
		w.read(t, w.open())
		synctest.Wait()
		if n := len(w.fetched); n > 1+maxAlike {
			t.Errorf("%d chunks were fetched", n)
		}
	})
}

// TestWhatHasNothingInCommonIsSeldomCompared, and something in common is found all the same.
func TestWhatHasNothingInCommonIsSeldomCompared(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const n = 1200
		w := newWorld(letters("x", n)+letters("a", 100), letters("a", n+100))
		w.read(t, w.open())
		synctest.Wait()
		if w.compared > n/4+100 {
			t.Errorf("%d chunks were compared of %d that are not alike", w.compared, n)
		}
		if got := len(w.fetched); got < n || got > n+2<<maxHalved {
			t.Errorf("%d chunks were fetched of which %d are to be", got, n)
		}
	})
}

func TestWithoutABlobThatIsAlikeNobodyIsAsked(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(letters("a", 40))
		s := w.open()
		w.read(t, s)
		if len(w.asked) > 0 || len(w.fetched) != 40 {
			t.Errorf("members were asked %d times, and %d chunks were fetched", len(w.asked), len(w.fetched))
		}
		w.alike, w.fetched = []content{contentOf(letters("a", 41))}, nil // it comes later
		time.Sleep(lookAgain)
		w.read(t, s)
		synctest.Wait()
		if len(w.fetched) > 0 {
			t.Errorf("%d chunks were fetched although another blob has them", len(w.fetched))
		}
	})
}

// TestAMapThatIsNotThereCostsLittle: what nobody gives is not waited for, and what comes late
// not for long.
func TestAMapThatIsNotThereCostsLittle(t *testing.T) {
	none := errors.New("nobody has it")
	for _, tt := range []struct {
		name    string
		answers func(w *world) func(first, n int) (chunk.Digests, error)
		most    time.Duration // to read it
		asked   int           // at the most
		fetched func(n int) bool
	}{
		{"nobody has it", func(*world) func(int, int) (chunk.Digests, error) {
			return func(int, int) (chunk.Digests, error) { return nil, none }
		}, 0, 1, func(n int) bool { return n == 200 }},
		{"nobody answers", func(*world) func(int, int) (chunk.Digests, error) {
			return func(int, int) (chunk.Digests, error) { time.Sleep(askFor); return nil, none }
		}, patience, 1, func(n int) bool { return n == 200 }},
		{"too little", func(*world) func(int, int) (chunk.Digests, error) {
			return func(_, n int) (chunk.Digests, error) { return make(chunk.Digests, n*chunk.DigestSize-1), nil }
		}, 0, 1, func(n int) bool { return n == 200 }},
		{"it takes a while", func(w *world) func(int, int) (chunk.Digests, error) {
			return func(first, n int) (chunk.Digests, error) {
				time.Sleep(time.Duration(n) * 10 * time.Millisecond)
				return w.right(first, n)
			}
		}, 200 * 10 * time.Millisecond, 200, func(n int) bool { return n == 0 }},
		{"it stops coming", func(w *world) func(int, int) (chunk.Digests, error) {
			return func(first, n int) (chunk.Digests, error) {
				if first > 50 {
					time.Sleep(askFor)
					return nil, none
				}
				return w.right(first, n)
			}
		}, hopeful, 200, func(n int) bool { return n > 50 && n < 150 }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(letters("a", 200), letters("a", 201))
				w.answers = tt.answers(w)
				s, began := w.open(), time.Now()
				w.read(t, s)
				if took := time.Since(began); took > tt.most {
					t.Errorf("it took %v", took)
				}
				if len(w.asked) > tt.asked || !tt.fetched(len(w.fetched)) {
					t.Errorf("members were asked %d times, and %d chunks fetched", len(w.asked), len(w.fetched))
				}
				time.Sleep(2 * askFor) // what is under way ends
				w.answers, w.fetched = nil, nil
				if w.read(t, s); len(w.fetched) > 0 {
					t.Errorf("a map that comes later is not used: %d chunks were fetched", len(w.fetched))
				}
				synctest.Wait()
			})
		})
	}
}

// TestWhoReadsHereAndThereDoesNotWait for a map, nor has more of it made than that takes.
func TestWhoReadsHereAndThereDoesNotWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(letters("a", 100), letters("a", 101))
		w.answers = func(first, n int) (chunk.Digests, error) {
			time.Sleep(time.Millisecond)
			return w.right(first, n)
		}
		s := w.open()
		get := func(i int) {
			t.Helper()
			if p, err := s.Get(t.Context(), w.blob.At(i)); err != nil || !bytes.Equal(p, bytesOf('a')) {
				t.Errorf("%d bytes, %v", len(p), err)
			}
		}
		get(50)
		time.Sleep(time.Second)
		get(53)
		if !slices.Equal(w.fetched, []int{50}) || !slices.Equal(w.asked, []int{48}) {
			t.Errorf("chunks %d were fetched, and digests from %d asked for", w.fetched, w.asked)
		}
		for i := range 20 { // unless it turns out that it is read on
			get(60 + i)
		}
		if !slices.Equal(w.fetched, []int{50, 60}) {
			t.Errorf("chunks %d were fetched", w.fetched)
		}
		time.Sleep(time.Second) // what is under way ends
	})
}

// TestAMapThatIsNotBelieved is forgotten, because its giver is not, or because it is found out.
func TestAMapThatIsNotBelieved(t *testing.T) {
	for _, unfit := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(letters("a", 200), letters("a", 201))
			w.believed, w.unfit = unfit, unfit
			w.read(t, w.open())
			synctest.Wait()
			if len(w.fetched) != 200 || w.compared > 2*maxAsked*partChunks || unfit && len(w.mapped) > 0 {
				t.Errorf("%d chunks were fetched, %d compared, and it was asked %d times whether it is believed", len(w.fetched), w.compared, len(w.mapped))
			}
		})
	}
}

// TestWhatIsRememberedIsBounded: blobs, and parts of a map.
func TestWhatIsRememberedIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const chunks = (maxParts + 100) * partChunks
		w := newWorld(letters("a", chunks), letters("a", chunks+1))
		var blobs Blobs
		b := blobs.Of("app", w.blob.Map, w, w)
		w.read(t, source{w, b})
		synctest.Wait()
		if len(b.parts) != maxParts || len(b.order) != maxParts || len(b.queued) != 0 || b.asking || len(w.fetched) > 0 {
			t.Errorf("%d parts, in an order of %d, %d queued", len(b.parts), len(b.order), len(b.queued))
		}
		if blobs.Of("app", w.blob.Map, w, w) != b || blobs.Of("other", w.blob.Map, w, w) == b {
			t.Error("readers of a kind do not share what is known, or others do")
		}
		for i := range 2 * maxBlobs {
			blobs.Of(fmt.Sprint(i), w.blob.Map, w, w)
		}
		if len(blobs.all) != maxBlobs {
			t.Errorf("%d blobs are remembered", len(blobs.all))
		}
	})
}

// TestAnErrorIsTheSources, and ends the run.
func TestAnErrorIsTheSources(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld("axaaaxaa", letters("a", 9))
		b := w.open().b
		var refs []chunk.Ref
		for i := range w.blob.Len() {
			refs = append(refs, w.blob.At(i))
		}
		broken, enough := errors.New("broken"), errors.New("enough")
		fails := sourceFunc(func(context.Context, chunk.Ref) ([]byte, error) { return nil, broken })
		got := 0
		err := b.GetRun(t.Context(), refs, fails, func(chunk.Ref, []byte) error { got++; return nil })
		if !errors.Is(err, broken) || got != 1 {
			t.Errorf("%d chunks, %v", got, err)
		}
		err = b.GetRun(t.Context(), refs, w, func(ref chunk.Ref, _ []byte) error {
			if ref.Index() == 3 {
				return enough
			}
			return nil
		})
		if !errors.Is(err, enough) || !slices.Equal(w.fetched, []int{1}) {
			t.Errorf("%d were fetched, %v", w.fetched, err)
		}
		synctest.Wait()
	})
}

type sourceFunc func(context.Context, chunk.Ref) ([]byte, error)

func (f sourceFunc) Get(ctx context.Context, ref chunk.Ref) ([]byte, error) { return f(ctx, ref) }

package cdc

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"reflect"
	"testing"
	"testing/iotest"
	"time"

	"github.com/granary-oci/granary/toc"
)

// TestContentsAreChunks: each file of at most 64 KiB is one chunk, a larger one begins and ends
// with one, and nothing else is larger than what is inline.
func TestContentsAreChunks(t *testing.T) {
	p := layer(t, 0)
	m := mapOf(t, p)
	want := make(map[toc.Digest]int64)
	for _, c := range contents(p) {
		for whole := len(c) <= NormalSize; len(c) > 0; {
			n := len(c)
			if !whole {
				n = Cut(c)
			}
			want[sha256.Sum256(c[:n])] = int64(n)
			c = c[n:]
		}
	}
	if got := digestsOf(m); !reflect.DeepEqual(got, want) {
		t.Errorf("%d chunks are not those %d of the files", len(got), len(want))
	}
}

func TestHeadersChangeNoChunk(t *testing.T) {
	m, older := mapOf(t, layer(t, 0)), mapOf(t, layer(t, time.Hour))
	if n := fresh(m, older); n > 0 || reflect.DeepEqual(m, older) {
		t.Errorf("with other times %d chunks of %d are new", n, len(m.Chunks))
	}
}

func TestMapDoesNotDependOnReads(t *testing.T) {
	p := layer(t, 0)
	want := mapOf(t, p)
	r, rest := rand.New(rand.NewPCG(1, 2)), bytes.NewReader(p)
	for name, by := range map[string]io.Reader{
		"byte":             iotest.OneByteReader(bytes.NewReader(p)),
		"half":             iotest.HalfReader(bytes.NewReader(p)),
		"the end with all": iotest.DataErrReader(bytes.NewReader(p)),
		"chance":           readerFunc(func(q []byte) (int, error) { return rest.Read(q[:min(len(q), 1+r.IntN(300_000))]) }),
	} {
		got, err := Of(t.Context(), by)
		if err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("read by %s: another map, %v", name, err)
		}
	}
}

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }

// TestOddEntries has entries whose size is not in the header, or means nothing there: the
// content of the last file is a chunk only if all of them were passed over.
func TestOddEntries(t *testing.T) {
	record, other := "12 size=700\n", "11 size=70\n"
	last := append(rawHeader('0', 700, nil), filled(noise(700))...)
	for name, odd := range map[string][]byte{
		"a size by PAX":               append(append(rawHeader('x', len(record), nil), filled([]byte(record))...), append(rawHeader('0', 1, nil), filled(noise(700))...)...),
		"a PAX header of nothing":     rawHeader('x', 0, nil),
		"malformed records":           append(rawHeader('x', 3, nil), filled([]byte("???"))...),
		"a negative size by PAX":      append(rawHeader('x', 11, nil), filled([]byte("11 size=-5\n"))...),
		"a link with a size":          rawHeader('1', 5000, nil),
		"a directory with a size":     rawHeader('5', 5000, nil),
		"a directory by PAX":          append(append(rawHeader('x', len(other), nil), filled([]byte(other))...), rawHeader('5', 0, nil)...),
		"a type that nobody knows":    append(rawHeader('Z', 5000, nil), filled(noise(5000))...),
		"a global header":             append(rawHeader('g', len(other), nil), filled([]byte(other))...),
		"zeros between entries":       make([]byte, 512),
		"the end of another tar":      make([]byte, 10240),
		"a sparse file":               append(rawHeader('S', 600, nil), filled(noise(600))...),
		"a sparse file with two maps": append(append(append(rawHeader('S', 600, func(b []byte) { b[482] = 1 }), extension(1)...), extension(0)...), filled(noise(600))...),
	} {
		m := mapOf(t, append(odd, last...))
		if digestsOf(m)[sha256.Sum256(noise(700))] != 700 {
			t.Errorf("%s: the file behind it is no chunk", name)
		}
	}
}

// extension is a block with more of the map of a sparse file.
func extension(more byte) []byte {
	b := make([]byte, 512)
	b[504] = more
	return b
}

func TestSparseFilesOfPrograms(t *testing.T) {
	for _, name := range []string{"gnu", "pax-0.0", "pax-0.1", "pax-1.0"} {
		p, err := os.ReadFile("../tarball/testdata/sparse-" + name + ".tar")
		if err != nil {
			t.Fatal(err)
		}
		behind := tarOf(t, 0, file{name: "f", content: noise(700)})
		m := mapOf(t, append(p, behind...))
		if digestsOf(m)[sha256.Sum256(noise(700))] != 700 {
			t.Errorf("%s: the file behind it is no chunk", name)
		}
	}
}

// TestWhatIsNoTar is cut like any bytes, also where it becomes none in its midst.
func TestWhatIsNoTar(t *testing.T) {
	p := layer(t, 0)
	for name, lead := range map[string][]byte{
		"from the start":           nil,
		"behind files":             p[:len(p)/2&^511],
		"behind too large a name":  rawHeader('L', maxSpecial+1, nil),
		"behind a negative size":   rawHeader('L', 0, func(b []byte) { copy(b[124:136], bytes.Repeat([]byte{0xff}, 12)) }),
		"behind a size of no form": rawHeader('0', 0, func(b []byte) { copy(b[124:136], "nine") }),
	} {
		m := mapOf(t, append(bytes.Clone(lead), noise(1<<20)...))
		if n := fresh(mapOf(t, noise(1<<20)), m); n > 8 {
			t.Errorf("%s: %d chunks are other ones", name, n)
		}
	}
	if m := mapOf(t, nil); len(m.Chunks) != 0 {
		t.Errorf("nothing has %d chunks", len(m.Chunks))
	}
	wrong := rawHeader('0', 700, nil)
	wrong[0]++
	if m := mapOf(t, append(wrong, filled(noise(700))...)); digestsOf(m)[sha256.Sum256(noise(700))] != 0 {
		t.Error("a header with a wrong checksum is one")
	}
}

func TestTarsThatEnd(t *testing.T) {
	p := layer(t, 0)
	whole := mapOf(t, p)
	r := rand.New(rand.NewPCG(3, 4))
	for range 40 {
		n := r.IntN(len(p))
		if m := mapOf(t, p[:n]); fresh(m, whole) > 8 {
			t.Errorf("of %d bytes %d chunks are other ones", n, fresh(m, whole))
		}
	}
}

// TestLongHeaders: headers of up to 64 KiB are inline, though there is a place to cut in them.
func TestLongHeaders(t *testing.T) {
	name := noise(earlyPlace + 30_000)[earlyPlace-30_000:]
	m := mapOf(t, append(append(rawHeader('L', len(name), nil), filled(name)...), rawHeader('0', 0, nil)...))
	if len(m.Chunks) != 1 || m.Chunks[0].Inline == nil {
		t.Errorf("%d chunks", len(m.Chunks))
	}
}

// TestManyHeaders: what a map has inline is bounded, and no long run of headers is.
func TestManyHeaders(t *testing.T) {
	var many, apart []file
	for i := range 2000 {
		many = append(many, file{name: fmt.Sprint("l", i), link: "d"})
	}
	for i := range 25_000 {
		apart = append(apart, file{name: fmt.Sprint("f", i), content: []byte("x")})
	}
	for _, c := range mapOf(t, tarOf(t, 0, many...)).Chunks[:2] {
		if c.Inline != nil || c.Size < MinSize {
			t.Errorf("%d bytes of headers in a row, inline: %v", c.Size, c.Inline != nil)
		}
	}
	inlined := 0
	for _, c := range mapOf(t, bytes.Repeat(tarOf(t, 0, apart...), 2)).Chunks {
		inlined += len(c.Inline)
	}
	if inlined > maxInlined || inlined < maxInlined-MaxInline {
		t.Errorf("%d bytes are inline", inlined)
	}
}

func TestTooManyChunks(t *testing.T) {
	p := tarOf(t, 0, file{name: "f", content: []byte("abc")}, file{name: "g", content: []byte("def")})
	if _, err := of(t.Context(), bytes.NewReader(p), 5); err != nil {
		t.Errorf("as many as may be: %v", err)
	}
	if m, err := of(t.Context(), bytes.NewReader(p), 4); !errors.Is(err, toc.ErrLimit) || m != nil {
		t.Errorf("one more: %v, %v", m, err)
	}
}

func TestErrorsOfReaders(t *testing.T) {
	p := layer(t, 0)
	broken := errors.New("broken")
	for _, n := range []int{0, 100, 512, 5000, len(p) / 2, len(p)} {
		r := io.MultiReader(bytes.NewReader(p[:n]), iotest.ErrReader(broken))
		if _, err := Of(t.Context(), r); !errors.Is(err, broken) {
			t.Errorf("broken at %d: %v", n, err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	err := Walk(ctx, bytes.NewReader(p), func(Chunk, []byte) error { cancel(); return nil })
	if !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	err = Walk(t.Context(), bytes.NewReader(p), func(Chunk, []byte) error { return broken })
	if !errors.Is(err, broken) {
		t.Errorf("not wanted: %v", err)
	}
}

// FuzzOf holds the map of anything to what all maps are, and those of tars to their files.
func FuzzOf(f *testing.F) {
	f.Add(tarOf(f, 0, file{name: "f", content: []byte("abc")}, file{name: "l", link: "f"}))
	f.Add(rawHeader('S', 0, func(b []byte) { b[482] = 1 }))
	f.Add(append(rawHeader('x', 12, nil), filled([]byte("12 size=700\n"))...))
	f.Fuzz(func(t *testing.T, p []byte) {
		if len(p) > 1<<20 {
			return
		}
		m := mapOf(t, p)
		got, err := Decode(m.Append(nil))
		if err != nil || !reflect.DeepEqual(got.Chunks, m.Chunks) && len(m.Chunks) > 0 {
			t.Fatalf("another map, %v", err)
		}
	})
}

package estargz_test

import (
	"archive/tar"
	"bytes"
	stdgzip "compress/gzip"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"testing/iotest"
	"time"

	stargz "github.com/containerd/stargz-snapshotter/estargz"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/granary-oci/granary/toc"
	"github.com/granary-oci/granary/toc/estargz"
)

const digestKey = "containerd.io/snapshot/stargz/toc.digest"

// tarOf makes a tar of entries.
func tarOf(t testing.TB, entries ...tar.Header) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, h := range entries {
		content := h.PAXRecords["content"]
		h.PAXRecords = nil
		h.Size, h.ModTime = int64(len(content)), time.Unix(1700000000, 0)
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		io.WriteString(w, content)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func dir(name string) tar.Header { return tar.Header{Name: name, Typeflag: tar.TypeDir, Mode: 0o755} }

func file(name, content string) tar.Header {
	return tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: 0o644, PAXRecords: map[string]string{"content": content}}
}

func symlink(name, to string) tar.Header {
	return tar.Header{Name: name, Typeflag: tar.TypeSymlink, Linkname: to, Mode: 0o777}
}

// written is a layer by the format's own writer, and the digest of its table.
func written(t testing.TB, tarball []byte, options ...stargz.Option) ([]byte, digest.Digest) {
	t.Helper()
	blob, err := stargz.Build(io.NewSectionReader(bytes.NewReader(tarball), 0, int64(len(tarball))), options...)
	if err != nil {
		t.Fatal(err)
	}
	defer blob.Close()
	layer, err := io.ReadAll(blob)
	if err != nil {
		t.Fatal(err)
	}
	return layer, blob.TOCDigest()
}

// layerOf is a layer with a table that says whatever it says.
func layerOf(t testing.TB, table string) []byte {
	t.Helper()
	return layerWith(t, func(w *tar.Writer) {
		w.WriteHeader(&tar.Header{Name: "stargz.index.json", Typeflag: tar.TypeReg, Size: int64(len(table))})
		io.WriteString(w, table)
	})
}

func layerWith(t testing.TB, write func(w *tar.Writer)) []byte {
	t.Helper()
	var b bytes.Buffer
	z := stdgzip.NewWriter(&b)
	io.WriteString(z, strings.Repeat("content", 100))
	z.Close()
	start := b.Len()
	z = stdgzip.NewWriter(&b)
	w := tar.NewWriter(z)
	write(w)
	w.Close()
	z.Close()
	b.Write(footer(int64(start)))
	return b.Bytes()
}

// footer is that of a layer whose table is at start.
func footer(start int64) []byte {
	var b bytes.Buffer
	z, _ := stdgzip.NewWriterLevel(&b, stdgzip.NoCompression)
	z.Header.Extra = fmt.Appendf([]byte("SG\x16\x00"), "%016xSTARGZ", start)
	z.Close()
	return b.Bytes()
}

func descriptor(layer []byte, keysAndValues ...string) ocispec.Descriptor {
	d := ocispec.Descriptor{Size: int64(len(layer)), Annotations: map[string]string{}}
	for i := 0; i < len(keysAndValues); i += 2 {
		d.Annotations[keysAndValues[i]] = keysAndValues[i+1]
	}
	return d
}

// counted counts the reads of a layer.
type counted struct {
	io.ReaderAt
	mu    sync.Mutex
	calls int
	bytes int64
}

func (c *counted) ReadAt(p []byte, off int64) (int, error) {
	c.mu.Lock()
	c.calls++
	c.bytes += int64(len(p))
	c.mu.Unlock()
	return c.ReaderAt.ReadAt(p, off)
}

func read(t testing.TB, l *toc.Layer, name string) string {
	t.Helper()
	e, ok := l.Lookup(name)
	if !ok {
		t.Fatalf("no %s", name)
	}
	p := make([]byte, e.Size)
	if _, err := toc.Open(l, &e, nil).ReadAt(p, 0); err != nil && err != io.EOF {
		t.Fatal(err)
	}
	return string(p)
}

func TestOpen(t *testing.T) {
	long := strings.Repeat("0123456789", 1000)
	layer, sum := written(t, tarOf(t, dir("d/"), file("d/f", "x"), file("d/long", long), file("d/empty", ""), symlink("l", "d/f")),
		stargz.WithChunkSize(999), stargz.WithPrioritizedFiles([]string{"d/f"}))
	r := &counted{ReaderAt: bytes.NewReader(layer)}
	l, err := estargz.Open(r, descriptor(layer, digestKey, sum.String()))
	if err != nil {
		t.Fatal(err)
	}
	if r.calls != 1 {
		t.Errorf("%d reads, want 1", r.calls)
	}
	if !l.Digested || l.Prefetch <= 0 || l.Prefetch >= int64(len(layer)) {
		t.Errorf("digested %v, prefetch %d", l.Digested, l.Prefetch)
	}
	var names []string
	for e := range l.All() {
		names = append(names, e.Name)
	}
	if got, want := fmt.Sprint(names), "[ d d/empty d/f d/long l]"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	if got := read(t, l, "d/long"); got != long {
		t.Errorf("it reads %.100q…", got)
	}
	if e, _ := l.Lookup("d/f"); e.Extents[0].End > l.Prefetch {
		t.Errorf("d/f ends at %d, but the first %d bytes are said to have it", e.Extents[0].End, l.Prefetch)
	}
}

func TestOpenChecksTheTable(t *testing.T) {
	layer, sum := written(t, tarOf(t, file("f", "x")))
	other := digest.FromString("other").String()
	for name, test := range map[string]struct {
		annotations []string
		digested    bool
		want        error
	}{
		"none":                {nil, false, nil},
		"right":               {[]string{digestKey, sum.String()}, true, nil},
		"right, by another":   {[]string{"org.opencontainers.image.toc.digest", sum.String()}, true, nil},
		"right, twice":        {[]string{digestKey, sum.String(), "org.opencontainers.image.estargz.toc.digest", sum.String()}, true, nil},
		"wrong":               {[]string{digestKey, other}, false, toc.ErrMalformed},
		"they differ":         {[]string{digestKey, sum.String(), "org.opencontainers.image.toc.digest", other}, false, toc.ErrMalformed},
		"no digest":           {[]string{digestKey, "sha256:"}, false, toc.ErrMalformed},
		"by another function": {[]string{digestKey, "sha512:" + strings.Repeat("0", 128)}, false, toc.ErrMalformed},
	} {
		t.Run(name, func(t *testing.T) {
			l, err := estargz.Open(bytes.NewReader(layer), descriptor(layer, test.annotations...))
			if !errors.Is(err, test.want) {
				t.Fatalf("got %v, want %v", err, test.want)
			}
			if err == nil && l.Digested != test.digested {
				t.Errorf("digested %v", l.Digested)
			}
		})
	}
}

// goSource is a tar of many files of all sizes.
func goSource(t testing.TB) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	if err := w.AddFS(os.DirFS(filepath.Join(runtime.GOROOT(), "src", "net", "http"))); err != nil {
		t.Fatal(err) // who tests has Go
	}
	w.Close()
	return b.Bytes()
}

func TestOpenReadsWhatTheFormatsOwnReaderReads(t *testing.T) {
	tarball := goSource(t)
	for name, options := range map[string][]stargz.Option{
		"small chunks":   {stargz.WithChunkSize(32 << 10)},
		"shared members": {stargz.WithChunkSize(50_000), stargz.WithMinChunkSize(64 << 10)},
	} {
		t.Run(name, func(t *testing.T) {
			layer, sum := written(t, tarball, options...)
			l, err := estargz.Open(bytes.NewReader(layer), descriptor(layer, digestKey, sum.String()))
			if err != nil {
				t.Fatal(err)
			}
			own, err := stargz.Open(io.NewSectionReader(bytes.NewReader(layer), 0, int64(len(layer))))
			if err != nil {
				t.Fatal(err)
			}
			files := 0
			for e := range l.All() {
				if e.Type != toc.Regular {
					continue
				}
				files++
				r, err := own.OpenFile(e.Name)
				if err != nil {
					t.Fatal(err)
				}
				want, err := io.ReadAll(r)
				if err != nil {
					t.Fatal(err)
				}
				if got := read(t, l, e.Name); got != string(want) || e.Digest != sha256.Sum256(want) {
					t.Errorf("%s differs", e.Name)
				}
			}
			if files < 50 {
				t.Errorf("%d files", files)
			}
		})
	}
}

func TestInflateReadsNoMoreThanItNeeds(t *testing.T) {
	layer, _ := written(t, goSource(t), stargz.WithChunkSize(64<<10))
	r := &counted{ReaderAt: bytes.NewReader(layer)}
	l, err := estargz.Open(r, descriptor(layer))
	if err != nil {
		t.Fatal(err)
	}
	for e := range l.All() {
		for _, x := range e.Extents {
			r.calls, r.bytes = 0, 0
			c, err := l.Inflate(x, 0)
			if err != nil {
				t.Fatal(err)
			}
			io.Copy(io.Discard, c)
			c.Close()
			if r.calls != 1 || r.bytes > x.End-x.Start {
				t.Fatalf("%s: %d bytes in %d reads, for %d to %d", e.Name, r.bytes, r.calls, x.Start, x.End)
			}
		}
	}
}

func TestInflate(t *testing.T) {
	content := strings.Repeat("all work and no play ", 1000)
	layer, _ := written(t, tarOf(t, file("a", "first"), file("f", content), file("z", "last")), stargz.WithMinChunkSize(1<<20))
	l, err := estargz.Open(bytes.NewReader(layer), descriptor(layer))
	if err != nil {
		t.Fatal(err)
	}
	e, _ := l.Lookup("f")
	x := e.Extents[0]
	if x.Inner == 0 {
		t.Fatal("it does not share a member")
	}
	var all sync.WaitGroup
	for _, off := range []int64{0, 1, 7777, x.Size} {
		all.Go(func() {
			r, err := l.Inflate(x, off)
			if err != nil {
				t.Error(err)
				return
			}
			defer r.Close()
			if err := iotest.TestReader(r, []byte(content[off:])); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
}

func TestInflateOfALayerThatIsNotWhatItsTableSays(t *testing.T) {
	layer, _ := written(t, tarOf(t, file("f", "some content")))
	broken := errors.New("network is down")
	l, err := estargz.Open(bytes.NewReader(layer), descriptor(layer))
	if err != nil {
		t.Fatal(err)
	}
	e, _ := l.Lookup("f")
	for name, test := range map[string]struct {
		change func(x *toc.Extent)
		r      io.ReaderAt
		want   error
	}{
		"too little":     {func(x *toc.Extent) { x.Size = 1 << 20 }, nil, io.ErrUnexpectedEOF},
		"half of it":     {func(x *toc.Extent) { x.End = x.Start + 20 }, nil, io.ErrUnexpectedEOF},
		"nothing":        {func(x *toc.Extent) { x.End = x.Start }, nil, io.ErrUnexpectedEOF},
		"no gzip":        {func(x *toc.Extent) { x.Start++ }, nil, toc.ErrMalformed},
		"far inside":     {func(x *toc.Extent) { x.Inner = 1 << 20 }, nil, io.ErrUnexpectedEOF},
		"too far inside": {func(x *toc.Extent) { x.Inner = 1 << 62 }, nil, toc.ErrLimit},
		"outside":        {func(x *toc.Extent) { x.Start, x.End = 1<<40, 1<<41 }, nil, io.ErrUnexpectedEOF},
		"no layer":       {func(*toc.Extent) {}, failing{broken}, broken},
	} {
		t.Run(name, func(t *testing.T) {
			x := e.Extents[0]
			test.change(&x)
			in := l.Inflater
			if test.r != nil {
				in = in.On(test.r)
			}
			r, err := in.Inflate(x, 0)
			if err == nil {
				_, err = io.Copy(io.Discard, r)
				r.Close()
			}
			if !errors.Is(err, test.want) {
				t.Errorf("got %v, want %v", err, test.want)
			}
		})
	}
}

type failing struct{ err error }

func (f failing) ReadAt([]byte, int64) (int, error) { return 0, f.err }

func TestOpenRefuses(t *testing.T) {
	deep := `{"version":1,"entries":[` + strings.Repeat("[", 1000)
	good, _ := written(t, tarOf(t, file("f", "x")))
	for name, test := range map[string]struct {
		layer []byte
		want  error
	}{
		"nothing":         {nil, toc.ErrFormat},
		"no footer":       {good[:len(good)-1], toc.ErrFormat},
		"no table":        {footer(0), toc.ErrMalformed},
		"a table outside": {append([]byte("content"), footer(1<<40)...), toc.ErrMalformed},
		"far outside":     {append([]byte("content"), footer(1<<63-1)...), toc.ErrMalformed},
		"no offset":       {bytes.Replace(footer(0), []byte("00000STARGZ"), []byte("0000xSTARGZ"), 1), toc.ErrMalformed},
		"a negative one":  {bytes.Replace(footer(0), []byte("0000000000000000STARGZ"), []byte("-000000000000001STARGZ"), 1), toc.ErrMalformed},
		"one of 64 bits":  {bytes.Replace(footer(0), []byte("0000000000000000STARGZ"), []byte("ffffffffffffffffSTARGZ"), 1), toc.ErrMalformed},
		"no gzip":         {append([]byte("content"), footer(0)...), toc.ErrMalformed},
		"no tar":          {layerWith(t, func(*tar.Writer) {}), toc.ErrMalformed},
		"another file": {layerWith(t, func(w *tar.Writer) {
			w.WriteHeader(&tar.Header{Name: "index.json", Typeflag: tar.TypeReg})
		}), toc.ErrMalformed},
		"no JSON":           {layerOf(t, "hello"), toc.ErrMalformed},
		"deep JSON":         {layerOf(t, deep), toc.ErrMalformed},
		"content outside":   {layerOf(t, `{"version":1,"entries":[{"name":"f","type":"reg","size":1,"offset":100000}]}`), toc.ErrMalformed},
		"a bomb of spaces":  {layerOf(t, strings.Repeat(" ", 64<<20)), toc.ErrMalformed},
		"a file in a file":  {layerOf(t, `{"version":1,"entries":[{"name":"f","type":"reg"},{"name":"f/g","type":"reg"}]}`), toc.ErrMalformed},
		"a loop of parents": {layerOf(t, `{"version":1,"entries":[{"name":"f","type":"symlink","linkName":"f"},{"name":"f/g","type":"reg"}]}`), toc.ErrMalformed},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := estargz.Open(bytes.NewReader(test.layer), descriptor(test.layer))
			if !errors.Is(err, test.want) {
				t.Errorf("got %v, want %v", err, test.want)
			}
		})
	}
}

func TestOpenOfLinksInACircle(t *testing.T) {
	layer := layerOf(t, `{"version":1,"entries":[{"name":"a","type":"hardlink","linkName":"b"},{"name":"b","type":"hardlink","linkName":"a"}]}`)
	l, err := estargz.Open(bytes.NewReader(layer), descriptor(layer))
	if err != nil {
		t.Fatal(err)
	}
	if e, _ := l.Lookup("a"); e.Link != "b" {
		t.Errorf("got %+v", e)
	}
}

func TestOpenOfAnExternalTable(t *testing.T) {
	layer, err := os.ReadFile(filepath.Join("testdata", "external.tar.gz"))
	if err != nil {
		t.Fatal(err)
	}
	_, err = estargz.Open(bytes.NewReader(layer), descriptor(layer))
	if !errors.Is(err, toc.ErrFormat) || !strings.Contains(err.Error(), "another image") {
		t.Error(err)
	}
}

func TestOpenOfStargz(t *testing.T) {
	layer, err := os.ReadFile(filepath.Join("testdata", "stargz.tar.gz"))
	if err != nil {
		t.Fatal(err)
	}
	l, err := estargz.Open(bytes.NewReader(layer), descriptor(layer))
	if err != nil {
		t.Fatal(err)
	}
	if got := read(t, l, "d/f"); got != "hello\n" {
		t.Errorf("%q", got)
	}
}

func TestOpenOfAnythingCutShort(t *testing.T) {
	layer, _ := written(t, tarOf(t, file("f", "x")))
	broken := errors.New("network is down")
	for n := range layer {
		_, err := estargz.Open(bytes.NewReader(layer[:n]), descriptor(layer[:n]))
		if !errors.Is(err, toc.ErrFormat) {
			t.Fatalf("of %d bytes: %v", n, err)
		}
		_, err = estargz.Open(bytes.NewReader(layer[:n]), descriptor(layer))
		if !errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, toc.ErrFormat) {
			t.Fatalf("of %d bytes that are there: %v", n, err)
		}
	}
	_, err := estargz.Open(failing{broken}, descriptor(layer))
	if !errors.Is(err, broken) || errors.Is(err, toc.ErrFormat) || errors.Is(err, toc.ErrMalformed) {
		t.Error(err)
	}
}

// A table that is not in the tail is read in pieces, whose errors are the network's.
func TestOpenOfALargeTable(t *testing.T) {
	var entries []tar.Header
	for i := range 2000 {
		entries = append(entries, file(fmt.Sprintf("f%d", i), fmt.Sprintf("content %x", sha256.Sum256([]byte{byte(i), byte(i >> 8)}))))
	}
	layer, sum := written(t, tarOf(t, entries...), stargz.WithMinChunkSize(1<<20))
	r := &counted{ReaderAt: bytes.NewReader(layer)}
	l, err := estargz.Open(r, descriptor(layer, digestKey, sum.String()))
	if err != nil {
		t.Fatal(err)
	}
	if l.Len() != 2001 || r.calls != 2 {
		t.Errorf("%d entries in %d reads", l.Len(), r.calls)
	}
	broken := errors.New("network is down")
	_, err = estargz.Open(failsAfter{r, int64(len(layer) - 64<<10), broken}, descriptor(layer))
	if !errors.Is(err, broken) || errors.Is(err, toc.ErrMalformed) {
		t.Error(err)
	}
}

// failsAfter reads only what begins at off or behind it.
type failsAfter struct {
	io.ReaderAt
	off int64
	err error
}

func (f failsAfter) ReadAt(p []byte, off int64) (int, error) {
	if off < f.off {
		return 0, f.err
	}
	return f.ReaderAt.ReadAt(p, off)
}

func FuzzOpen(f *testing.F) {
	good, _ := written(f, tarOf(f, dir("d/"), file("d/f", "content"), symlink("l", "d")), stargz.WithChunkSize(3))
	f.Add(good)
	f.Add(layerOf(f, `{"version":1,"entries":[{"name":"f","type":"reg","size":7,"offset":0}]}`))
	f.Add(append([]byte("content"), footer(3)...))
	for _, name := range []string{"external.tar.gz", "stargz.tar.gz"} {
		p, err := os.ReadFile(filepath.Join("testdata", name))
		if err != nil {
			f.Fatal(err)
		}
		f.Add(p)
	}
	f.Fuzz(func(t *testing.T, layer []byte) {
		l, err := estargz.Open(bytes.NewReader(layer), descriptor(layer))
		if err != nil {
			if !errors.Is(err, toc.ErrFormat) && !errors.Is(err, toc.ErrMalformed) && !errors.Is(err, toc.ErrLimit) {
				t.Fatal(err)
			}
			return
		}
		for e := range l.All() {
			for _, x := range e.Extents {
				if r, err := l.Inflate(x, 0); err == nil {
					io.CopyN(io.Discard, r, 1<<16)
					r.Close()
				}
			}
		}
	})
}

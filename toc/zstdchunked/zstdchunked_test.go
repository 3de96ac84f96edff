package zstdchunked_test

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"testing/iotest"

	"github.com/containerd/stargz-snapshotter/estargz"
	stargz "github.com/containerd/stargz-snapshotter/estargz/zstdchunked"
	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/granary-oci/granary/toc"
	"github.com/granary-oci/granary/toc/zstdchunked"
	"github.com/granary-oci/granary/toc/zstdchunked/zstdchunkedtest"
)

const (
	storageKey = "io.github.containers.zstd-chunked."
	stargzKey  = "io.containers.zstd-chunked."
	digestKey  = "containerd.io/snapshot/stargz/toc.digest"
	empty      = `{"version":1,"entries":[]}`
)

func descriptor(layer []byte, annotations map[string]string) ocispec.Descriptor {
	return ocispec.Descriptor{Size: int64(len(layer)), Annotations: annotations}
}

func read(t testing.TB, l *toc.Layer, name string) []byte {
	t.Helper()
	e, ok := l.Lookup(name)
	if !ok {
		t.Fatalf("no %s", name)
	}
	p := make([]byte, e.Size)
	if _, err := toc.Open(l, &e, nil).ReadAt(p, 0); err != nil && err != io.EOF {
		t.Fatal(err)
	}
	return p
}

// golden is a layer that a dialect's own writer has made.
func golden(t testing.TB, name string) (layer []byte, annotations map[string]string) {
	t.Helper()
	layer, err := os.ReadFile(filepath.Join("testdata", name+".tar.zst"))
	if err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(filepath.Join("testdata", name+".json"))
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(text, &annotations); err != nil {
		t.Fatal(err)
	}
	return layer, annotations
}

// inflated is a layer's tar.
func inflated(t testing.TB, layer []byte) *tar.Reader {
	t.Helper()
	z, err := zstd.NewReader(bytes.NewReader(layer))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(z.Close)
	return tar.NewReader(z)
}

// wantTar checks that a layer has what its tar has, and returns how many files those are.
func wantTar(t testing.TB, l *toc.Layer, r *tar.Reader) (files int) {
	t.Helper()
	for {
		h, err := r.Next()
		if err == io.EOF {
			return files
		}
		if err != nil {
			t.Fatal(err)
		}
		e, ok := l.Lookup(toc.Clean(h.Name))
		if !ok || e.FileMode() != h.FileInfo().Mode() || !e.ModTime.Equal(h.ModTime) || e.Size != h.Size || e.Link != h.Linkname || int64(e.Minor) != h.Devminor {
			t.Errorf("%s: got %+v", h.Name, e)
		}
		for k, v := range h.PAXRecords {
			if name, ok := strings.CutPrefix(k, "SCHILY.xattr."); ok && e.Xattrs[name] != v {
				t.Errorf("%s: %s is %q, want %q", h.Name, name, e.Xattrs[name], v)
			}
		}
		if e.Type != toc.Regular {
			continue
		}
		files++
		want, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(read(t, l, e.Name), want) {
			t.Errorf("%s differs", e.Name)
		}
		if e.Digest.Known() && e.Digest != sha256.Sum256(want) {
			t.Errorf("%s: digest %s", e.Name, e.Digest)
		}
	}
}

// without returns a map without some keys.
func without(m map[string]string, keys ...string) map[string]string {
	m = maps.Clone(m)
	for _, k := range keys {
		delete(m, k)
	}
	return m
}

// with returns a map with some more keys and values.
func with(m map[string]string, keysAndValues ...string) map[string]string {
	m = maps.Clone(m)
	if m == nil {
		m = make(map[string]string)
	}
	for i := 0; i < len(keysAndValues); i += 2 {
		m[keysAndValues[i]] = keysAndValues[i+1]
	}
	return m
}

func TestOpenOfBothDialects(t *testing.T) {
	for _, dialect := range []string{"storage", "stargz"} {
		layer, annotations := golden(t, dialect)
		for name, a := range map[string]map[string]string{"annotations": annotations, "footer": nil} {
			t.Run(dialect+"/"+name, func(t *testing.T) {
				l, err := zstdchunked.Open(bytes.NewReader(layer), descriptor(layer, a))
				if err != nil {
					t.Fatal(err)
				}
				if l.Digested != (a != nil) {
					t.Errorf("digested %v", l.Digested)
				}
				if files := wantTar(t, l, inflated(t, layer)); files != 4 {
					t.Errorf("%d files", files)
				}
			})
		}
	}
}

func TestOpenFindsHolesAndChunks(t *testing.T) {
	layer, annotations := golden(t, "storage")
	l, err := zstdchunked.Open(bytes.NewReader(layer), descriptor(layer, annotations))
	if err != nil {
		t.Fatal(err)
	}
	e, _ := l.Lookup("d/big")
	covered := int64(0)
	for i, x := range e.Extents {
		covered += x.Size
		if !x.Digest.Known() || i > 0 && x.Start < e.Extents[i-1].End || x.End-x.Start > x.Size+64 {
			t.Errorf("extent %d: %+v", i, x)
		}
	}
	if len(e.Extents) < 2 || e.Size-covered < 50<<10 || !e.Digest.Known() {
		t.Errorf("%d extents of %d of %d bytes, digest %s", len(e.Extents), covered, e.Size, e.Digest)
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

func TestOpenOfStargzSnapshottersLayer(t *testing.T) {
	var b bytes.Buffer
	annotations := make(map[string]string)
	w := estargz.NewWriterWithCompressor(&b, &stargz.Compressor{CompressionLevel: zstd.SpeedFastest, Metadata: annotations})
	w.ChunkSize = 50_000
	if err := w.AppendTar(bytes.NewReader(goSource(t))); err != nil {
		t.Fatal(err)
	}
	sum, err := w.Close()
	if err != nil {
		t.Fatal(err)
	}
	layer := b.Bytes()
	l, err := zstdchunked.Open(bytes.NewReader(layer), descriptor(layer, with(annotations, digestKey, sum.String())))
	if err != nil {
		t.Fatal(err)
	}
	own, err := estargz.Open(io.NewSectionReader(bytes.NewReader(layer), 0, int64(len(layer))), estargz.WithDecompressors(new(stargz.Decompressor)))
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
		if !bytes.Equal(read(t, l, e.Name), want) {
			t.Errorf("%s differs", e.Name)
		}
	}
	if files < 50 {
		t.Errorf("%d files", files)
	}
}

func TestOpenOfStoragesLayer(t *testing.T) {
	tarball := goSource(t)
	layer, annotations, err := zstdchunkedtest.Layer(bytes.NewReader(tarball), 50_000)
	if err != nil {
		t.Fatal(err)
	}
	l, err := zstdchunked.Open(bytes.NewReader(layer), descriptor(layer, annotations))
	if err != nil {
		t.Fatal(err)
	}
	if files := wantTar(t, l, tar.NewReader(bytes.NewReader(tarball))); files < 50 {
		t.Errorf("%d files", files)
	}
}

func TestOpenReadsTheTableAlone(t *testing.T) {
	layer, annotations := golden(t, "storage")
	r := &counted{ReaderAt: bytes.NewReader(layer)}
	if _, err := zstdchunked.Open(r, descriptor(layer, annotations)); err != nil {
		t.Fatal(err)
	}
	want := strings.Split(annotations[storageKey+"manifest-position"], ":")[1]
	if r.calls != 1 || fmt.Sprint(r.bytes) != want {
		t.Errorf("%d bytes in %d reads, want %s", r.bytes, r.calls, want)
	}
}

// counted counts the reads of a layer.
type counted struct {
	io.ReaderAt
	calls int
	bytes int
}

func (c *counted) ReadAt(p []byte, off int64) (int, error) {
	c.calls++
	n, err := c.ReaderAt.ReadAt(p, off)
	c.bytes += n
	return n, err
}

func TestOpenChecksTheAnnotations(t *testing.T) {
	layer, right := zstdchunkedtest.Finish([]byte("frames"), []byte(empty))
	at := right[storageKey+"manifest-position"]
	checksum := right[storageKey+"manifest-checksum"]
	other := digest.FromString("other").String()
	for name, test := range map[string]struct {
		annotations map[string]string
		digested    bool
		want        error
	}{
		"right":                 {right, true, nil},
		"no checksum":           {without(right, storageKey+"manifest-checksum"), false, nil},
		"no position":           {without(right, storageKey+"manifest-position"), true, nil},
		"no tar-split":          {without(right, storageKey+"tarsplit-position"), true, nil},
		"the other dialect's":   {map[string]string{stargzKey + "manifest-position": at, stargzKey + "manifest-checksum": checksum}, true, nil},
		"both":                  {with(right, stargzKey+"manifest-position", at, stargzKey+"manifest-checksum", checksum), true, nil},
		"of what is inflated":   {map[string]string{digestKey: digest.FromString(empty).String()}, true, nil},
		"of both":               {with(right, digestKey, digest.FromString(empty).String()), true, nil},
		"another of inflated":   {with(right, digestKey, other), false, toc.ErrMalformed},
		"another checksum":      {with(right, storageKey+"manifest-checksum", other), false, toc.ErrMalformed},
		"checksums that differ": {with(right, stargzKey+"manifest-checksum", other), false, toc.ErrMalformed},
		"no checksum at all":    {with(right, storageKey+"manifest-checksum", "sha256:1"), false, toc.ErrMalformed},
		"by another function":   {with(right, storageKey+"manifest-checksum", "sha512:"+strings.Repeat("0", 128)), false, toc.ErrMalformed},
		"positions that differ": {with(right, stargzKey+"manifest-position", "8:10:10:1"), false, toc.ErrMalformed},
		"no position at all":    {with(right, storageKey+"manifest-position", "here"), false, toc.ErrMalformed},
		"one below 0":           {with(right, storageKey+"manifest-position", "-8:10:10:1"), false, toc.ErrMalformed},
		"one in the header":     {with(right, storageKey+"manifest-position", "7:10:10:1"), false, toc.ErrMalformed},
		"one of three":          {with(right, storageKey+"manifest-position", "8:10:10"), false, toc.ErrMalformed},
		"one of five":           {with(right, storageKey+"manifest-position", at+":1"), false, toc.ErrMalformed},
		"another type":          {with(right, storageKey+"manifest-position", strings.TrimSuffix(at, "1")+"2"), false, toc.ErrMalformed},
		"one outside":           {with(right, storageKey+"manifest-position", "9223372036854775807:10:10:1"), false, toc.ErrMalformed},
		"a size outside":        {with(right, storageKey+"manifest-position", "14:100000:10:1"), false, toc.ErrMalformed},
		"a size of 128 bits":    {with(right, storageKey+"manifest-position", "14:340282366920938463463374607431768211455:10:1"), false, toc.ErrMalformed},
		"a large table":         {with(right, storageKey+"manifest-position", "14:200000000:10:1"), false, toc.ErrLimit},
		"a large inflated one":  {with(right, storageKey+"manifest-position", "14:10:600000000:1"), false, toc.ErrLimit},
		"a size too small":      {with(right, storageKey+"manifest-position", strings.Replace(at, ":26:", ":25:", 1)), false, toc.ErrMalformed},
		"a size too large":      {with(right, storageKey+"manifest-position", strings.Replace(at, ":26:", ":27:", 1)), false, toc.ErrMalformed},
		"a tar-split outside":   {with(right, storageKey+"tarsplit-position", "1000:10:10"), false, toc.ErrMalformed},
		"a tar-split over it":   {with(right, storageKey+"tarsplit-position", "20:10:10"), false, toc.ErrMalformed},
		"no tar-split at all":   {with(right, storageKey+"tarsplit-position", "x"), false, toc.ErrMalformed},
	} {
		t.Run(name, func(t *testing.T) {
			if !strings.Contains(at, ":26:") {
				t.Fatal(at)
			}
			l, err := zstdchunked.Open(bytes.NewReader(layer), descriptor(layer, test.annotations))
			if !errors.Is(err, test.want) {
				t.Fatalf("got %v, want %v", err, test.want)
			}
			if err == nil && l.Digested != test.digested {
				t.Errorf("digested %v", l.Digested)
			}
		})
	}
}

// foot adds a frame that decoders skip.
func foot(layer, p []byte) []byte {
	layer = append(bytes.Clone(layer), "\x50\x2a\x4d\x18"...)
	return append(binary.LittleEndian.AppendUint32(layer, uint32(len(p))), p...)
}

func TestOpenRefuses(t *testing.T) {
	good, _ := zstdchunkedtest.Finish([]byte("frames"), []byte(empty))
	finish := func(table string) []byte {
		layer, _ := zstdchunkedtest.Finish([]byte("frames"), []byte(table))
		return layer
	}
	for name, test := range map[string]struct {
		layer []byte
		want  error
	}{
		"nothing":             {nil, toc.ErrFormat},
		"no footer":           {good[:len(good)-1], toc.ErrFormat},
		"half a footer":       {good[len(good)-71:], toc.ErrFormat},
		"another type":        {foot(good, zstdchunkedtest.Footer(14, 10, 10, 2, 0, 0, 0)), toc.ErrMalformed},
		"a table outside":     {foot(good, zstdchunkedtest.Footer(1<<40, 10, 10, 1, 0, 0, 0)), toc.ErrMalformed},
		"far outside":         {foot(good, zstdchunkedtest.Footer(-1, 10, 10, 1, 0, 0, 0)), toc.ErrMalformed},
		"a table of nothing":  {foot(good, zstdchunkedtest.Footer(14, 0, 10, 1, 0, 0, 0)), toc.ErrMalformed},
		"a large table":       {foot(good, zstdchunkedtest.Footer(14, -1, 10, 1, 0, 0, 0)), toc.ErrLimit},
		"a tar-split outside": {foot(good, zstdchunkedtest.Footer(14, 10, 10, 1, 1<<62, 1<<62, 0)), toc.ErrMalformed},
		"no zstd":             {foot([]byte("frames are not zstd here"), zstdchunkedtest.Footer(8, 10, 10, 1, 0, 0, 0)), toc.ErrMalformed},
		"no JSON":             {finish("hello"), toc.ErrMalformed},
		"deep JSON":           {finish(`{"version":1,"entries":` + strings.Repeat("[", 1000)), toc.ErrMalformed},
		"a bomb of spaces":    {finish(strings.Repeat(" ", 64<<20)), toc.ErrMalformed},
		"content outside":     {finish(`{"version":1,"entries":[{"name":"f","type":"reg","size":1,"offset":7}]}`), toc.ErrMalformed},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := zstdchunked.Open(bytes.NewReader(test.layer), descriptor(test.layer, nil))
			if !errors.Is(err, test.want) {
				t.Errorf("got %v, want %v", err, test.want)
			}
		})
	}
}

func TestOpenOfAnythingCutShort(t *testing.T) {
	layer, annotations := zstdchunkedtest.Finish([]byte("frames"), []byte(empty))
	for n := range layer {
		_, err := zstdchunked.Open(bytes.NewReader(layer[:n]), descriptor(layer[:n], nil))
		if !errors.Is(err, toc.ErrFormat) {
			t.Fatalf("of %d bytes: %v", n, err)
		}
		_, err = zstdchunked.Open(bytes.NewReader(layer[:n]), descriptor(layer, nil))
		if !errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, toc.ErrFormat) {
			t.Fatalf("of %d bytes that are there: %v", n, err)
		}
	}
	broken := errors.New("network is down")
	for _, a := range []map[string]string{nil, annotations} {
		_, err := zstdchunked.Open(failing{broken}, descriptor(layer, a))
		if !errors.Is(err, broken) || errors.Is(err, toc.ErrFormat) || errors.Is(err, toc.ErrMalformed) {
			t.Error(err)
		}
	}
}

type failing struct{ err error }

func (f failing) ReadAt([]byte, int64) (int, error) { return 0, f.err }

func TestInflate(t *testing.T) {
	layer, annotations := golden(t, "storage")
	l, err := zstdchunked.Open(bytes.NewReader(layer), descriptor(layer, annotations))
	if err != nil {
		t.Fatal(err)
	}
	e, _ := l.Lookup("d/big")
	content, x := read(t, l, "d/big"), e.Extents[1]
	var all sync.WaitGroup
	for _, off := range []int64{0, 1, x.Size / 2, x.Size} {
		all.Go(func() {
			r, err := l.Inflate(x, off)
			if err != nil {
				t.Error(err)
				return
			}
			defer r.Close()
			if err := iotest.TestReader(r, content[x.Offset+off:x.Offset+x.Size]); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
}

func TestInflateOfALayerThatIsNotWhatItsTableSays(t *testing.T) {
	layer, annotations := golden(t, "storage")
	broken := errors.New("network is down")
	l, err := zstdchunked.Open(bytes.NewReader(layer), descriptor(layer, annotations))
	if err != nil {
		t.Fatal(err)
	}
	e, _ := l.Lookup("d/f")
	for name, test := range map[string]struct {
		change func(x *toc.Extent)
		r      io.ReaderAt
		want   error
	}{
		"too little":     {func(x *toc.Extent) { x.Size = 1 << 20 }, nil, io.ErrUnexpectedEOF},
		"half of it":     {func(x *toc.Extent) { x.End-- }, nil, io.ErrUnexpectedEOF},
		"nothing":        {func(x *toc.Extent) { x.End = x.Start }, nil, io.ErrUnexpectedEOF},
		"no zstd":        {func(x *toc.Extent) { x.Start++ }, nil, toc.ErrMalformed},
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

// A frame may claim a window of as much as 3.75 TiB.
func TestInflateBoundsTheWindow(t *testing.T) {
	frame := []byte("\x28\xb5\x2f\xfd\x00\xff\x01\x00\x00")
	layer, annotations := zstdchunkedtest.Finish(frame, []byte(`{"version":1,"entries":[{"name":"f","type":"reg","size":1}]}`))
	l, err := zstdchunked.Open(bytes.NewReader(layer), descriptor(layer, annotations))
	if err != nil {
		t.Fatal(err)
	}
	e, _ := l.Lookup("f")
	if _, err := toc.Open(l, &e, nil).ReadAt(make([]byte, 1), 0); !errors.Is(err, toc.ErrLimit) {
		t.Errorf("got %v, want %v", err, toc.ErrLimit)
	}
}

func FuzzOpen(f *testing.F) {
	for _, name := range []string{"storage", "stargz"} {
		layer, _ := golden(f, name)
		f.Add(layer[len(layer)-3000:])
	}
	tarball := bytes.NewBuffer(nil)
	w := tar.NewWriter(tarball)
	w.WriteHeader(&tar.Header{Name: "d/f", Typeflag: tar.TypeReg, Size: 10})
	io.WriteString(w, "\x00\x00\x00\x00\x00abcde")
	w.Close()
	layer, _, err := zstdchunkedtest.Layer(tarball, 5)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(layer)
	f.Fuzz(func(t *testing.T, layer []byte) {
		l, err := zstdchunked.Open(bytes.NewReader(layer), descriptor(layer, nil))
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

// FuzzOpenAnnotated reads tables of which the annotations tell the place.
func FuzzOpenAnnotated(f *testing.F) {
	f.Add([]byte("frames"), []byte(empty), "14:27:26:1", "49:15:2")
	f.Fuzz(func(t *testing.T, frames, table []byte, at, split string) {
		layer, annotations := zstdchunkedtest.Finish(frames, table)
		annotations[storageKey+"manifest-position"], annotations[storageKey+"tarsplit-position"] = at, split
		_, err := zstdchunked.Open(bytes.NewReader(layer), descriptor(layer, annotations))
		if err != nil && !errors.Is(err, toc.ErrMalformed) && !errors.Is(err, toc.ErrLimit) {
			t.Fatal(err)
		}
	})
}

package tarball

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"errors"
	"io"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/klauspost/compress/zstd"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/granary-oci/granary/toc"
)

func openBytes(p []byte) (*toc.Layer, error) {
	return Open(bytes.NewReader(p), ocispec.Descriptor{Size: int64(len(p))})
}

// open opens a tar in the two ways, whose tables must be the same.
func open(t *testing.T, p []byte) *toc.Layer {
	t.Helper()
	l, err := openBytes(p)
	if err != nil {
		t.Fatal(err)
	}
	scanned, err := Scan(bytes.NewReader(p))
	if err != nil {
		t.Fatal(err)
	}
	if got, want := list(scanned), list(l.TOC); got != want {
		t.Fatalf("scanned:\n%swalked:\n%s", got, want)
	}
	return l
}

// content reads a file by its extents; holes are zeros.
func content(t *testing.T, l *toc.Layer, name string) []byte {
	t.Helper()
	e, ok := l.Lookup(name)
	if !ok {
		t.Fatalf("no %q in\n%s", name, list(l.TOC))
	}
	p := make([]byte, e.Size)
	for _, x := range e.Extents {
		r, err := l.Inflate(x, 0)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(r, p[x.Offset:x.Offset+x.Size]); err != nil {
			t.Fatal(err)
		}
		if x.Digest.Known() && x.Digest != sha256.Sum256(p[x.Offset:x.Offset+x.Size]) {
			t.Errorf("%s: the extent at %d has another digest", name, x.Offset)
		}
		r.Close()
	}
	return p
}

func TestTable(t *testing.T) {
	long := strings.Repeat("long/", 60) + "name"
	for name, c := range map[string]struct {
		tar  []byte
		want string
	}{
		"types": {
			tarOf(t, dir("./"), dir("d/"), file("d/f", "hello"), symlink("s", "../d"), hardlink("h", "./d/f"), link(tar.TypeFifo, "p", ""), link(tar.TypeChar, "c", ""), link(tar.TypeBlock, "b", "")),
			"dir \"\"\nblock \"b\"\nchar \"c\"\ndir \"d\"\nreg \"d/f\" 5\nhardlink \"h\" -> \"d/f\"\nfifo \"p\"\nsymlink \"s\" -> \"../d\"\n",
		},
		"empty": {make([]byte, 1024), "dir \"\"\n"},
		"names that climb": {
			tarOf(t, file("/../../etc/./passwd", "x")), "dir \"\"\ndir \"etc\"\nreg \"etc/passwd\" 1\n",
		},
		"whiteouts are entries": {
			tarOf(t, file(".wh.gone", ""), file(".wh..wh..opq", "")), "dir \"\"\nreg \".wh..wh..opq\" 0\nreg \".wh.gone\" 0\n",
		},
		"a global header is for nobody": {
			tarOf(t, func(t *testing.T, w *tar.Writer) {
				w.WriteHeader(&tar.Header{Typeflag: tar.TypeXGlobalHeader, PAXRecords: map[string]string{"path": "evil", "size": "1000"}})
			}, file("f", "x")),
			"dir \"\"\nreg \"f\" 1\n",
		},
		"GNU base-256": {
			rawTar(raw{name: "f", size: "\x80\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02", flag: '0', magic: "ustar  \x00", content: "hi"}),
			"dir \"\"\nreg \"f\" 2\n",
		},
		"V7": {
			rawTar(raw{name: "d/"}, raw{name: "d/f", size: "3", content: "abc"}), "dir \"\"\ndir \"d\"\nreg \"d/f\" 3\n",
		},
		"a prefix": {
			rawTar(raw{name: "f", flag: '0', magic: "ustar\x0000", patch: func(b []byte) { copy(b[345:], "some/where") }}),
			"dir \"\"\ndir \"some\"\ndir \"some/where\"\nreg \"some/where/f\" 0\n",
		},
		"a hard link with a size has no content": {
			rawTar(raw{name: "h", flag: '1', size: "1000", patch: func(b []byte) { copy(b[157:], "f") }}, raw{name: "f", flag: '0'}),
			"dir \"\"\nreg \"f\" 0\nhardlink \"h\" -> \"f\"\n",
		},
		"garbage behind the end": {append(tarOf(t, file("f", "x")), random(3000, 1)...), "dir \"\"\nreg \"f\" 1\n"},
		"no end":                 {tarOf(t, file("f", "x"))[:1024], "dir \"\"\nreg \"f\" 1\n"},
		"not even padding":       {tarOf(t, file("f", "x"))[:513], "dir \"\"\nreg \"f\" 1\n"},
		"half an end":            {tarOf(t, file("f", "x"))[:1536], "dir \"\"\nreg \"f\" 1\n"},
		"GNU long name and link": {
			tarOf(t, entry(tar.Header{Typeflag: tar.TypeSymlink, Name: long, Linkname: long, Format: tar.FormatGNU}, "")), "",
		},
	} {
		t.Run(name, func(t *testing.T) {
			l := open(t, c.tar)
			if c.want != "" && list(l.TOC) != c.want {
				t.Errorf("got\n%swant\n%s", list(l.TOC), c.want)
			}
			if c.want == "" {
				if e, ok := l.Lookup(long); !ok || e.Link != long {
					t.Errorf("got\n%s", list(l.TOC))
				}
			}
		})
	}
}

func TestAttributes(t *testing.T) {
	records := map[string]string{"SCHILY.xattr.user.a": "1\x002", "SCHILY.xattr.security.capability": "c"}
	h := tar.Header{Typeflag: tar.TypeReg, Name: "grüße", Mode: 0o6755, Uid: 1 << 22, Gid: 1000, ModTime: when, Format: tar.FormatPAX, PAXRecords: records}
	dev := tar.Header{Typeflag: tar.TypeChar, Name: "null", Devmajor: 1, Devminor: 3, Mode: 0o666}
	l := open(t, tarOf(t, entry(h, "x"), entry(dev, "")))
	e, _ := l.Lookup("grüße")
	if e.Mode != 0o6755 || e.UID != 1<<22 || e.GID != 1000 || !e.ModTime.Equal(when) {
		t.Errorf("got %+v", e)
	}
	if want := map[string]string{"user.a": "1\x002", "security.capability": "c"}; !maps.Equal(e.Xattrs, want) {
		t.Errorf("xattrs %q", e.Xattrs)
	}
	if e, _ := l.Lookup("null"); e.Major != 1 || e.Minor != 3 {
		t.Errorf("device %d/%d", e.Major, e.Minor)
	}
}

func TestPAXTimes(t *testing.T) {
	for s, want := range map[string]string{
		"0": "1970-01-01T00:00:00Z", "1.5": "1970-01-01T00:00:01.5Z", "-1.25": "1969-12-31T23:59:58.75Z",
		"1.1234567899": "1970-01-01T00:00:01.123456789Z", "-0.5": "1969-12-31T23:59:59.5Z", "1.": "1970-01-01T00:00:01Z",
		"": "", "x": "", "1.x": "", "1.-5": "", ".5": "",
	} {
		got, ok := parseTime(s)
		if ok != (want != "") || ok && got.UTC().Format("2006-01-02T15:04:05.999999999Z") != want {
			t.Errorf("%q: got %v, %v", s, got.UTC(), ok)
		}
	}
}

func TestContentIsReadInPieces(t *testing.T) {
	big := random(2*PieceSize+1000, 7)
	p := tarOf(t, file("empty", ""), file("big", big), file("small", "hello"))
	for name, l := range map[string]*toc.Layer{"tar": open(t, p), "tar+zstd": openZstd(t, p)} {
		t.Run(name, func(t *testing.T) {
			e, _ := l.Lookup("big")
			if len(e.Extents) != 3 {
				t.Errorf("%d extents", len(e.Extents))
			}
			if string(content(t, l, "big")) != big || string(content(t, l, "small")) != "hello" || len(content(t, l, "empty")) != 0 {
				t.Error("content differs")
			}
			x := e.Extents[1]
			for _, off := range []int64{0, 1, 100_000, x.Size - 1, x.Size} {
				r, err := l.Inflate(x, off)
				if err != nil {
					t.Fatal(err)
				}
				got, err := io.ReadAll(r)
				if err != nil || string(got) != big[x.Offset+off:x.Offset+x.Size] {
					t.Errorf("from %d: %d bytes, %v", off, len(got), err)
				}
				r.Close()
			}
		})
	}
}

func TestScanHashes(t *testing.T) {
	big := random(PieceSize+1, 3)
	table, err := Scan(bytes.NewReader(tarOf(t, file("big", big), file("small", "hello"))))
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{"big": big, "small": "hello"} {
		e, _ := table.Lookup(name)
		if e.Digest != sha256.Sum256([]byte(want)) {
			t.Errorf("%s: digest %s", name, e.Digest)
		}
		for _, x := range e.Extents {
			if x.Digest != sha256.Sum256([]byte(want[x.Offset:x.Offset+x.Size])) {
				t.Errorf("%s: digest of the extent at %d", name, x.Offset)
			}
		}
	}
}

func TestInflatedReaders(t *testing.T) {
	want := random(5000, 5)
	p := tarOf(t, file("f", want))
	for name, l := range map[string]*toc.Layer{"tar": open(t, p), "tar+zstd": openZstd(t, p)} {
		e, _ := l.Lookup("f")
		r, err := l.Inflate(e.Extents[0], 10)
		if err != nil {
			t.Fatal(err)
		}
		if err := iotest.TestReader(r, []byte(want[10:])); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if _, err := l.Inflate(e.Extents[0], 5001); !errors.Is(err, toc.ErrMalformed) {
			t.Errorf("%s: from behind the end: %v", name, err)
		}
	}
}

// counter counts what is read.
type counter struct {
	r     io.ReaderAt
	reads int
	bytes int64
}

func (c *counter) ReadAt(p []byte, off int64) (int, error) {
	n, err := c.r.ReadAt(p, off)
	c.reads++
	c.bytes += int64(n)
	return n, err
}

func TestLargeFilesAreSkipped(t *testing.T) {
	items := []item{}
	for range 4 {
		items = append(items, file("big", strings.Repeat("x", 3<<20)))
	}
	for range 100 {
		items = append(items, file("small", "hello"))
	}
	p := tarOf(t, items...)
	c := &counter{r: bytes.NewReader(p)}
	if _, err := Open(c, ocispec.Descriptor{Size: int64(len(p))}); err != nil {
		t.Fatal(err)
	}
	if c.reads > 7 || c.bytes > 6*window {
		t.Errorf("%d reads of %d bytes in all", c.reads, c.bytes)
	}
}

func TestBadTars(t *testing.T) {
	good := tarOf(t, file("f", strings.Repeat("x", 2000)))
	patched := func(p []byte, at int, b byte) []byte {
		p = bytes.Clone(p)
		p[at] = b
		return p
	}
	huge := rawTar(raw{name: "f", size: "777777777777", flag: '0'})
	overflow := rawTar(raw{name: "f", size: "\x80\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff", flag: '0'})
	for name, c := range map[string]struct {
		tar  []byte
		want error
	}{
		"not a tar":                   {[]byte(random(2000, 9)), toc.ErrFormat},
		"a wrong checksum later":      {patched(tarOf(t, file("a", ""), file("b", "")), 512, 'X'), toc.ErrMalformed},
		"one block of zeros":          {append(make([]byte, 512), good...), toc.ErrMalformed},
		"half a header":               {good[:300], io.ErrUnexpectedEOF},
		"half a file":                 {good[:1000], io.ErrUnexpectedEOF},
		"a size beyond the end":       {huge, io.ErrUnexpectedEOF},
		"a size of more than 63 bits": {overflow, toc.ErrMalformed},
		"a negative size":             {rawTar(raw{name: "f", size: "\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff", flag: '0'}), toc.ErrMalformed},
		"a PAX header of 1 GiB":       {rawTar(raw{name: "x", size: "10000000000", flag: 'x'}), toc.ErrLimit},
		"PAX records that are none":   {rawTar(raw{name: "x", size: "5", flag: 'x', content: "9 a=b"}), toc.ErrMalformed},
		"a PAX size below zero":       {rawTar(raw{name: "x", size: "13", flag: 'x', content: "11 size=-5\n"}, raw{name: "f"}), toc.ErrMalformed},
		"an unknown type":             {rawTar(raw{name: "f", flag: 'Q'}), toc.ErrMalformed},
		"a name of 5000 bytes":        {tarOf(t, file(strings.Repeat("n", 5000), "")), toc.ErrLimit},
		"a file as the root":          {tarOf(t, file(".", "x")), toc.ErrMalformed},
		"an owner of 40 bits":         {tarOf(t, entry(tar.Header{Typeflag: tar.TypeReg, Name: "f", Uid: 1 << 40}, "")), toc.ErrMalformed},
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := openBytes(c.tar); !errors.Is(err, c.want) {
				t.Errorf("open: got %v, want %v", err, c.want)
			}
			if _, err := Scan(bytes.NewReader(c.tar)); !errors.Is(err, c.want) {
				t.Errorf("scan: got %v, want %v", err, c.want)
			}
		})
	}
}

// broken is a reader that fails from byte ok on.
type broken struct {
	r  io.ReaderAt
	ok int64
}

var errBroken = errors.New("connection reset")

func (b broken) ReadAt(p []byte, off int64) (int, error) {
	if off+int64(len(p)) <= b.ok {
		return b.r.ReadAt(p, off)
	}
	n, _ := b.r.ReadAt(p[:max(0, b.ok-off)], off)
	return n, errBroken
}

func TestReadErrorsAreNotTheLayers(t *testing.T) {
	p := tarOf(t, file("f", random(300_000, 2)), file("g", random(300_000, 4)))
	for _, ok := range []int64{0, 100, 300_500, 301_100, 601_000} {
		r := broken{bytes.NewReader(p), ok}
		_, walked := Open(r, ocispec.Descriptor{Size: int64(len(p))})
		_, scanned := Scan(io.NewSectionReader(r, 0, int64(len(p))))
		z := pack(t, p)
		_, unpacked := ScanZstd(io.NewSectionReader(broken{bytes.NewReader(z), ok}, 0, int64(len(z))))
		for what, err := range map[string]error{"open": walked, "scan": scanned, "zstd": unpacked} {
			if !errors.Is(err, errBroken) || errors.Is(err, toc.ErrMalformed) || errors.Is(err, toc.ErrFormat) {
				t.Errorf("%s up to %d: %v", what, ok, err)
			}
		}
	}
}

func TestGoldenSparse(t *testing.T) {
	// Each is made by GNU tar 1.34 of a file of 1 MiB with 4 KiB of 'a' at 64 KiB, of
	// 'b' 98 KiB further and so on up to 'h': tar -S --format=gnu, or --format=pax with
	// --sparse-version 0.0, 0.1 and 1.0.
	want := make([]byte, 1<<20)
	for i := range 8 {
		copy(want[65536+i*100_352:], strings.Repeat(string(rune('a'+i)), 4096))
	}
	names, _ := filepath.Glob("testdata/sparse-*.tar")
	if len(names) != 4 {
		t.Fatal(names)
	}
	for _, name := range names {
		t.Run(filepath.Base(name), func(t *testing.T) {
			p, err := os.ReadFile(name)
			if err != nil {
				t.Fatal(err)
			}
			for _, l := range []*toc.Layer{open(t, p), openZstd(t, p)} {
				e, _ := l.Lookup("sparse")
				if len(e.Extents) != 8 || !bytes.Equal(content(t, l, "sparse"), want) || content(t, l, "after")[0] != 'x' {
					t.Errorf("%d extents of %d bytes: %v", len(e.Extents), e.Size, e.Extents)
				}
			}
		})
	}
}

func TestBadSparseMaps(t *testing.T) {
	pax := func(stored string, records ...string) []byte {
		var text strings.Builder
		for _, r := range records {
			n := len(r) + 3
			if n >= 10 {
				n++
			}
			if n >= 100 {
				n++
			}
			text.WriteString(strings.Join([]string{itoa(n), r + "\n"}, " "))
		}
		return rawTar(raw{name: "x", flag: 'x', size: octalOf(text.Len()), magic: "ustar\x0000", content: text.String()},
			raw{name: "f", flag: '0', size: octalOf(len(stored)), magic: "ustar\x0000", content: stored})
	}
	v1 := []string{"GNU.sparse.major=1", "GNU.sparse.minor=0", "GNU.sparse.realsize=1000"}
	block := func(s string) string { return s + strings.Repeat("\x00", blockSize-len(s)) }
	for name, p := range map[string][]byte{
		"beyond the size":    pax("xx", "GNU.sparse.size=1", "GNU.sparse.numblocks=1", "GNU.sparse.map=0,2"),
		"overlapping":        pax("xxxx", "GNU.sparse.size=9", "GNU.sparse.numblocks=2", "GNU.sparse.map=0,2,1,2"),
		"overflowing":        pax("xx", "GNU.sparse.size=9", "GNU.sparse.numblocks=1", "GNU.sparse.map=9223372036854775807,2"),
		"below zero":         pax("xx", "GNU.sparse.size=9", "GNU.sparse.numblocks=1", "GNU.sparse.map=-1,2"),
		"less than stored":   pax("xxx", "GNU.sparse.size=9", "GNU.sparse.numblocks=1", "GNU.sparse.map=0,2"),
		"fewer than counted": pax("xx", "GNU.sparse.size=9", "GNU.sparse.numblocks=2", "GNU.sparse.map=0,2"),
		"out of order":       pax("xx", "GNU.sparse.numbytes=2", "GNU.sparse.offset=0"),
		"no map in content":  pax("", v1...),
		"a count of 2⁶³":     pax(block("9223372036854775808\n"), v1...),
		"a count of 2²⁰":     pax(block("1048576\n"), v1...),
		"no number":          pax(block("1\nx\n0\n"), v1...),
	} {
		if _, err := openBytes(p); !errors.Is(err, toc.ErrMalformed) {
			t.Errorf("%s: %v", name, err)
		}
	}
	good := pax(block("1\n10\n3\n")+"abc", v1...)
	if got := content(t, open(t, good), "f"); len(got) != 1000 || string(got[10:13]) != "abc" {
		t.Errorf("%d bytes", len(got))
	}
}

func pack(t testing.TB, p []byte) []byte {
	t.Helper()
	z, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	return z.EncodeAll(p, nil)
}

func openZstd(t *testing.T, p []byte) *toc.Layer {
	t.Helper()
	z := append(pack(t, p[:len(p)/2]), pack(t, p[len(p)/2:])...) // of two frames
	table, err := ScanZstd(iotest.HalfReader(bytes.NewReader(z)))
	if err != nil {
		t.Fatal(err)
	}
	l, err := OpenZstd(bytes.NewReader(z), ocispec.Descriptor{Size: int64(len(z))}, table)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func TestBadZstd(t *testing.T) {
	z := pack(t, tarOf(t, file("f", random(100_000, 8))))
	flipped := bytes.Clone(z)
	flipped[len(z)-1] ^= 1 // of the checksum
	window := append([]byte("\x28\xb5\x2f\xfd\x00\xf8"), z[6:]...)
	for name, c := range map[string]struct {
		blob []byte
		want error
	}{
		"nothing":           {nil, toc.ErrFormat},
		"a tar":             {tarOf(t, file("f", "x")), toc.ErrFormat},
		"no tar":            {pack(t, []byte(random(1000, 1))), toc.ErrFormat},
		"cut off":           {z[:len(z)/2], io.ErrUnexpectedEOF},
		"changed":           {flipped, toc.ErrMalformed},
		"garbage after it":  {append(bytes.Clone(z), "garbage!"...), toc.ErrMalformed},
		"a window of 2 TiB": {window, toc.ErrLimit},
	} {
		if _, err := ScanZstd(bytes.NewReader(c.blob)); !errors.Is(err, c.want) {
			t.Errorf("%s: got %v, want %v", name, err, c.want)
		}
	}
}

func TestLayerThatIsShorterThanItsTable(t *testing.T) {
	p := tarOf(t, file("f", random(100_000, 8)))
	table := open(t, p).TOC
	e, _ := table.Lookup("f")
	short, err := Open(bytes.NewReader(tarOf(t)), ocispec.Descriptor{Size: 1024})
	if err != nil {
		t.Fatal(err)
	}
	r, err := short.Inflate(e.Extents[0], 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadAll(r); err != io.ErrUnexpectedEOF {
		t.Errorf("tar: %v", err)
	}
	z := pack(t, p[:5000])
	l, err := OpenZstd(bytes.NewReader(z), ocispec.Descriptor{Size: int64(len(z))}, table)
	if err != nil {
		t.Fatal(err)
	}
	r, err = l.Inflate(toc.Extent{Size: 100_000, Inner: 512}, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadAll(r); err != io.ErrUnexpectedEOF {
		t.Errorf("tar+zstd: %v", err)
	}
}

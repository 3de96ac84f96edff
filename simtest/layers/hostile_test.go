package main

import (
	"archive/tar"
	"bytes"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"testing"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
)

// hostile is a layer that was made to harm.
type hostile struct {
	name      string
	mediaType string
	layer     func(t *testing.T) []byte
	lists     []string // names that it is listed with; nil for
	says      string   // what the error says
	size      int64    // of the file "file", if not 0
}

func tarOf(t *testing.T, entries ...entry) []byte {
	t.Helper()
	var b bytes.Buffer
	if err := writeTar(&b, entries...); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func ofTar(entries ...entry) func(*testing.T) []byte {
	return func(t *testing.T) []byte { return tarOf(t, entries...) }
}

// sparse are the headers of a file of 4 GiB and a byte, of which that byte is there
// (GNU tar's manual, "Storing Sparse Files", PAX format 0.1).
func sparse(name string) entry {
	e := file(name, "!")
	e.PAXRecords = nil
	const size = 4<<30 + 1
	records := ""
	for _, r := range [][2]string{
		{"GNU.sparse.major", "0"}, {"GNU.sparse.minor", "1"}, {"GNU.sparse.name", name}, {"GNU.sparse.size", fmt.Sprint(size)},
		{"GNU.sparse.numblocks", "1"}, {"GNU.sparse.map", fmt.Sprintf("%d,1", size-1)},
	} {
		records += paxRecord(r[0], r[1])
	}
	var b bytes.Buffer
	header := make([]byte, 512)
	copy(header, "PaxHeaders/"+name)
	copy(header[100:], "0000644\x000000000\x000000000\x00"+fmt.Sprintf("%011o\x00", len(records))+"00000000000\x00")
	header[156] = 'x'
	copy(header[257:], "ustar\x0000")
	checkSum(header)
	b.Write(header)
	b.WriteString(records + string(make([]byte, -len(records)&511)))
	w := tar.NewWriter(&b)
	_ = w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644, Size: 1, Format: tar.FormatUSTAR}) // of a buffer
	_, _ = io.WriteString(w, "!")
	_ = w.Flush()
	e.raw = b.Bytes()
	return e
}

// paxRecord is a record with its length before it, in which that counts too.
func paxRecord(key, value string) string {
	text := " " + key + "=" + value + "\n"
	n := len(text)
	for len(fmt.Sprint(n))+len(text) != n {
		n = len(fmt.Sprint(n)) + len(text)
	}
	return fmt.Sprint(n) + text
}

// checkSum sets the sum of a header (POSIX.1-2024, ustar).
func checkSum(header []byte) {
	copy(header[148:], "        ")
	sum := 0
	for _, c := range header {
		sum += int(c)
	}
	copy(header[148:], fmt.Sprintf("%06o\x00 ", sum))
}

// bombSize is what bombs inflate to: twice what a node may take.
const bombSize = 2 * maxMemory

// bomb is a tar of one file of zeros, in very little: its compressed parts, which
// follow each other, are all the same but for the header.
func bomb(compress func(io.Writer) (io.WriteCloser, error)) func(*testing.T) []byte {
	return func(t *testing.T) []byte {
		var header bytes.Buffer
		w := tar.NewWriter(&header)
		if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: "file", Mode: 0o644, Size: bombSize}); err != nil {
			t.Fatal(err)
		}
		return append(packed(t, compress, header.Bytes()), repeated(t, compress, make([]byte, 1<<20), bombSize)...)
	}
}

// packed is p, compressed.
func packed(t *testing.T, compress func(io.Writer) (io.WriteCloser, error), p []byte) []byte {
	t.Helper()
	var b bytes.Buffer
	z, err := compress(&b)
	if err != nil {
		t.Fatal(err)
	}
	_, _ = z.Write(p) // of a buffer
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// repeated is p again and again, compressed, size bytes in all.
func repeated(t *testing.T, compress func(io.Writer) (io.WriteCloser, error), p []byte, size int) []byte {
	t.Helper()
	return bytes.Repeat(packed(t, compress, p), size/len(p))
}

func byGzip(w io.Writer) (io.WriteCloser, error) {
	return gzip.NewWriterLevel(w, gzip.BestSpeed)
}

func byZstd(w io.Writer) (io.WriteCloser, error) {
	return zstd.NewWriter(w, zstd.WithEncoderLevel(zstd.SpeedFastest))
}

// table is eStargz with a table of many entries.
func table(t *testing.T) []byte {
	var text bytes.Buffer
	text.WriteString(`{"version":1,"entries":[`)
	for i := range bigTable {
		if i > 0 {
			text.WriteByte(',')
		}
		text.WriteString(`{"name":"usr/lib/directory-`)
		text.Write(strconv.AppendInt(nil, int64(10_000+i/100), 10))
		text.WriteString(`/file-`)
		text.Write(strconv.AppendInt(nil, int64(1_000_000+i), 10))
		text.WriteString(`","type":"reg","modtime":"2025-10-09T08:53:20Z","mode":420,"userName":"a user of the system","groupName":"a group"}`)
	}
	text.WriteString("]}")
	var w stargzWriter
	layer, err := w.finish(int64(text.Len()), &text)
	if err != nil {
		t.Fatal(err)
	}
	return layer
}

// tableBomb is eStargz with a table of 3 GiB of nothing.
func tableBomb(t *testing.T) []byte {
	var header bytes.Buffer
	if err := tar.NewWriter(&header).WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: "stargz.index.json", Size: 3 << 30}); err != nil {
		t.Fatal(err)
	}
	layer := append(packed(t, byGzip, header.Bytes()), packed(t, byGzip, []byte(`{"version":1,`))...)
	layer = append(layer, repeated(t, byGzip, bytes.Repeat([]byte(" "), 1<<20), 3<<30)...)
	return append(layer, stargzFooter(0)...)
}

// bigTable is how many entries make a table of 100 MiB.
const bigTable = 625_000

var hostiles = []hostile{
	{name: "climbs", layer: ofTar(file("../../../file", "x"), file("a/../../b", "x"), symlink("c", "../../../d")), lists: []string{"/b", "/c", "/file"}},
	{name: "absolute", layer: ofTar(file("/etc/file", "x")), lists: []string{"/etc", "/etc/file"}},
	{name: "duplicates", layer: ofTar(file("file", "first"), dir("file2"), file("file2/in", "x"), file("file2", "x"), file("./file", "last one")), lists: []string{"/file", "/file2"}, size: 8},
	{name: "link-cycle", layer: ofTar(hardlink("a", "b"), hardlink("b", "a")), says: "hardlinks on the way"},
	{name: "link-to-itself", layer: ofTar(hardlink("a", "a")), says: "hardlink"},
	{name: "link-to-nothing", layer: ofTar(hardlink("a", "nothing")), says: "which is not there"},
	{name: "symlink-cycle", layer: ofTar(symlink("a", "b"), symlink("b", "a")), lists: []string{"/a", "/b"}},
	{name: "through-a-symlink-cycle", layer: ofTar(symlink("a", "b"), symlink("b", "a"), file("a/file", "x")), says: "symlinks"},
	{name: "4-gib", layer: ofTar(sparse("file")), lists: []string{"/file"}, size: 4<<30 + 1},
	{name: "cut-off", layer: func(t *testing.T) []byte { return tarOf(t, file("file", strings.Repeat("x", 5000)))[:3000] }, says: "malformed"},
	{name: "whiteout-of-nothing", layer: ofTar(file("a/.wh.b", ""), file(".wh.c", ""), file("d/.wh..wh..opq", "")), lists: []string{"/a", "/d"}},
	{name: "whiteout-of-no-name", layer: ofTar(file("a/.wh.", "")), says: "whiteout of no name"},
	{name: "gzip-bomb", mediaType: gzipType, layer: bomb(byGzip), lists: []string{"/file"}, size: bombSize},
	{name: "zstd-bomb", mediaType: zstdType, layer: bomb(byZstd), lists: []string{"/file"}, size: bombSize},
	{name: "zstd-window", mediaType: zstdType, layer: func(*testing.T) []byte {
		return append([]byte("\x28\xb5\x2f\xfd\x00\xa0"), make([]byte, 4096)...) // 1 GiB (RFC 8878 section 3.1.1.1.2)
	}, says: "over the limit"},
	{name: "toc-of-100-mib", mediaType: gzipType, layer: table},
	{name: "toc-bomb", mediaType: gzipType, layer: tableBomb, says: "over the limit"},
	{name: "empty", layer: func(*testing.T) []byte { return make([]byte, 1) }, says: "malformed"},
	{name: "noise", mediaType: gzipType, layer: func(*testing.T) []byte {
		return append([]byte("\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\xff"), bytes.Repeat([]byte("noise"), 1000)...)
	}, says: "malformed"},
}

// maxMemory is the most that a node takes for all of this, in bytes.
const maxMemory = 512 << 20

// One node looks into all of them, and serves on.
func TestHostileLayers(t *testing.T) {
	l := theLab(t)
	n := serve(t)
	for _, h := range hostiles {
		t.Run(h.name, func(t *testing.T) {
			if h.mediaType == "" {
				h.mediaType = tarType
			}
			img := l.single(t, "hostile/"+h.name, h.mediaType, h.layer(t), nil)
			out, err := n.run(t.Context(), "ls", "-R", img.name+":v1")
			switch {
			case h.lists == nil && h.says == "":
				if lines := bytes.Count(out, []byte("\n")); err != nil || lines < bigTable {
					t.Errorf("%d files are listed, %v", lines, err)
				}
			case h.says != "":
				if err == nil || !strings.Contains(err.Error(), h.says) {
					t.Errorf("got %v, want an error that says %q", err, h.says)
				}
			case err != nil:
				t.Error(err)
			default:
				if got := strings.Fields(string(out)); fmt.Sprint(got) != fmt.Sprint(h.lists) {
					t.Errorf("lists %q, want %q", got, h.lists)
				}
			}
			if h.size != 0 {
				n.checkEnd(t, img, h.size)
			}
		})
	}
	n.checkFile(t, "estargz:v1", smallFile)
	if peak, err := n.peak(); err != nil || peak > maxMemory {
		t.Errorf("the node has had %d bytes of memory, %v", peak, err)
	} else {
		t.Logf("the node has had %d MiB of memory", peak>>20)
	}
}

// checkEnd reads the last bytes of the file "file" of an image's only layer.
func (n *node) checkEnd(t *testing.T, img *image, size int64) {
	t.Helper()
	query := url.Values{"path": {"file"}}.Encode()
	resp, err := get(t.Context(), n.layer(img.name, "file/"+string(img.layers[0].Digest), query), http.Header{"Range": {"bytes=-4"}})
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	p, err := io.ReadAll(resp.Body)
	want := fmt.Sprintf("bytes %d-%d/%d", size-4, size-1, size)
	if got := resp.Header.Get("Content-Range"); err != nil || len(p) != 4 || got != want {
		t.Errorf("the end of the file is %q, %s, %v, want %s; status %s", p, got, err, want, resp.Status)
	}
}

// disagreeing is a layer that shows another file than it has.
func disagreeing(t *testing.T, name string, pad int) *image {
	t.Helper()
	content := "of " + name
	return theLab(t).single(t, "hostile/"+name, gzipType, stargzOf(t, "there", "shown", content, digest.FromString(content), pad), nil)
}

// A table that disagrees with its tar is believed until all of the layer is there.
func TestATableThatDisagrees(t *testing.T) {
	n := serve(t)
	list := func(img *image) string { return string(n.mustRun(t, "ls", img.name+":v1")) }
	isTar := func(listing string) bool {
		return strings.Contains(listing, "there\n") && !strings.Contains(listing, "shown\n")
	}
	small := disagreeing(t, "small", 0)
	if got := list(small); !isTar(got) {
		t.Errorf("of a layer that is read at once it lists %q", got)
	}
	late := disagreeing(t, "pulled-after", padding)
	if got := list(late); got != "shown\n" {
		t.Errorf("at first it lists %q", got)
	}
	n.mustRun(t, "pull", late.name+":v1")
	n.eventually(t, "the listing is that of the tar", func() bool { return isTar(list(late)) })
	early := disagreeing(t, "pulled-before", padding)
	n.mustRun(t, "pull", early.name+":v1")
	if got := list(early); !isTar(got) {
		t.Errorf("after it has been pulled it lists %q", got)
	}
	if log := n.output(); !strings.Contains(log, "disagrees with the layer") {
		t.Errorf("nothing of it is logged:\n%s", log)
	}
	metrics, _, err := fetch(t.Context(), n.admin+"/metrics")
	if err != nil || bytes.Contains(metrics, []byte(`granary_corrupt_total{source="table"} 0`)) {
		t.Errorf("it is not counted, %v", err)
	}
}

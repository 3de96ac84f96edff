package tarball

import (
	"archive/tar"
	"bytes"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/granary-oci/granary/toc"
)

func itoa(n int) string    { return strconv.Itoa(n) }
func octalOf(n int) string { return fmt.Sprintf("%011o", n) }

// FuzzLikeArchiveTar holds what is read of a tar against what the runtimes read.
func FuzzLikeArchiveTar(f *testing.F) {
	names, _ := filepath.Glob("testdata/*.tar")
	for _, name := range names {
		p, err := os.ReadFile(name)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(p[:4*blockSize]) // small ones are changed more often
	}
	f.Add(rawTar(raw{name: "d/"}, raw{name: "d/f", size: "3", content: "abc"}))
	f.Add(rawTar(raw{name: "f", flag: 'S', magic: "ustar  \x00", patch: func(b []byte) { copy(b[483:], "1000") }}))
	f.Fuzz(func(t *testing.T, p []byte) {
		if len(p) > 1<<17 {
			return
		}
		walked, err := openBytes(p)
		scanned, err2 := Scan(bytes.NewReader(p))
		if (err == nil) != (err2 == nil) {
			t.Fatalf("walked: %v, scanned: %v", err, err2)
		}
		if err != nil {
			return
		}
		if list(walked.TOC) != list(scanned) {
			t.Fatalf("walked\n%sscanned\n%s", list(walked.TOC), list(scanned))
		}
		want, ok := likeArchiveTar(p)
		if ok && want != list(scanned) {
			t.Fatalf("archive/tar:\n%shere:\n%s", want, list(scanned))
		}
	})
}

// likeArchiveTar lists a tar as archive/tar reads it, if it can.
func likeArchiveTar(p []byte) (string, bool) {
	types := map[byte]toc.Type{
		tar.TypeReg: toc.Regular, tar.TypeCont: toc.Regular, tar.TypeGNUSparse: toc.Regular, tar.TypeDir: toc.Directory, tar.TypeSymlink: toc.Symlink,
		tar.TypeLink: toc.Hardlink, tar.TypeChar: toc.CharDevice, tar.TypeBlock: toc.BlockDevice, tar.TypeFifo: toc.FIFO,
	}
	var b toc.Builder
	for r := tar.NewReader(bytes.NewReader(p)); ; {
		h, err := r.Next()
		if err == io.EOF {
			break
		}
		if err != nil && !strings.Contains(err.Error(), "insecure") {
			return "", false
		}
		if h.Typeflag == tar.TypeXGlobalHeader {
			continue
		}
		e := toc.Entry{Name: h.Name, Type: types[h.Typeflag], Mode: uint32(h.Mode & 0o7777), UID: uint32(h.Uid), GID: uint32(h.Gid)}
		switch e.Type {
		case toc.Regular:
			e.Size = h.Size
		case toc.Symlink, toc.Hardlink:
			e.Link = h.Linkname
		}
		if b.Add(e) != nil {
			return "", false
		}
	}
	t, err := b.Done()
	if err != nil {
		return "", false
	}
	return list(t), true
}

func FuzzScanZstd(f *testing.F) {
	f.Add(pack(f, rawTar(raw{name: "f", size: "3", content: "abc"})))
	f.Fuzz(func(t *testing.T, p []byte) {
		if len(p) > 1<<16 {
			return
		}
		ScanZstd(io.LimitReader(bytes.NewReader(p), 1<<16)) //nolint:errcheck // it may be anything
	})
}

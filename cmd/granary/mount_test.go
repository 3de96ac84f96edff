package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/granary-oci/granary/cmd/granary/node"
	"github.com/granary-oci/granary/fuse"
	"github.com/granary-oci/granary/proxy/ref"
	"github.com/granary-oci/granary/proxy/upstream"
	"github.com/granary-oci/granary/toc"
)

func TestMountWantsAnEmptyDirectory(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for at, want := range map[string]string{file: "not a directory", dir: "not empty", filepath.Join(dir, "none"): "no such file"} {
		// Nothing is asked first: there is no registry.
		status, _, errs := granary(t, "mount", "registry.test/app:v1", at, "--node", "http://127.0.0.1:1", "--data-dir", t.TempDir())
		if status != 1 || !strings.Contains(errs, "mount at "+at) || !strings.Contains(errs, want) {
			t.Errorf("%s: %d, %s; want %s", at, status, errs, want)
		}
	}
}

func TestMountWantsADirectoryToKeepWhatIsWritten(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	want := "not a directory"
	if os.Geteuid() != 0 {
		want = "take root"
	}
	status, _, errs := granary(t, "mount", "registry.test/app:v1", t.TempDir(), "--upper", file, "--node", "http://127.0.0.1:1", "--data-dir", t.TempDir())
	if status != 1 || !strings.Contains(errs, want) {
		t.Errorf("%d, %s; want %s", status, errs, want)
	}
}

const layerOfF = digest.Digest("sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855")

var contentOfF = bytes.Repeat([]byte("content"), 100)

// readF returns contents that a node gives as answer does, and a file, f, of which each
// half has a digest.
func readF(t *testing.T, answer http.HandlerFunc) (*nodeContents, toc.File) {
	t.Helper()
	half := int64(len(contentOfF) / 2)
	first, second := toc.Digest(sha256.Sum256(contentOfF[:half])), toc.Digest(sha256.Sum256(contentOfF[half:]))
	var b toc.Builder
	err := b.Add(toc.Entry{Name: "f", Type: toc.Regular, Size: 2 * half, Extents: []toc.Extent{{Size: half, Digest: first}, {Offset: half, Size: half, Digest: second}}})
	if err != nil {
		t.Fatal(err)
	}
	table1, err := b.Done()
	if err != nil {
		t.Fatal(err)
	}
	img := &image{tables: []*table{{Layer: &toc.Layer{TOC: table1}, desc: ocispec.Descriptor{Digest: layerOfF}}}}
	tree, err := img.tree()
	if err != nil {
		t.Fatal(err)
	}
	s := httptest.NewServer(answer)
	t.Cleanup(s.Close)
	f, _ := tree.Lookup("f")
	return &nodeContents{img: img, connect: func(context.Context) (*upstream.Repository, error) {
		return repositoryAt(s.URL, node.DataConfig{}, ref.Reference{Repository: ref.Repository{Host: "registry.test", Name: "app"}}, 0)
	}}, f
}

// serveF answers as a node does.
func serveF(w http.ResponseWriter, r *http.Request) {
	if r.URL.Path != "/v2/registry.test/app/_granary/file/"+string(layerOfF) || r.URL.Query().Get("path") != "f" {
		http.NotFound(w, r)
		return
	}
	http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(contentOfF))
}

func TestMountReads(t *testing.T) {
	var asked atomic.Int32
	// first spoils the first answer.
	first := func(spoil http.HandlerFunc) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			if asked.Add(1) == 1 {
				spoil(w, r)
				return
			}
			serveF(w, r)
		}
	}
	status := func(code int) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(code) }
	}
	for name, answer := range map[string]http.HandlerFunc{
		"well":       first(serveF),
		"overloaded": first(status(http.StatusServiceUnavailable)),
		"failing":    first(status(http.StatusBadGateway)),
		"cut": first(func(http.ResponseWriter, *http.Request) {
			panic(http.ErrAbortHandler)
		}),
		"short": first(func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Length", "1000")
			w.WriteHeader(http.StatusPartialContent)
		}),
		"whole": first(func(w http.ResponseWriter, r *http.Request) {
			_, _ = w.Write(contentOfF)
		}),
		"corrupt": first(func(w http.ResponseWriter, r *http.Request) {
			http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(bytes.ToUpper(contentOfF)))
		}),
	} {
		for _, off := range []int64{0, 100, int64(len(contentOfF) / 2)} {
			asked.Store(0)
			contents, f := readF(t, answer)
			p := make([]byte, f.Size-off)
			if err := contents.ReadAt(t.Context(), &f, p, off); err != nil || !bytes.Equal(p, contentOfF[off:]) {
				t.Errorf("%s, from %d: %q, %v", name, off, p, err)
			}
		}
	}
}

func TestMountReadsThatAreRefused(t *testing.T) {
	for code, want := range map[int]bool{http.StatusUnauthorized: true, http.StatusForbidden: true, http.StatusNotFound: false, http.StatusUnprocessableEntity: false} {
		contents, f := readF(t, func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(code) })
		err := contents.ReadAt(t.Context(), &f, make([]byte, 10), 0)
		var status *upstream.StatusError
		if !errors.As(err, &status) || status.Code != code || errors.Is(err, fs.ErrPermission) != want {
			t.Errorf("%d: %v", code, err)
		}
	}
}

func TestMountReadsEndWithTheProgram(t *testing.T) {
	asked, gone := make(chan struct{}), make(chan struct{})
	contents, f := readF(t, func(_ http.ResponseWriter, r *http.Request) {
		close(asked)
		<-r.Context().Done()
		close(gone)
	})
	ctx, cancel := context.WithCancel(t.Context())
	go func() { <-asked; cancel() }()
	if err := contents.ReadAt(ctx, &f, make([]byte, 10), 0); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	<-gone // the node knows
}

// TestMountOutage has a node that is away for long.
func TestMountOutage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		away := errors.New("away")
		contents := &nodeContents{connect: func(context.Context) (*upstream.Repository, error) { return nil, away }}
		took := func() time.Duration {
			begin := time.Now()
			if err := contents.ReadAt(t.Context(), &toc.File{}, make([]byte, 1), 0); !errors.Is(err, away) {
				t.Error(err)
			}
			return time.Since(begin)
		}
		if d := took(); d < readPatience || d > readPatience+2*longReadPause {
			t.Errorf("the first read fails after %v", d)
		}
		if d := took(); d != 0 {
			t.Errorf("the next one fails after %v", d)
		}
		time.Sleep(2 * readPatience)
		if d := took(); d < readPatience {
			t.Errorf("one that comes later fails after %v", d)
		}
	})
}

func TestUsageText(t *testing.T) {
	for want, u := range map[string]fuse.Usage{
		"2.0 MiB were read; 1.0 MiB of 8.0 MiB of content came, which is 12.5 %": {Read: 2 << 20, Fetched: 1 << 20, Content: 8 << 20},
		"0 B were read; 0 B of 0 B of content came, which is 0.0 %":              {},
	} {
		if got := usageText(u); got != want {
			t.Errorf("%s, want %s", got, want)
		}
	}
}

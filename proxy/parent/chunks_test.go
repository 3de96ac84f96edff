package parent

import (
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/granary-oci/granary/chunkstore/chunk"
	"github.com/granary-oci/granary/proxy/ref"
	"github.com/granary-oci/granary/proxy/upstream"
)

// FuzzMapPart: whatever a parent sends, what is taken of it are digests of chunks that the blob has, and the rest is
// named as wrong.
func FuzzMapPart(f *testing.F) {
	d := digest.FromString("chunk")
	for _, chunks := range []string{"", `"` + string(d) + `"`, strings.Repeat(`"`+string(d)+`",`, 300) + `"x"`, `"sha512:00"`, "1"} {
		f.Add(fmt.Appendf(nil, `{"size":3145729,"chunkSize":1048576,"first":0,"chunks":[%s]}`, chunks), int64(3<<20+1), 0)
	}
	f.Add([]byte(`{"size":5,"chunkSize":1048576,"first":0,"chunks":[]}`), int64(3<<20), 0)
	f.Add([]byte(`{"size":`), int64(3<<20), 1)
	f.Fuzz(func(t *testing.T, text []byte, total int64, first int) {
		if total <= chunk.Size || total > chunk.MaxBlobSize || first < 0 || int64(first) > (total-1)/chunk.Size {
			return
		}
		of := chunk.Ref{Blob: digest.FromString("blob"), Total: total, Size: chunk.Size}
		all, err := parseMapPart(text, of, first)
		if err != nil {
			if !chunk.IsCorrupt(err) {
				t.Errorf("not named as wrong: %v", err)
			}
			return
		}
		if int64(first+len(all)) > (total-1)/chunk.Size+1 || len(all) > mapPart {
			t.Errorf("%d digests from %d on", len(all), first)
		}
		for _, d := range all {
			if d.Validate() != nil || d.Algorithm() != digest.SHA256 {
				t.Errorf("%q", d)
			}
		}
	})
}

// TestAMapOfAnotherSize is wrong, and it is not known by whose fault.
func TestAMapOfAnotherSize(t *testing.T) {
	_, err := parseMapPart([]byte(`{"size":5,"chunkSize":1048576,"first":0,"chunks":[]}`), chunk.Ref{Total: 3 << 20, Size: chunk.Size}, 0)
	if !chunk.IsCorrupt(err) || !errors.Is(err, upstream.ErrOtherSize) {
		t.Error(err)
	}
}

// TestABlobIsInARepositoryByItsMap: a parent's map says so, which caches have, of that repository alone; with a
// credential, and where there is no map, HEAD does.
func TestABlobIsInARepositoryByItsMap(t *testing.T) {
	small, large := digest.FromString("small"), digest.FromString("large")
	sizes := map[digest.Digest]int64{small: 5, large: 3 << 20}
	var mu sync.Mutex
	var asked []string
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		asked = append(asked, q.Method+" "+q.URL.Path)
		w.Header().Set("Docker-Distribution-Api-Version", "registry/2.0")
		d := digest.Digest(q.URL.Path[strings.LastIndexByte(q.URL.Path, '/')+1:])
		switch in := strings.HasPrefix(q.URL.Path, "/v2/registry.test/has/"); {
		case in && q.Method == http.MethodHead:
			w.Header().Set("Content-Length", fmt.Sprint(sizes[d]))
		case in && strings.Contains(q.URL.Path, "/_granary/map/"):
			fmt.Fprintf(w, `{"size":%d,"chunkSize":%d,"first":0,"chunks":[%q]}`, sizes[d], chunk.Size, d)
		default:
			w.WriteHeader(http.StatusNotFound)
		}
	}))
	defer s.Close()
	ps, err := New([]Config{{Name: "hub", Upstream: upstream.Config{URL: s.URL}, Gateway: true}},
		func(_ ref.Repository, d digest.Digest) (int64, bool) { return sizes[d], true }, func(error) {})
	if err != nil {
		t.Fatal(err)
	}
	defer ps.Close()
	for _, c := range []struct {
		repository, credential string
		asks                   []string // besides the repository
		found                  bool
	}{
		{"has", "", []string{"GET _granary/map/"}, true},
		{"has", "Bearer mine", []string{"HEAD blobs/"}, true},
		{"lacks", "", []string{"GET _granary/map/", "HEAD blobs/"}, false},
		{"has", "", []string{"HEAD blobs/"}, true}, // it is spared maps for a while
	} {
		for _, d := range []digest.Digest{small, large} {
			asked = nil
			size, err := ps.Repositories(ref.Repository{Host: "registry.test", Name: c.repository}, c.credential)[0].Stat(t.Context(), d)
			if c.found && (err != nil || size != sizes[d]) || !c.found && !errors.Is(err, chunk.ErrNotFound) {
				t.Errorf("%s of %d bytes, with %q: %d, %v", c.repository, sizes[d], c.credential, size, err)
			}
			var want []string
			for _, a := range c.asks {
				method, path, _ := strings.Cut(a, " ")
				want = append(want, method+" /v2/registry.test/"+c.repository+"/"+path+string(d))
			}
			if !slices.Equal(asked, want) {
				t.Errorf("%s, with %q: asked %q, want %q", c.repository, c.credential, asked, want)
			}
		}
	}
}

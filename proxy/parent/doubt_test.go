package parent_test

import (
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/granary-oci/granary/chunkstore/chunk"
)

// TestWhatAParentSendsOfABlobThatIsDoubtedMeanwhile is not taken: the next reader would find it in the store.
func TestWhatAParentSendsOfABlobThatIsDoubtedMeanwhile(t *testing.T) {
	m, err := chunk.Grid(digest.FromString("x"), 3<<20)
	if err != nil {
		t.Fatal(err)
	}
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		w.Header().Set("Docker-Distribution-Api-Version", "registry/2.0")
		http.ServeContent(w, q, "", time.Time{}, &zeros{size: m.Size()})
	}))
	t.Cleanup(s.Close)
	_, r := at(t, s.URL)
	came := 0
	err = chunk.GetRun(t.Context(), r.Blob(), []chunk.Ref{m.At(0), m.At(1), m.At(2)}, func(chunk.Ref, []byte) error {
		came++
		r.Doubt(m.Blob())
		return nil
	})
	if came != 1 || !errors.Is(err, chunk.ErrNotFound) {
		t.Errorf("%d chunks came, error %v", came, err)
	}
}

// TestWhatAParentSendsOfARangeThatIsDoubtedMeanwhile is not taken either.
func TestWhatAParentSendsOfARangeThatIsDoubtedMeanwhile(t *testing.T) {
	d := digest.FromString("x")
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		w.Header().Set("Docker-Distribution-Api-Version", "registry/2.0")
		http.ServeContent(w, q, "", time.Time{}, &zeros{size: 3 << 20})
	}))
	t.Cleanup(s.Close)
	_, r := at(t, s.URL)
	resp, err := r.Get(t.Context(), "blobs/"+string(d), nil, http.Header{"Range": {"bytes=0-1048575"}})
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if _, err := io.ReadFull(resp.Body, make([]byte, 1<<16)); err != nil {
		t.Fatal(err)
	}
	r.Doubt(d)
	if n, err := io.Copy(io.Discard, resp.Body); n != 0 || !errors.Is(err, chunk.ErrNotFound) {
		t.Errorf("%d bytes come after that, error %v", n, err)
	}
}

// zeros are as many bytes of zero.
type zeros struct{ size, at int64 }

func (e *zeros) Read(p []byte) (int, error) {
	clear(p)
	e.at += int64(len(p))
	return len(p), nil
}

func (e *zeros) Seek(off int64, whence int) (int64, error) {
	if whence == 2 {
		off += e.size
	}
	e.at = off
	return off, nil
}

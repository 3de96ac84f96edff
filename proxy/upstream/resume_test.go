package upstream

import (
	"net/http"
	"slices"
	"testing"
	"time"

	"github.com/granary-oci/granary/chunkstore/chunk"
)

// TestResume has bodies that end early, and looks at what is asked for next.
func TestResume(t *testing.T) {
	content := random(8 * mib)
	small := random(900_000)
	for name, c := range map[string]struct {
		content  []byte
		refs     []chunk.Ref
		cuts     []int64 // what the first answers bring
		requests []string
	}{
		"within a chunk":        {content, refsTo(t, content)[1:5], []int64{mib + 100_000}, []string{"GET bytes=1048576-5242879", "GET bytes=2197152-5242879"}},
		"between chunks":        {content, refsTo(t, content)[1:5], []int64{2 * mib}, []string{"GET bytes=1048576-5242879", "GET bytes=3145728-5242879"}},
		"before the first byte": {content, refsTo(t, content)[:1], []int64{0}, []string{"GET bytes=0-1048575", "GET bytes=0-1048575"}},
		"twice in a chunk": {content, refsTo(t, content)[:1], []int64{100_000, 200_000},
			[]string{"GET bytes=0-1048575", "GET bytes=100000-1048575", "GET bytes=300000-1048575"}},
		"before the last byte": {content, refsTo(t, content)[6:], []int64{2*mib - 1}, []string{"GET bytes=6291456-8388607", "GET bytes=8388607-8388607"}},
		"often, with progress": {content, refsTo(t, content)[:1], []int64{100_000, 100_000, 100_000, 100_000, 100_000, 100_000}, []string{
			"GET bytes=0-1048575", "GET bytes=100000-1048575", "GET bytes=200000-1048575", "GET bytes=300000-1048575",
			"GET bytes=400000-1048575", "GET bytes=500000-1048575", "GET bytes=600000-1048575",
		}},
		"blob of one chunk": {small, refsTo(t, small), []int64{300_000}, []string{"GET", "GET bytes=300000-899999"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			o := newOrigin(t, c.content)
			n := 0
			o.answer = func(w http.ResponseWriter, r *http.Request) bool {
				if n++; n <= len(c.cuts) {
					sendPart(w, r, c.content, c.cuts[n-1])
				}
				return false
			}
			fetch(t, registry(t, o.URL).Repository("app"), c.content, c.refs)
			o.wantRequests(t, c.requests...)
		})
	}
}

func TestResumeWithoutRange(t *testing.T) {
	content := random(900_000)
	o := newOrigin(t, content)
	n := 0
	o.answer = func(w http.ResponseWriter, r *http.Request) bool {
		r.Header.Del("Range")
		if n++; n == 1 {
			sendPart(w, r, content, 300_000)
		}
		return false
	}
	fetch(t, registry(t, o.URL).Repository("app"), content, refsTo(t, content)).want(0)
	o.wantRequests(t, "GET", "GET bytes=300000-899999")
}

func TestResumeGivesUp(t *testing.T) {
	content := random(2 * mib)
	for name, bring := range map[string]int64{"nothing": 0, "hardly anything": 100} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			o := newOrigin(t, content)
			o.answer = func(w http.ResponseWriter, r *http.Request) bool {
				sendPart(w, r, content, bring)
				return true
			}
			_, err := registry(t, o.URL).Repository("app").Blob().Get(t.Context(), refsTo(t, content)[0])
			if !Unreachable(err) {
				t.Errorf("error is %v", err)
			}
			if n := len(o.requests()); n != maxFailures {
				t.Errorf("%d requests, want %d", n, maxFailures)
			}
		})
	}
}

func TestABrokenRegistryIsAskedAFewTimes(t *testing.T) {
	content := random(2 * mib)
	o := newOrigin(t, content)
	o.answer = func(w http.ResponseWriter, _ *http.Request) bool {
		w.WriteHeader(http.StatusServiceUnavailable)
		return true
	}
	_, err := registry(t, o.URL).Repository("app").Blob().Get(t.Context(), refsTo(t, content)[0])
	if !Unreachable(err) {
		t.Errorf("error is %v", err)
	}
	o.wantRequests(t, slices.Repeat([]string{"GET bytes=0-1048575"}, maxFailures)...)
}

// a registry that restarts in the middle of a blob is waited for
func TestResumeAcrossOutage(t *testing.T) {
	content := random(2 * mib)
	o := makeOrigin(content)
	n := 0
	o.answer = func(w http.ResponseWriter, r *http.Request) bool {
		switch n++; n {
		case 1:
			sendPart(w, r, content, mib/2)
		case 2, 3:
			w.WriteHeader(http.StatusServiceUnavailable)
			return true
		}
		return false
	}
	inBubble(t, o, func(t *testing.T, r *Registry) {
		fetch(t, r.Repository("app"), content, refsTo(t, content)).want(0, 1)
	})
	o.wantRequests(t, "GET bytes=0-2097151", "GET bytes=524288-2097151", "GET bytes=524288-2097151", "GET bytes=524288-2097151")
}

func TestStalledBodyIsResumed(t *testing.T) {
	content := random(2 * mib)
	o := makeOrigin(content)
	n := 0
	o.answer = func(w http.ResponseWriter, r *http.Request) bool {
		if n++; n > 1 {
			return false
		}
		w.Header().Set("Content-Range", "bytes 0-2097151/2097152")
		w.WriteHeader(http.StatusPartialContent)
		w.Write(content[:mib+5])
		w.(http.Flusher).Flush()
		<-r.Context().Done()
		return true
	}
	inBubble(t, o, func(t *testing.T, r *Registry) {
		begin := time.Now()
		fetch(t, r.Repository("app"), content, refsTo(t, content)).want(0, 1)
		if d := time.Since(begin); d < defaultStallTimeout || d > 2*defaultStallTimeout {
			t.Errorf("it took %v of virtual time", d)
		}
	})
	o.wantRequests(t, "GET bytes=0-2097151", "GET bytes=1048581-2097151")
}

// a reader that takes long between chunks is not a body that stalls
func TestSlowReader(t *testing.T) {
	content := random(3 * mib)
	o := makeOrigin(content)
	inBubble(t, o, func(t *testing.T, r *Registry) {
		err := chunk.GetRun(t.Context(), r.Repository("app").Blob(), refsTo(t, content), func(chunk.Ref, []byte) error {
			time.Sleep(time.Hour)
			return nil
		})
		if err != nil {
			t.Error(err)
		}
	})
	o.wantRequests(t, "GET bytes=0-3145727")
}

package upstream

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/granary-oci/granary/chunkstore/chunk"
)

func TestStat(t *testing.T) {
	content := random(1234)
	head := func(code int, length string) func(http.ResponseWriter, *http.Request) bool {
		return func(w http.ResponseWriter, r *http.Request) bool {
			if r.Method != http.MethodHead {
				return false
			}
			if length != "" {
				w.Header().Set("Content-Length", length)
			}
			w.WriteHeader(code)
			return true
		}
	}
	noRange := func(w http.ResponseWriter, r *http.Request) bool {
		return head(405, "")(w, r) || ignoreRange(w, r)
	}
	byGet := []string{"HEAD", "GET bytes=0-0"}
	for name, c := range map[string]struct {
		content  []byte
		answer   func(http.ResponseWriter, *http.Request) bool
		requests []string
	}{
		"HEAD":              {content, nil, []string{"HEAD"}},
		"no HEAD":           {content, head(405, ""), byGet},
		"HEAD unknown":      {content, head(501, ""), byGet},
		"no length":         {content, head(200, ""), byGet},
		"no HEAD, no Range": {content, noRange, byGet},
		"empty":             {nil, head(405, ""), byGet},
	} {
		t.Run(name, func(t *testing.T) {
			o := newOrigin(t, c.content)
			o.answer = c.answer
			n, err := registry(t, o.URL).Repository("app").Stat(t.Context(), digest.FromBytes(c.content))
			if err != nil || n != int64(len(c.content)) {
				t.Errorf("got %d, %v", n, err)
			}
			o.wantRequests(t, c.requests...)
		})
	}
}

func TestStatRefusals(t *testing.T) {
	d := digest.FromString("x")
	for name, c := range map[string]struct {
		answer func(http.ResponseWriter, *http.Request) bool
		want   func(error) bool
	}{
		"404": {nil, func(err error) bool { return errors.Is(err, chunk.ErrNotFound) }},
		"403": {func(w http.ResponseWriter, _ *http.Request) bool { w.WriteHeader(403); return true }, func(err error) bool {
			var s *StatusError
			return errors.As(err, &s) && s.Code == 403
		}},
		"a size beyond all blobs": {func(w http.ResponseWriter, _ *http.Request) bool {
			w.Header().Set("Content-Length", fmt.Sprint(int64(chunk.MaxBlobSize)+1))
			return true
		}, func(err error) bool { return err != nil && strings.Contains(err.Error(), "more than a blob") }},
		"no size at all": {func(w http.ResponseWriter, _ *http.Request) bool {
			w.(http.Flusher).Flush()
			return true
		}, func(err error) bool { return err != nil && strings.Contains(err.Error(), "size") }},
	} {
		o := newOrigin(t)
		o.answer = c.answer
		if _, err := registry(t, o.URL).Repository("app").Stat(t.Context(), d); !c.want(err) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestRunIsOneClosedRange(t *testing.T) {
	content := random(9*mib + 5)
	o := newOrigin(t, content)
	p := registry(t, o.URL).Repository("app")
	refs := refsTo(t, content)
	fetch(t, p, content, refs[2:6]).want(2, 3, 4, 5)
	fetch(t, p, content, refs[8:10]).want(8, 9)
	fetch(t, p, content, refs).want(0, 1, 2, 3, 4, 5, 6, 7, 8, 9)
	if got, err := p.Blob().Get(t.Context(), refs[9]); err != nil || len(got) != 5 {
		t.Errorf("last chunk: %d bytes, %v", len(got), err)
	}
	o.wantRequests(t, "GET bytes=2097152-6291455", "GET bytes=8388608-9437188", "GET bytes=0-9437188", "GET bytes=9437184-9437188")
}

func TestSmallBlobsAreWhole(t *testing.T) {
	for _, n := range []int{0, 1, mib} {
		content := random(n)
		o := newOrigin(t, content)
		fetch(t, registry(t, o.URL).Repository("app"), content, refsTo(t, content)).want(0)
		o.wantRequests(t, "GET")
	}
}

func TestNoRefs(t *testing.T) {
	o := newOrigin(t)
	if err := chunk.GetRun(t.Context(), registry(t, o.URL).Repository("app").Blob(), nil, nil); err != nil {
		t.Error(err)
	}
	o.wantRequests(t)
}

func TestBadRuns(t *testing.T) {
	content := random(4 * mib)
	refs := refsTo(t, content)
	other := refs[1]
	other.Blob = digest.FromString("other")
	total := refs[1]
	total.Total += mib
	off := refs[0]
	off.Offset = 7
	o := newOrigin(t, content)
	src := registry(t, o.URL).Repository("app").Blob()
	for name, run := range map[string][]chunk.Ref{
		"gap":        {refs[0], refs[2]},
		"order":      {refs[1], refs[0]},
		"two blobs":  {refs[0], other},
		"two totals": {refs[0], total},
		"off grid":   {off},
		"malformed":  {{Blob: "sha256:xyz", Total: 1, Size: 1}},
	} {
		if err := chunk.GetRun(t.Context(), src, run, nil); err == nil {
			t.Errorf("%s is accepted", name)
		}
	}
	o.wantRequests(t)
}

func TestMissingBlob(t *testing.T) {
	o := newOrigin(t)
	content := random(3 * mib)
	err := chunk.GetRun(t.Context(), registry(t, o.URL).Repository("app").Blob(), refsTo(t, content), nil)
	if !errors.Is(err, chunk.ErrNotFound) || Unreachable(err) {
		t.Errorf("error is %v", err)
	}
	o.wantRequests(t, "GET bytes=0-3145727")
}

// TestWrongAnswers has answers that are not the range that was asked for.
func TestWrongAnswers(t *testing.T) {
	content := random(4 * mib)
	whole := random(100)
	type answer struct {
		status  int
		header  []string
		length  int // -1: chunked, one MiB and two bytes
		corrupt bool
	}
	rng := func(s string) []string { return []string{"Content-Range", s} }
	ask := func(t *testing.T, content []byte, ref chunk.Ref, a answer) error {
		o := newOrigin(t)
		o.answer = func(w http.ResponseWriter, _ *http.Request) bool {
			for i := 0; i < len(a.header); i += 2 {
				w.Header().Set(a.header[i], a.header[i+1])
			}
			if a.length >= 0 {
				w.Header().Set("Content-Length", fmt.Sprint(a.length))
				w.WriteHeader(a.status)
				w.Write(content[:a.length])
				return true
			}
			w.WriteHeader(a.status)
			w.(http.Flusher).Flush()
			w.Write(content[:min(len(content), mib+2)])
			w.Write([]byte("xx"))
			return true
		}
		_, err := registry(t, o.URL).Repository("app").Blob().Get(t.Context(), ref)
		if n := len(o.requests()); n != 1 {
			t.Errorf("%d requests", n)
		}
		return err
	}
	for name, a := range map[string]answer{
		"another total":       {206, rng("bytes 1048576-2097151/4194305"), mib, true},
		"another start":       {206, rng("bytes 0-1048575/4194304"), mib, false},
		"another end":         {206, rng("bytes 1048576-2097150/4194304"), mib - 1, false},
		"beyond the end":      {206, rng("bytes 1048576-2097152/4194304"), mib + 1, false},
		"no range":            {206, nil, mib, false},
		"malformed range":     {206, rng("bytes 1048576/4194304"), mib, false},
		"multipart":           {206, []string{"Content-Type", "multipart/byteranges; boundary=x"}, 100, false},
		"wrong length":        {206, rng("bytes 1048576-2097151/4194304"), mib - 1, false},
		"too much":            {206, rng("bytes 1048576-2097151/4194304"), -1, true},
		"whole of another":    {200, nil, 3 * mib, true},
		"unsatisfiable":       {416, rng("bytes */1048576"), 0, true},
		"unsatisfiable, same": {416, rng("bytes */4194304"), 0, false},
		"no content":          {204, nil, -1, false},
	} {
		t.Run(name, func(t *testing.T) {
			err := ask(t, content, refsTo(t, content)[1], a)
			if err == nil || chunk.IsCorrupt(err) != a.corrupt || Unreachable(err) {
				t.Errorf("error is %v", err)
			}
		})
	}
	for name, a := range map[string]answer{
		"short":           {200, nil, 99, true},
		"too long":        {200, nil, -1, true},
		"unasked partial": {206, rng("bytes 0-99/100"), 100, false},
	} {
		t.Run("single, "+name, func(t *testing.T) {
			err := ask(t, whole, refsTo(t, whole)[0], a)
			if err == nil || chunk.IsCorrupt(err) != a.corrupt {
				t.Errorf("error is %v", err)
			}
		})
	}
}

func TestUnknownTotalIsAccepted(t *testing.T) {
	content := random(2 * mib)
	o := newOrigin(t, content)
	o.answer = func(w http.ResponseWriter, _ *http.Request) bool {
		w.Header().Set("Content-Range", "bytes 0-1048575/*")
		w.WriteHeader(http.StatusPartialContent)
		w.Write(content[:mib])
		return true
	}
	fetch(t, registry(t, o.URL).Repository("app"), content, refsTo(t, content)[:1]).want(0)
}

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

func TestFirstRequestIsMadeOnce(t *testing.T) {
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
	o.wantRequests(t, "GET bytes=0-1048575")
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

func TestYieldEndsTheRun(t *testing.T) {
	content := random(8 * mib)
	o := newOrigin(t, content)
	full := errors.New("full")
	for _, answer := range []func(http.ResponseWriter, *http.Request) bool{nil, ignoreRange} {
		o.answer = answer
		n := 0
		err := chunk.GetRun(t.Context(), registry(t, o.URL).Repository("app").Blob(), refsTo(t, content), func(chunk.Ref, []byte) error {
			if n++; n == 2 {
				return full
			}
			return nil
		})
		if err != full || n != 2 {
			t.Errorf("after %d chunks: %v", n, err)
		}
	}
}

func TestCancel(t *testing.T) {
	content := random(8 * mib)
	for name, ignores := range map[string]bool{"range": false, "no range": true} {
		t.Run(name, func(t *testing.T) {
			o := makeOrigin(content)
			o.answer = func(w http.ResponseWriter, r *http.Request) bool {
				if ignores {
					r.Header.Del("Range")
				}
				if r.Header.Get("Range") != "" {
					w.Header().Set("Content-Range", fmt.Sprintf("bytes 0-%d/%d", len(content)-1, len(content)))
					w.WriteHeader(http.StatusPartialContent)
				}
				w.Write(content[:mib+1])
				w.(http.Flusher).Flush()
				<-r.Context().Done()
				return true
			}
			inBubble(t, o, func(t *testing.T, r *Registry) {
				ctx, cancel := context.WithCancel(t.Context())
				begin := time.Now()
				err := chunk.GetRun(ctx, r.Repository("app").Blob(), refsTo(t, content), func(chunk.Ref, []byte) error {
					time.AfterFunc(time.Second, cancel)
					return nil
				})
				if !errors.Is(err, context.Canceled) || Unreachable(err) {
					t.Errorf("error is %v", err)
				}
				if d := time.Since(begin); d != time.Second {
					t.Errorf("it ended after %v, want as soon as it was cancelled", d)
				}
			})
			if n := len(o.requests()); n != 1 {
				t.Errorf("%d requests", n)
			}
		})
	}
}

func TestConnectionIsReused(t *testing.T) {
	content := random(6 * mib)
	small := random(1000)
	var conns atomic.Int64
	o := watchedOrigin(t, func(s http.ConnState) {
		if s == http.StateNew {
			conns.Add(1)
		}
	}, content, small)
	p := registry(t, o.URL).Repository("app")
	for _, ref := range refsTo(t, content) {
		fetch(t, p, content, []chunk.Ref{ref})
	}
	fetch(t, p, small, refsTo(t, small))
	if _, err := p.Stat(t.Context(), digest.FromBytes(small)); err != nil {
		t.Error(err)
	}
	_, _ = p.Stat(t.Context(), digest.FromString("missing"))
	_, _ = p.Get(t.Context(), "tags/list", nil, nil)
	fetch(t, p, small, refsTo(t, small))
	if n := conns.Load(); n != 1 {
		t.Errorf("%d connections for requests one after the other", n)
	}
}

func TestMaxConns(t *testing.T) {
	content := random(30 * mib)
	var open, most atomic.Int64
	o := watchedOrigin(t, func(s http.ConnState) {
		switch s {
		case http.StateNew:
			if n := open.Add(1); n > most.Load() {
				most.Store(n)
			}
		case http.StateClosed:
			open.Add(-1)
		}
	}, content)
	p := registry(t, o.URL, func(c *Config) { c.MaxConns = 3 }).Repository("app")
	errs := make(chan error)
	refs := refsTo(t, content)
	for _, ref := range refs {
		go func() {
			_, err := p.Blob().Get(t.Context(), ref)
			errs <- err
		}()
	}
	for range refs {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
	if n := most.Load(); n > 3 {
		t.Errorf("%d connections at once", n)
	}
}

func TestReceived(t *testing.T) {
	content := random(5 * mib)
	o := newOrigin(t, content)
	var n atomic.Int64
	fetch(t, registry(t, o.URL, counting(&n)).Repository("app"), content, refsTo(t, content))
	if n.Load() != int64(len(content)) {
		t.Errorf("%d bytes were reported of %d", n.Load(), len(content))
	}
}

func TestParseContentRange(t *testing.T) {
	for s, want := range map[string]contentRange{
		"bytes 0-0/1":     {0, 0, 1},
		"bytes 5-9/10":    {5, 9, 10},
		"Bytes 5-9/*":     {5, 9, -1},
		"bytes */10":      {-1, -1, 10},
		"bytes 0-9/10000": {0, 9, 10000},
	} {
		if got, ok := parseContentRange(s); !ok || got != want {
			t.Errorf("%q is %v, %v", s, got, ok)
		}
	}
	for _, s := range []string{
		"", "bytes", "bytes ", "bytes 0-1", "0-1/2", "items 0-1/2", "bytes */*", "bytes 1-0/5", "bytes 0-5/5", "bytes -1-2/5",
		"bytes +0-1/2", "bytes 0-1/-2", "bytes 0 - 1/2", "bytes 0-1/2 ", "bytes 0-99999999999999999999/*", "bytes 0-1,2-3/9", "bytes=0-1/2",
	} {
		if got, ok := parseContentRange(s); ok {
			t.Errorf("%q is %v", s, got)
		}
	}
}

func FuzzContentRange(f *testing.F) {
	for _, s := range []string{"bytes 0-0/1", "bytes 5-9/*", "bytes */10", "bytes 1-0/5", "bytes 0-9223372036854775808/*"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		c, ok := parseContentRange(s)
		if !ok {
			return
		}
		satisfied := c.start >= 0 && c.start <= c.end && (c.total < 0 || c.end < c.total)
		if !satisfied && (c.start != -1 || c.end != -1 || c.total < 0) {
			t.Errorf("%q is %v", s, c)
		}
	})
}

func BenchmarkGetRun(b *testing.B) {
	content := random(64 * mib)
	o := newOrigin(b, content)
	refs := refsTo(b, content)
	const stripe = chunk.StripeSize / chunk.Size
	for _, parallel := range []int{1, 4} {
		b.Run(fmt.Sprintf("parallel=%d", parallel), func(b *testing.B) {
			src := registry(b, o.URL).Repository("app").Blob()
			var next atomic.Int64
			b.SetBytes(chunk.StripeSize)
			b.SetParallelism(parallel)
			b.RunParallel(func(pb *testing.PB) {
				for pb.Next() {
					i := int(next.Add(stripe)-stripe) % len(refs)
					if err := chunk.GetRun(b.Context(), src, refs[i:i+stripe], func(chunk.Ref, []byte) error { return nil }); err != nil {
						b.Fatal(err)
					}
				}
			})
		})
	}
}

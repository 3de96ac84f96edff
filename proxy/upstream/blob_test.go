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

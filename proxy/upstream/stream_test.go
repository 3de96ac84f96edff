package upstream

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/granary-oci/granary/chunkstore/chunk"
)

// slowly ignores ranges, and takes a second to answer.
func slowly(w http.ResponseWriter, r *http.Request) bool {
	time.Sleep(time.Second)
	return ignoreRange(w, r)
}

func TestIgnoredRangeIsReadOnce(t *testing.T) {
	content := random(12*mib + 7)
	o := newOrigin(t, content)
	o.answer = ignoreRange
	var received atomic.Int64
	p := registry(t, o.URL, counting(&received)).Repository("app")
	refs := refsTo(t, content)
	fetch(t, p, content, refs[:4]).want(0, 1, 2, 3)
	fetch(t, p, content, refs[4:5]).want(4)
	fetch(t, p, content, refs[7:9]).want(5, 6, 7, 8)
	fetch(t, p, content, refs[9:]).want(9, 10, 11, 12)
	o.wantRequests(t, "GET bytes=0-4194303")
	if received.Load() != int64(len(content)) {
		t.Errorf("%d bytes were read of a blob of %d", received.Load(), len(content))
	}
}

func TestIgnoredRangeGoingBack(t *testing.T) {
	content := random(6 * mib)
	o := newOrigin(t, content)
	o.answer = ignoreRange
	p := registry(t, o.URL).Repository("app")
	refs := refsTo(t, content)
	fetch(t, p, content, refs[3:4]).want(0, 1, 2, 3)
	fetch(t, p, content, refs[2:3]).want(2) // what comes along has been given before
	fetch(t, p, content, refs[4:]).want(4, 5)
	o.wantRequests(t, "GET bytes=3145728-4194303", "GET bytes=2097152-3145727")
}

// runs that begin at once, in any order, share one body
func TestIgnoredRangeConcurrently(t *testing.T) {
	content := random(16 * mib)
	o := makeOrigin(content)
	o.answer = slowly
	var received atomic.Int64
	inBubble(t, o, func(t *testing.T, r *Registry) {
		refs := refsTo(t, content)
		var runs sync.WaitGroup
		for _, i := range []int{12, 4, 0, 8} {
			runs.Go(func() { fetch(t, r.Repository("app"), content, refs[i:i+4]).want(i, i+1, i+2, i+3) })
			synctest.Wait()
		}
		runs.Wait()
	}, counting(&received))
	o.wantRequests(t, "GET bytes=12582912-16777215")
	if received.Load() != int64(len(content)) {
		t.Errorf("%d bytes were read of a blob of %d", received.Load(), len(content))
	}
}

// runs that were sent off together, while ranges were thought to work
func TestIgnoredRangeComesAsASurprise(t *testing.T) {
	ranged, content := random(2*mib), random(16*mib)
	o := makeOrigin(ranged, content)
	o.answer = func(w http.ResponseWriter, r *http.Request) bool {
		return strings.Contains(r.URL.Path, string(digest.FromBytes(content))) && slowly(w, r)
	}
	var received atomic.Int64
	inBubble(t, o, func(t *testing.T, r *Registry) {
		fetch(t, r.Repository("app"), ranged, refsTo(t, ranged))
		received.Store(0)
		refs := refsTo(t, content)
		var runs sync.WaitGroup
		for i := 0; i < 16; i += 4 {
			runs.Go(func() { fetch(t, r.Repository("app"), content, refs[i:i+4]) })
		}
		runs.Wait()
	}, counting(&received))
	if received.Load() > 2*int64(len(content)) {
		t.Errorf("%d bytes were read of a blob of %d", received.Load(), len(content))
	}
}

func TestReaderOfIgnoredRange(t *testing.T) {
	content := random(40*mib + 3)
	o := makeOrigin(content)
	o.answer = slowly
	var received atomic.Int64
	inBubble(t, o, func(t *testing.T, r *Registry) {
		m, err := chunk.Grid(digest.FromBytes(content), int64(len(content)))
		if err != nil {
			t.Fatal(err)
		}
		rd := chunk.NewBlob(m, r.Repository("app").Blob(), chunk.BlobConfig{Window: 16 << 20}).Open(t.Context())
		defer rd.Close()
		if got, err := io.ReadAll(rd); err != nil || !bytes.Equal(got, content) {
			t.Errorf("%d bytes, %v", len(got), err)
		}
	}, counting(&received))
	if received.Load() != int64(len(content)) {
		t.Errorf("%d bytes were read of a blob of %d", received.Load(), len(content))
	}
}

func TestParkedBodyIsClosed(t *testing.T) {
	content := random(4 * mib)
	for away, requests := range map[time.Duration]int{parkedFor - time.Second: 1, parkedFor + time.Second: 2} {
		o := makeOrigin(content)
		o.answer = ignoreRange
		inBubble(t, o, func(t *testing.T, r *Registry) {
			refs := refsTo(t, content)
			fetch(t, r.Repository("app"), content, refs[:1])
			time.Sleep(away)
			synctest.Wait()
			fetch(t, r.Repository("app"), content, refs[2:]).want(map[int][]int{1: {1, 2, 3}, 2: {0, 1, 2, 3}}[requests]...)
		})
		if n := len(o.requests()); n != requests {
			t.Errorf("away for %v: %d requests, want %d", away, n, requests)
		}
	}
}

// counted counts the answers that are being given.
func counted(n *atomic.Int64, h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		n.Add(1)
		defer n.Add(-1)
		h.ServeHTTP(w, r)
	})
}

func TestParkedBodiesAreBounded(t *testing.T) {
	var contents [][]byte
	for i := range maxParked + 8 {
		contents = append(contents, random(2*mib+i))
	}
	o := makeOrigin(contents...)
	o.answer = ignoreRange
	var open atomic.Int64
	many := func(c *Config) { c.MaxConns = 100 }
	inBubble(t, counted(&open, o), func(t *testing.T, r *Registry) {
		for _, c := range contents {
			fetch(t, r.Repository("app"), c, refsTo(t, c)[:1])
		}
		synctest.Wait()
		if n := open.Load(); n != maxParked {
			t.Errorf("%d bodies are parked, want %d", n, maxParked)
		}
		time.Sleep(parkedFor)
		synctest.Wait()
		if n := open.Load(); n != 0 {
			t.Errorf("%d bodies are parked after %v", n, parkedFor)
		}
	}, many)
}

// Parked bodies hold connections: others get theirs all the same, questions at
// once and blobs when a parked body has not been taken over for a while.
func TestParkedBodiesMakeRoom(t *testing.T) {
	a, b := random(4*mib), random(4*mib+1)
	o := makeOrigin(a, b)
	o.answer = ignoreRange
	inBubble(t, o, func(t *testing.T, r *Registry) {
		p := r.Repository("app")
		begin := time.Now()
		for _, content := range [][]byte{a, b} {
			fetch(t, p, content, refsTo(t, content)[:1])
		}
		if d := time.Since(begin); d < parkedGrace || d > 2*parkedGrace {
			t.Errorf("another blob waited %v for a parked body", d)
		}
		begin = time.Now()
		if _, err := p.Stat(t.Context(), digest.FromBytes(a)); err != nil {
			t.Error(err)
		}
		if d := time.Since(begin); d != 0 {
			t.Errorf("a question waited %v for a parked body", d)
		}
	}, func(c *Config) { c.MaxConns = 2 })
}

// A body that a run takes over soon is not lost to another blob that waits for a
// connection.
func TestWaitingBlobDoesNotBreakAStream(t *testing.T) {
	a, b := random(4*mib), random(4*mib+1)
	o := makeOrigin(a, b)
	o.answer = ignoreRange
	inBubble(t, o, func(t *testing.T, r *Registry) {
		p, refs := r.Repository("app"), refsTo(t, a)
		fetch(t, p, a, refs[:1])
		var other sync.WaitGroup
		other.Go(func() { fetch(t, p, b, refsTo(t, b)[:1]) })
		brief, cancel := context.WithTimeout(t.Context(), parkedGrace/4)
		defer cancel()
		if _, err := p.Blob().Get(brief, refsTo(t, b)[1]); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("one that waits and leaves: %v", err)
		}
		for i := 1; i < 4; i++ {
			time.Sleep(parkedGrace / 2)
			fetch(t, p, a, refs[i:i+1]).want(i)
		}
		other.Wait()
	}, func(c *Config) { c.MaxConns = 2 })
	o.wantRequests(t, "GET bytes=0-1048575", "GET bytes=0-1048575")
}

// Of those who wait, the ones that the body still passes come first, then the
// rest in the order of the blob: all of them with one more request.
func TestTurnsFollowTheBlob(t *testing.T) {
	content := random(8 * mib)
	o := makeOrigin(content)
	o.answer = slowly
	var received atomic.Int64
	inBubble(t, o, func(t *testing.T, r *Registry) {
		p, refs := r.Repository("app"), refsTo(t, content)
		fetch(t, p, content, refs[:4])
		var runs sync.WaitGroup
		hold := make(chan struct{})
		runs.Go(func() {
			err := chunk.GetRun(t.Context(), p.Blob(), refs[4:5], func(chunk.Ref, []byte) error { <-hold; return nil })
			if err != nil {
				t.Error(err)
			}
		})
		synctest.Wait()
		for _, i := range []int{2, 0, 6} {
			runs.Go(func() { fetch(t, p, content, refs[i:i+1]) })
			synctest.Wait()
		}
		close(hold)
		runs.Wait()
	}, counting(&received))
	o.wantRequests(t, "GET bytes=0-4194303", "GET bytes=0-1048575")
	if n := received.Load(); n > 11*mib {
		t.Errorf("%d bytes were read: 7 chunks, and 3 again, would do", n)
	}
}

func TestWaitingForAStreamEndsWithContext(t *testing.T) {
	content := random(4 * mib)
	o := makeOrigin(content)
	o.answer = func(w http.ResponseWriter, r *http.Request) bool {
		w.Write(content[:100])
		w.(http.Flusher).Flush()
		<-r.Context().Done()
		return true
	}
	inBubble(t, o, func(t *testing.T, r *Registry) {
		refs := refsTo(t, content)
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error)
		go func() {
			_, err := r.Repository("app").Blob().Get(ctx, refs[0])
			ended <- err
		}()
		synctest.Wait()
		brief, stop := context.WithTimeout(t.Context(), time.Second)
		defer stop()
		begin := time.Now()
		if _, err := r.Repository("app").Blob().Get(brief, refs[1]); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("the one that waits: %v", err)
		}
		if d := time.Since(begin); d != time.Second {
			t.Errorf("it waited %v", d)
		}
		cancel()
		if err := <-ended; !errors.Is(err, context.Canceled) {
			t.Errorf("the one that reads: %v", err)
		}
	})
}

// a run that is cancelled within a chunk leaves the body to the next
func TestCancelledRunLeavesTheBody(t *testing.T) {
	content := random(4 * mib)
	o := makeOrigin(content)
	o.answer = func(w http.ResponseWriter, _ *http.Request) bool {
		w.Write(content[:mib+mib/2])
		w.(http.Flusher).Flush()
		time.Sleep(5 * time.Second)
		w.Write(content[mib+mib/2:])
		return true
	}
	var received atomic.Int64
	inBubble(t, o, func(t *testing.T, r *Registry) {
		refs := refsTo(t, content)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		s := &sink{t: t, content: content}
		if err := chunk.GetRun(ctx, r.Repository("app").Blob(), refs[:3], s.yield); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("the first run: %v", err)
		}
		s.want(0)
		fetch(t, r.Repository("app"), content, refs[1:]).want(1, 2, 3)
	}, counting(&received))
	o.wantRequests(t, "GET bytes=0-3145727")
	if received.Load() != int64(len(content)) {
		t.Errorf("%d bytes were read of a blob of %d", received.Load(), len(content))
	}
}

func TestStreamIsResumed(t *testing.T) {
	content := random(6 * mib)
	o := newOrigin(t, content)
	n := 0
	o.answer = func(w http.ResponseWriter, r *http.Request) bool {
		r.Header.Del("Range")
		if n++; n == 1 {
			sendPart(w, r, content, 3*mib+100)
		}
		return false
	}
	fetch(t, registry(t, o.URL).Repository("app"), content, refsTo(t, content)[1:]).want(0, 1, 2, 3, 4, 5)
	o.wantRequests(t, "GET bytes=1048576-6291455", "GET bytes=3145728-6291455")
}

// a server that gives up on a parked body is asked again
func TestParkedBodyIsCut(t *testing.T) {
	content := random(4 * mib)
	o := makeOrigin(content)
	n := 0
	o.answer = func(w http.ResponseWriter, r *http.Request) bool {
		r.Header.Del("Range")
		if n++; n == 1 {
			http.NewResponseController(w).SetWriteDeadline(time.Now().Add(time.Second))
		}
		return false
	}
	inBubble(t, o, func(t *testing.T, r *Registry) {
		refs := refsTo(t, content)
		fetch(t, r.Repository("app"), content, refs[:1])
		time.Sleep(5 * time.Second)
		fetch(t, r.Repository("app"), content, refs[1:]).want(0, 1, 2, 3)
	})
	o.wantRequests(t, "GET bytes=0-1048575", "GET bytes=1048576-4194303")
}

func TestRangesWorkAfterAll(t *testing.T) {
	a, b := random(4*mib), random(8*mib)
	o := makeOrigin(a, b)
	o.answer = func(w http.ResponseWriter, r *http.Request) bool {
		if strings.Contains(r.URL.Path, string(digest.FromBytes(a))) {
			return ignoreRange(w, r)
		}
		time.Sleep(time.Second)
		return false
	}
	inBubble(t, o, func(t *testing.T, r *Registry) {
		fetch(t, r.Repository("app"), a, refsTo(t, a)[:2])
		refs := refsTo(t, b)
		var runs sync.WaitGroup
		begin := time.Now()
		for i := range refs {
			runs.Go(func() { fetch(t, r.Repository("app"), b, refs[i:i+1]).want(i) })
		}
		runs.Wait()
		if d := time.Since(begin); d > 2*time.Second+stragglers {
			t.Errorf("8 runs took %v: one to find out and the rest at once would be 2 s", d)
		}
		fetch(t, r.Repository("app"), a, refsTo(t, a)[2:])
	})
	if n := len(o.requests()); n != 9 {
		t.Errorf("%d requests, want 1 for one blob and 8 for the other", n)
	}
}

func TestStreamOfUnknownLength(t *testing.T) {
	content := random(3*mib + 1)
	o := newOrigin(t)
	extra := ""
	o.answer = func(w http.ResponseWriter, _ *http.Request) bool {
		w.(http.Flusher).Flush()
		w.Write(content)
		io.WriteString(w, extra)
		return true
	}
	p := registry(t, o.URL).Repository("app")
	fetch(t, p, content, refsTo(t, content)).want(0, 1, 2, 3)
	extra = "x"
	if err := chunk.GetRun(t.Context(), p.Blob(), refsTo(t, content), func(chunk.Ref, []byte) error { return nil }); !chunk.IsCorrupt(err) {
		t.Errorf("a byte too many: %v", err)
	}
}

func TestRepositoriesDoNotShareStreams(t *testing.T) {
	content := random(4 * mib)
	o := newOrigin(t, content)
	o.answer = func(w http.ResponseWriter, r *http.Request) bool {
		if strings.HasPrefix(r.URL.Path, "/v2/private/") {
			w.WriteHeader(http.StatusForbidden)
			return true
		}
		return ignoreRange(w, r)
	}
	r := registry(t, o.URL)
	fetch(t, r.Repository("public"), content, refsTo(t, content)[:1])
	_, err := r.Repository("private").Blob().Get(t.Context(), refsTo(t, content)[1])
	var status *StatusError
	if !errors.As(err, &status) || status.Code != 403 {
		t.Errorf("the parked body of another repository was read: %v", err)
	}
}

// TestDisorder has runs of all kinds on a registry that ignores and honours
// ranges, and cuts bodies, as it likes.
func TestDisorder(t *testing.T) {
	contents := [][]byte{random(5*mib + 1), random(9 * mib), random(3*mib + 100)}
	o := newOrigin(t, contents...)
	var seed atomic.Uint64
	o.answer = func(w http.ResponseWriter, r *http.Request) bool {
		dice := rand.New(rand.NewPCG(seed.Add(1), 0))
		if dice.IntN(2) == 0 {
			r.Header.Del("Range")
		}
		if dice.IntN(4) == 0 {
			body, _ := o.blob(r)
			sendPart(w, r, body, int64(dice.IntN(mib)))
		}
		return false
	}
	p := registry(t, o.URL).Repository("app")
	var runs sync.WaitGroup
	for worker := range uint64(8) {
		runs.Go(func() {
			dice := rand.New(rand.NewPCG(worker, 1))
			for range 12 {
				content := contents[dice.IntN(len(contents))]
				refs := refsTo(t, content)
				from := dice.IntN(len(refs))
				run := refs[from : from+1+dice.IntN(len(refs)-from)]
				ctx, cancel := context.WithCancel(t.Context())
				leaves := dice.IntN(4) == 0
				s := &sink{t: t, content: content}
				err := chunk.GetRun(ctx, p.Blob(), run, func(ref chunk.Ref, b []byte) error {
					if leaves {
						cancel()
					}
					return s.yield(ref, b)
				})
				cancel()
				if err != nil && !leaves && !Unreachable(err) {
					t.Errorf("run at %d: %v", from, err)
				}
				for _, ref := range run {
					if err == nil && !slices.Contains(s.got, ref.Index()) {
						t.Error(fmt.Errorf("chunk %s was not given", ref))
					}
				}
			}
		})
	}
	runs.Wait()
}

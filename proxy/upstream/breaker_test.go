package upstream

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/opencontainers/go-digest"
)

// answering counts requests and answers them with what status says.
func answering(n, status *atomic.Int64, header ...string) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		n.Add(1)
		for i := 0; i+1 < len(header); i += 2 {
			w.Header().Set(header[i], header[i+1])
		}
		w.Header().Set(contentDigest, string(digest.FromString("x")))
		w.Header().Set("Content-Type", indexType)
		w.Header().Set("Content-Length", "1")
		w.WriteHeader(int(status.Load()))
	})
}

func TestABrokenRegistryIsLeftAlone(t *testing.T) {
	var n, status atomic.Int64
	status.Store(502)
	inBubble(t, answering(&n, &status), func(t *testing.T, r *Registry) {
		ask := func() error {
			_, err := r.Repository("app").Resolve(t.Context(), "latest")
			return err
		}
		for range 20 {
			if err := ask(); !Unreachable(err) {
				t.Fatalf("error is %v", err)
			}
		}
		if n.Load() > 2*maxAttempts {
			t.Errorf("%d requests were made to a registry that is broken", n.Load())
		}
		err := ask()
		var broken *brokenCircuitError
		_, other := r.Repository("other").Resolve(t.Context(), "latest")
		if other == nil || strings.Contains(other.Error(), "/app/") {
			t.Errorf("what one asks for is told to another: %v", other)
		}
		if !errors.As(err, &broken) || !strings.Contains(err.Error(), "502") || !strings.Contains(err.Error(), "registry.test") {
			t.Errorf("error does not tell what is wrong: %v", err)
		}
		// An hour of questions, one a second.
		n.Store(0)
		for range 3600 {
			time.Sleep(time.Second)
			_ = ask()
		}
		if n.Load() < 3600/45 || n.Load() > 3600/15 {
			t.Errorf("%d requests were made in an hour", n.Load())
		}
		status.Store(200)
		time.Sleep(2 * longPause)
		if err := ask(); err != nil {
			t.Errorf("it works again: %v", err)
		}
		n.Store(0)
		for range 10 {
			if err := ask(); err != nil {
				t.Error(err)
			}
		}
		if n.Load() != 10 {
			t.Errorf("%d of 10 questions were asked", n.Load())
		}
	})
}

// TestOneRequestTries a host that was left alone: of many that come at once.
func TestOneRequestTries(t *testing.T) {
	var bs breakers
	for range breakAfter {
		if err := bs.allow("h"); err != nil {
			t.Fatal(err)
		}
		bs.done("h", time.Now(), false, "no answer", 0)
	}
	if bs.allow("h") == nil {
		t.Error("a host that has just failed is asked")
	}
	bs.hosts["h"].until = time.Now()
	if err := bs.allow("h"); err != nil {
		t.Error(err)
	}
	if bs.allow("h") == nil {
		t.Error("a second request is made while the first is under way")
	}
	bs.done("h", time.Now(), true, "", 0) // it was given up, which tells nothing
	if err := bs.allow("h"); err != nil {
		t.Error(err)
	}
	bs.done("h", time.Now(), false, "", 0)
	if bs.allow("h") != nil || bs.allow("h") != nil {
		t.Error("a host that answers is not asked")
	}
	for i := range 10 * maxHosts {
		bs.done(fmt.Sprint(i), time.Now(), false, "no answer", 0)
	}
	if len(bs.hosts) > maxHosts {
		t.Errorf("%d hosts are remembered", len(bs.hosts))
	}
}

// Requests that were under way when the line went down fail together, and the host is asked again at once.
func TestWhatFailsTogetherIsOneFailure(t *testing.T) {
	var bs breakers
	began := time.Now()
	for range 10 * breakAfter {
		bs.done("h", began, false, "no answer", 0)
	}
	if err := bs.allow("h"); err != nil {
		t.Error(err)
	}
}

func TestRetryAfterIsHeeded(t *testing.T) {
	for _, c := range []struct {
		status   int
		header   string
		requests int64
		within   time.Duration
	}{
		{503, "2", maxAttempts, 5 * time.Second},
		{503, "60", 1, time.Second},
		{503, "", maxAttempts, time.Second},
		{429, "1", maxAttempts, 3 * time.Second},
		{429, "", 1, time.Second},
		{429, "3600", 1, time.Second},
		{503, "Thu, 21 Oct 1999 07:28:00 GMT", maxAttempts, time.Second},
		{503, "soon", maxAttempts, time.Second},
		{404, "1", 1, time.Second},
		{403, "1", 1, time.Second},
	} {
		t.Run(fmt.Sprintf("%d after %q", c.status, c.header), func(t *testing.T) {
			var n, status atomic.Int64
			status.Store(int64(c.status))
			inBubble(t, answering(&n, &status, "Retry-After", c.header), func(t *testing.T, r *Registry) {
				begin := time.Now()
				_, err := r.Repository("app").Resolve(t.Context(), "latest")
				if got := wantStatus(t, err, c.status).Header.Get("Retry-After"); got != c.header {
					t.Errorf("Retry-After is %q", got)
				}
				if n.Load() != c.requests || time.Since(begin) > c.within {
					t.Errorf("%d requests in %v", n.Load(), time.Since(begin))
				}
			})
		})
	}
}

// TestRetriesEndWithSuccess: what passes is not seen.
func TestRetriesEndWithSuccess(t *testing.T) {
	var n, status atomic.Int64
	h := answering(&n, &status)
	flaky := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if status.Store(200); n.Load() == 0 {
			status.Store(503)
		}
		h.ServeHTTP(w, r)
	})
	inBubble(t, flaky, func(t *testing.T, r *Registry) {
		if _, err := r.Repository("app").Resolve(t.Context(), "latest"); err != nil || n.Load() != 2 {
			t.Errorf("%d requests, %v", n.Load(), err)
		}
	})
}

// TestWhoDidNotAnswerIsDialledForLess: whoever asks a registry to which nothing leads waits for long only once.
func TestWhoDidNotAnswerIsDialledForLess(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, err := New(Config{URL: "http://registry.test", Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
			select {
			case <-ctx.Done():
			case <-time.After(dialTimeout):
			}
			return nil, errors.New("nothing leads there")
		}})
		if err != nil {
			t.Fatal(err)
		}
		ask := func() time.Duration {
			begin := time.Now()
			if _, err := r.Repository("app").Resolve(t.Context(), "latest"); !Unreachable(err) {
				t.Errorf("error is %v", err)
			}
			return time.Since(begin)
		}
		if first, again := ask(), ask(); again >= first {
			t.Errorf("it takes %v, and then %v", first, again)
		}
	})
}

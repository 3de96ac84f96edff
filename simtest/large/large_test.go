package main

import (
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/granary-oci/granary/simtest/programs"
)

func TestMain(m *testing.M) {
	if text := os.Getenv(asNode); text != "" {
		exit(serve(text))
	}
	os.Exit(m.Run())
}

// slow is set where the race detector makes members so slow that they do not wait for each
// other.
var slow bool

// large is a model of a few stripes and a bit, in a registry.
func large(t *testing.T, size int64, rate float64) (*registry, *model) {
	t.Helper()
	r, err := startRegistry(5*time.Millisecond, rate)
	if err != nil {
		t.Fatal(err)
	}
	m, err := newModel(size, nil)
	if err != nil {
		t.Fatal(err)
	}
	r.push("v1", m)
	return r, m
}

func startAlone(t *testing.T, r *registry) *process {
	t.Helper()
	p, err := start(settings{Data: filepath.Join(t.TempDir(), "node"), Registry: r.url})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = p.end(syscall.SIGTERM) })
	return p
}

// asked returns what was asked for of a model, in order.
func (r *registry) asked(m *model) []extent {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.SortedFunc(slices.Values(r.ranges[string(m.digest)]), func(a, b extent) int { return int(a.from - b.from) })
}

// TestANodeAloneFetchesRangesSideBySide: each byte once, by closed ranges, on many connections
// when each is slow.
func TestANodeAloneFetchesRangesSideBySide(t *testing.T) {
	t.Parallel()
	r, m := large(t, 40<<20+12345, 16e6)
	if err := startAlone(t, r).fetch(m); err != nil {
		t.Fatal(err)
	}
	at := int64(0)
	for _, e := range r.asked(m) {
		if e.from != at || e.to <= e.from {
			t.Fatalf("it asked for %v", r.asked(m))
		}
		at = e.to
	}
	programs.Eventually(t, "all is counted", func() bool { return r.under.Load() == 0 })
	if at != m.size || r.sent.Load() != m.size {
		t.Errorf("it asked for the first %d bytes, and %d were sent, of %d", at, r.sent.Load(), m.size)
	}
	if most := r.most.Load(); most < 4 {
		t.Errorf("no more than %d requests were under way at a time", most)
	}
}

// TestConnectionsThatAreCut are resumed where they were.
func TestConnectionsThatAreCut(t *testing.T) {
	t.Parallel()
	r, m := large(t, 40<<20+12345, 0)
	r.cutAt.Store(1500 << 10)
	if err := startAlone(t, r).fetch(m); err != nil {
		t.Fatal(err)
	}
	if n := len(r.asked(m)); n < 20 {
		t.Errorf("%d requests: nothing was cut", n)
	}
	if sent := r.sent.Load(); sent > m.size*5/4 {
		t.Errorf("%d bytes were sent of %d", sent, m.size)
	}
}

// TestAKilledNodeGoesOn: what it has recorded is not fetched again.
func TestAKilledNodeGoesOn(t *testing.T) {
	t.Parallel()
	const half = 48 << 20
	r, m := large(t, 2*half, 0)
	r.stopAt.Store(half)
	p := startAlone(t, r)
	resp, err := http.Get(p.url + "/v2/model/blobs/" + string(m.digest))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	go func() { _, _ = io.Copy(io.Discard, resp.Body) }()
	programs.Eventually(t, "half of it is sent", func() bool { return r.sent.Load() >= half })
	time.Sleep(4 * time.Second) // some syncs
	if err := p.end(syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	programs.Eventually(t, "nothing is sent any more", func() bool { return r.under.Load() == 0 })
	r.stopAt.Store(0)
	r.sent.Store(0)
	again, err := start(p.settings)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = again.end(syscall.SIGTERM) })
	s, err := again.status()
	if err != nil {
		t.Fatal(err)
	}
	kept := s.Store.Bytes
	if kept < half/2 {
		t.Errorf("%d bytes were kept of %d", kept, half)
	}
	if err := again.fetch(m); err != nil {
		t.Fatal(err)
	}
	if got := r.sent.Load(); got != m.size-kept {
		t.Errorf("%d bytes were kept, and %d fetched, of %d", kept, got, m.size)
	}
}

// TestAKilledMemberGoesOn with a version of a model that differs in place from one that it has.
func TestAKilledMemberGoesOn(t *testing.T) {
	t.Parallel()
	const size, changed = 64 << 20, 4
	r, v1 := large(t, size, 0)
	v2, err := newModel(size, func(i int64) bool { return i%16 == 7 })
	if err != nil {
		t.Fatal(err)
	}
	r.push("v2", v2)
	secret := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(secret, []byte("of a test of large artifacts"), 0o600); err != nil {
		t.Fatal(err)
	}
	run := func(s settings) *process {
		t.Helper()
		s.Registry, s.Secret = r.url, secret
		p, err := start(s)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = p.end(syscall.SIGTERM) })
		return p
	}
	fetch := func(p *process, m *model) {
		t.Helper()
		if err := p.fetch(m); err != nil {
			t.Fatal(err)
		}
	}
	has := run(settings{Data: filepath.Join(t.TempDir(), "has")})
	fetch(has, v2)
	killed := run(settings{Data: filepath.Join(t.TempDir(), "killed")})
	fetch(killed, v1)
	_ = killed.end(syscall.SIGTERM)
	killed.Join = has.gossip
	join := func() *process {
		t.Helper()
		p := run(killed.settings)
		if err := p.meets(2); err != nil {
			t.Fatal(err)
		}
		return p
	}
	p := join()
	resp, err := http.Get(p.url + "/v2/model/blobs/" + string(v2.digest))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if _, err := io.CopyN(io.Discard, resp.Body, size/2); err != nil {
		t.Fatal(err)
	}
	time.Sleep(4 * time.Second) // some syncs
	before, err := p.status()
	if err != nil {
		t.Fatal(err)
	}
	_ = p.end(syscall.SIGKILL)
	p = join()
	kept, err := p.status()
	if err != nil {
		t.Fatal(err)
	}
	fetch(p, v2)
	after, err := p.status()
	if err != nil {
		t.Fatal(err)
	}
	if kept.Store.Bytes < size+size/4 {
		t.Errorf("%d bytes were kept of two models of %d, of which one was half there", kept.Store.Bytes, size)
	}
	got := before.Cluster.Received + before.Received + after.Cluster.Received + after.Received
	if most := int64(changed+1) * chunkSize; got > most && !slow {
		t.Errorf("%d bytes were fetched of a model of which %d have changed", got, changed*chunkSize)
	}
}

func TestAModelIsTheSameHoweverItIsRead(t *testing.T) {
	m := &model{size: 3*chunkSize + 100, changed: func(i int64) bool { return i == 1 }}
	all, err := io.ReadAll(io.NewSectionReader(m, 0, m.size))
	if err != nil || int64(len(all)) != m.size {
		t.Fatalf("%d bytes, %v", len(all), err)
	}
	for _, e := range []extent{{0, 1}, {7, 9}, {chunkSize - 1, chunkSize + 20}, {5, m.size}, {2*chunkSize + 3, m.size}} {
		p := make([]byte, e.to-e.from)
		if n, err := m.ReadAt(p, e.from); n != len(p) || err != nil || string(p) != string(all[e.from:e.to]) {
			t.Errorf("%v: %d bytes, %v", e, n, err)
		}
	}
	before, _ := io.ReadAll(io.NewSectionReader(&model{size: m.size}, 0, m.size))
	for i := range 4 {
		to := min((i+1)*chunkSize, len(all))
		if same := string(all[i*chunkSize:to]) == string(before[i*chunkSize:to]); same == (i == 1) {
			t.Errorf("chunk %d of another version: the same is %v", i, same)
		}
	}
}

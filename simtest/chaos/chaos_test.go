package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
)

// TestMain lets the test binary be its own node with a clock and its own corrupt member, as the program is.
func TestMain(m *testing.M) {
	playRole(os.Args[1:])
	os.Exit(m.Run())
}

// TestTheScheduleIsTheSeeds: the same seed gives the same faults, at the same times, to the same nodes; two minutes have each.
func TestTheScheduleIsTheSeeds(t *testing.T) {
	const length = 2 * time.Minute
	all := draw(1, length, 5, faults)
	if !reflect.DeepEqual(all, draw(1, length, 5, faults)) {
		t.Error("a seed gives two schedules")
	}
	if reflect.DeepEqual(all, draw(2, length, 5, faults)) {
		t.Error("two seeds give one schedule")
	}
	for _, f := range faults {
		if !slices.ContainsFunc(all, func(e event) bool { return e.Fault == f.name }) {
			t.Errorf("two minutes of seed 1, which CI runs, have no %s", f.name)
		}
	}
	for seed := range uint64(50) {
		for _, e := range draw(seed, length, 4, faults) {
			f := named(e.Fault)
			if (f.victims == nil) != (e.Node < 0) || e.Node >= 4 || e.At+e.Lasts > length {
				t.Errorf("seed %d: %+v", seed, e)
			}
			if e.Node == steady && slices.Contains([]string{"kill -9", "restart", "files corrupted while stopped"}, e.Fault) {
				t.Errorf("seed %d: %s", seed, e)
			}
		}
	}
}

// TestExcuses are all reasons for which a client may see an error, and some that are none.
func TestExcuses(t *testing.T) {
	const d = digest.Digest("sha256:d")
	at := func(s float64) time.Duration { return time.Duration(s * float64(time.Second)) }
	public := request{node: 0, repository: "r", wants: []digest.Digest{d}, from: at(100), to: at(101)}
	private := public
	private.private = true
	registryIll := &span{effect: ill, event: event{Node: -1}, from: at(99), to: at(105)}
	for _, c := range []struct {
		name  string
		r     request
		spans []*span
		holds map[held]time.Duration
		may   bool
	}{
		{name: "nothing is wrong", r: public},
		{name: "its node is down", r: public, spans: []*span{{effect: away, event: event{Node: 0}, from: at(90), to: at(100.5)}}, may: true},
		{name: "its node was down before", r: public, spans: []*span{{effect: away, event: event{Node: 0}, from: at(90), to: at(99)}}},
		{name: "another node is down", r: public, spans: []*span{{effect: away, event: event{Node: 1}, from: at(90), to: forever}}},
		{name: "members are parted", r: public, spans: []*span{{effect: parted, event: event{Node: -1}, from: at(90), to: forever}}},
		{name: "its disk is full", r: public, spans: []*span{{effect: full, event: event{Node: 0}, from: at(90), to: forever}}},
		{name: "its clock is wrong", r: private, spans: []*span{{effect: jumped, event: event{Node: 0}, from: at(90), to: forever}}},
		{name: "the registry is ill", r: public, spans: []*span{registryIll}, may: true},
		{name: "the registry will be", r: public, spans: []*span{{effect: ill, event: event{Node: -1}, from: at(102), to: forever}}},
		{name: "the registry was dead just before, for long", r: public, spans: []*span{{effect: ill, event: event{Fault: "registry is dead", Node: -1}, from: at(80), to: at(90)}}, may: true},
		{name: "the registry was dead, for a moment", r: public, spans: []*span{{effect: ill, event: event{Fault: "registry is dead", Node: -1}, from: at(89), to: at(90)}}},
		{name: "the registry was wrong just before, for long", r: public, spans: []*span{{effect: ill, event: event{Fault: "registry answers 500", Node: -1}, from: at(80), to: at(90)}}},
		{name: "its node has it", r: public, spans: []*span{registryIll}, holds: map[held]time.Duration{{0, "r", d}: at(90)}},
		{name: "its node has just got it", r: public, spans: []*span{registryIll}, holds: map[held]time.Duration{{0, "r", d}: at(99)}, may: true},
		{name: "its node has it for another repository", r: public, spans: []*span{registryIll}, holds: map[held]time.Duration{{0, "s", d}: at(90)}, may: true},
		{name: "its node has it, and has lost its clock", r: private, spans: []*span{registryIll, {effect: jumped, event: event{Node: 0}, from: at(90), to: forever}}, holds: map[held]time.Duration{{0, "r", d}: at(80)}, may: true},
		{name: "another has it", r: public, spans: []*span{registryIll}, holds: map[held]time.Duration{{1, "r", d}: at(80)}},
		{name: "another has just got it", r: public, spans: []*span{registryIll}, holds: map[held]time.Duration{{1, "r", d}: at(95)}, may: true},
		{name: "another has it, which may not be told", r: private, spans: []*span{registryIll}, holds: map[held]time.Duration{{1, "r", d}: at(80)}, may: true},
		{name: "another has it, and members come and go", r: public, spans: []*span{registryIll, {effect: away, event: event{Node: 2}, from: at(80), to: at(85)}}, holds: map[held]time.Duration{{1, "r", d}: at(70)}, may: true},
		{name: "another has it, and members are parted", r: public, spans: []*span{registryIll, {effect: parted, event: event{Node: -1}, from: at(80), to: at(85)}}, holds: map[held]time.Duration{{1, "r", d}: at(70)}, may: true},
	} {
		h := newHistory()
		h.spans = c.spans
		if c.holds != nil {
			h.holds = c.holds
		}
		if why := h.excuse(c.r); (why != "") != c.may {
			t.Errorf("%s: excused by %q", c.name, why)
		}
	}
}

// testLab is a lab whose one node is a handler.
func testLab(t *testing.T, h http.HandlerFunc) (*lab, *node, *bytes.Buffer) {
	s := httptest.NewServer(h)
	t.Cleanup(s.Close)
	out := &bytes.Buffer{}
	l := &lab{options: options{count: 1, seed: 7}, history: newHistory(), out: out, counts: make(map[string]int), blamed: make(map[string]bool), culprits: make(map[string]string)}
	n := &node{lab: l, machine: machine{client: s.Client()}, room: wide, at: s.URL}
	l.nodes = append(l.nodes, n)
	for i := range 3 {
		l.images.add(makeImage(7, i))
	}
	return l, n, out
}

// TestWhatComesIsJudged: a client sees what is wrong with an answer, and tries again where a runtime would.
func TestWhatComesIsJudged(t *testing.T) {
	img := makeImage(7, 0)
	b := img.blobs[3]
	serve := func(w http.ResponseWriter, r *http.Request, p []byte) {
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(p))
	}
	flipped := bytes.Clone(b.bytes)
	flipped[len(flipped)/2] ^= 1
	asked := 0
	for _, c := range []struct {
		name   string
		part   *extent
		serve  http.HandlerFunc
		counts string
	}{
		{"right", nil, func(w http.ResponseWriter, r *http.Request) { serve(w, r, b.bytes) }, "right at once"},
		{"right part", &extent{10, 20}, func(w http.ResponseWriter, r *http.Request) { serve(w, r, b.bytes) }, "right at once"},
		{"a wrong byte", nil, func(w http.ResponseWriter, r *http.Request) { serve(w, r, flipped) }, "wrong"},
		{"a wrong byte of a part", &extent{0, len(b.bytes) - 1}, func(w http.ResponseWriter, r *http.Request) { serve(w, r, flipped) }, "wrong"},
		{"another part", &extent{10, 20}, func(w http.ResponseWriter, r *http.Request) {
			r.Header.Set("Range", "bytes=11-20")
			serve(w, r, b.bytes)
		}, "wrong"},
		{"too few bytes", nil, func(w http.ResponseWriter, r *http.Request) { serve(w, r, b.bytes[:len(b.bytes)-1]) }, "wrong"},
		{"too many bytes", nil, func(w http.ResponseWriter, r *http.Request) { serve(w, r, append(bytes.Clone(b.bytes), 0)) }, "wrong"},
		{"a broken body, then the rest", nil, func(w http.ResponseWriter, r *http.Request) {
			if asked++; asked > 1 {
				serve(w, r, b.bytes)
				return
			}
			w.Header().Set("Content-Length", fmt.Sprint(len(b.bytes)))
			_, _ = w.Write(b.bytes[:100e3])
			_ = http.NewResponseController(w).Flush()
			panic(http.ErrAbortHandler)
		}, "right in more than one try"},
		{"no answer but 503", nil, func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusServiceUnavailable) }, "errors"},
	} {
		l, n, out := testLab(t, c.serve)
		cl := &client{lab: l, rng: rand.New(rand.NewPCG(1, 1))}
		ok := cl.read(t.Context(), n, img, "blobs", string(b.digest), b, c.part)
		if l.counts[c.counts] != 1 || ok != strings.HasPrefix(c.counts, "right") || ok != (l.failures == 0) || ok != (out.Len() == 0) {
			t.Errorf("%s: %v, %d failures, %s", c.name, l.counts, l.failures, out)
		}
	}
}

// TestTheftIsSeen: whoever answers requests that nobody may make fails the run.
func TestTheftIsSeen(t *testing.T) {
	for status, fails := range map[int]bool{200: true, 206: true, 401: false, 404: false, 503: false} {
		l, n, _ := testLab(t, func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(status) })
		l.images.add(makeImage(7, 5)) // a second private one
		c := &client{lab: l, rng: rand.New(rand.NewPCG(1, 1))}
		for range 20 {
			c.steal(t.Context(), n, l.images.all()[0])
		}
		if (l.failures == 20) != fails || (l.failures == 0) == fails {
			t.Errorf("%d: %d failures, %v", status, l.failures, l.counts)
		}
	}
}

// TestTheRegistrysModes are seen by who asks it.
func TestTheRegistrysModes(t *testing.T) {
	r := &registry{address: "registry.test", now: func() time.Duration { return 0 }, every: 1, images: make(map[string]*image), counted: make(map[digest.Digest]*counted)}
	public, private := makeImage(7, 0), makeImage(7, 2)
	r.push(public)
	r.push(private)
	s := httptest.NewServer(r)
	defer s.Close()
	get := func(path, authorization string) (int, error) {
		req, _ := http.NewRequestWithContext(context.Background(), http.MethodGet, s.URL+path, nil)
		req.Header.Set("Authorization", authorization)
		resp, err := s.Client().Do(req)
		if err != nil {
			return 0, err
		}
		defer resp.Body.Close()
		_, err = io.Copy(io.Discard, resp.Body)
		return resp.StatusCode, err
	}
	blob := public.path("blobs", string(public.blobs[3].digest))
	for m, want := range map[mode]int{healthy: 200, answers500: 500, answers503: 503, answers429: 429, slow: 200} {
		r.be(m, 1)
		if got, err := get(blob, ""); got != want || err != nil {
			t.Errorf("mode %d: %d, %v", m, got, err)
		}
	}
	if r.be(cuts, 1); true {
		if _, err := get(blob, ""); err == nil {
			t.Error("a body is not cut")
		}
	}
	r.be(healthy, 1)
	for authorization, want := range map[string]int{"": 401, "Basic d3Jvbmc6d3Jvbmc=": 401, private.right: 200} {
		if got, err := get(private.path("manifests", tag), authorization); got != want || err != nil {
			t.Errorf("private, with %q: %d, %v", authorization, got, err)
		}
	}
	if c := r.counted[public.blobs[3].digest]; c.sent <= c.size || c.sent >= 3*c.size {
		t.Errorf("%d bytes were counted, of a blob of %d that was sent twice and a bit", c.sent, c.size)
	}
}

// TestOnlyTheCorruptAreToBlame, and only so much may leave the registry.
func TestOnlyTheCorruptAreToBlame(t *testing.T) {
	l, n, _ := testLab(t, http.NotFound)
	l.culprits["evil"] = "it is a corrupt member"
	if l.blame(n, "evil", "wrong bytes"); l.failures != 0 {
		t.Error("a corrupt member is not to blame")
	}
	name := l.unnamed()
	l.blame(n, "evil too", "wrong bytes")
	name("evil too", "it is another")
	if l.blame(n, "evil too", "wrong bytes"); l.failures != 0 || l.counts["quarantines"] != 2 {
		t.Error("one whose ID was not known yet is not to blame")
	}
	if l.blame(n, "good", "wrong bytes"); l.failures != 1 {
		t.Error("somebody else is to blame")
	}
}

// TestTheBound: one copy of a blob may leave the registry, and what faults cost that were felt while it was fetched.
func TestTheBound(t *testing.T) {
	l, _, _ := testLab(t, http.NotFound)
	l.count = 5
	l.registry = &registry{counted: map[digest.Digest]*counted{"d": {size: 1000, sent: 1900, first: time.Second, last: time.Hour}}}
	if may, sent, once := l.bound(); may != 1250 || sent != 1900 || once != 1000 {
		t.Errorf("%d may be sent, %d were, of %d", may, sent, once)
	}
	l.history.spans = []*span{{event: event{Fault: "kill -9"}, from: 2 * time.Second, to: 3 * time.Second}, {event: event{Fault: "registry is slow"}, from: 2 * time.Second, to: 3 * time.Second}}
	if may, _, _ := l.bound(); may != 1650 {
		t.Errorf("%d may be sent after a death", may)
	}
	for i := range 2 {
		l.history.had[held{i, "r", "d"}] = 0
	}
	l.history.spans = []*span{{event: event{Fault: "kill -9"}, from: time.Minute, to: forever}, {event: event{Fault: "files corrupted while running"}, from: time.Minute, to: forever}}
	if may, _, _ := l.bound(); may != 1650 {
		t.Errorf("%d may be sent, though two nodes had it and one was corrupted later", may)
	}
	l.registry.counted["d"].last = 30 * time.Second
	if may, _, _ := l.bound(); may != 1250 {
		t.Errorf("%d may be sent, though nobody asked for it after the corruption", may)
	}
}

// TestWhatANodeHolds: what a client has got whole, unless the disk is full; not what a death may have undone, nor what was there when files
// were changed under a node, for that may come out of its memory.
func TestWhatANodeHolds(t *testing.T) {
	h := newHistory()
	h.began = time.Now().Add(-time.Minute)
	old, young := held{0, "r", "old"}, held{0, "r", "young"}
	h.hold(old, 0, h.now())
	h.lose(1, forever)
	h.lose(0, -time.Second)
	if _, ok := h.holds[old]; !ok {
		t.Error("nothing was lost, and it is not held")
	}
	h.lose(0, committed)
	if _, ok := h.holds[old]; ok {
		t.Error("what a death may have undone is held")
	}
	began := h.now()
	end := h.begin(event{Fault: "full disk", Node: 0}, full)
	if h.hold(old, 0, began); len(h.holds) != 0 {
		t.Error("a full disk holds something")
	}
	end()
	time.Sleep(time.Millisecond)
	if h.hold(old, 0, began); len(h.holds) != 0 {
		t.Error("a disk that was full meanwhile holds all of it")
	}
	began = h.now()
	end = h.begin(event{Fault: "kill -9", Node: 0}, away)
	h.lose(0, committed)
	if h.hold(old, 0, began); len(h.holds) != 0 {
		t.Error("what came just before a death is held since after it")
	}
	end()
	time.Sleep(time.Millisecond)
	h.hold(old, 0, h.now())
	h.ruin(0)
	h.hold(old, 0, h.now())
	h.hold(young, h.now(), h.now())
	if _, ok := h.holds[old]; ok || len(h.holds) != 1 {
		t.Errorf("after the files were changed it holds %v", h.holds)
	}
}

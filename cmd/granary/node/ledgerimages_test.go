package node

import (
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/granary-oci/granary/chunkstore/chunk"
	"github.com/granary-oci/granary/proxy"
	"github.com/granary-oci/granary/proxy/parent"
	"github.com/granary-oci/granary/proxy/ref"
	"github.com/granary-oci/granary/proxy/upstream"
)

// imageNamed is an image of a registry that settings do not name.
func imageNamed(name, tag string) proxy.Image {
	return proxy.Image{Repository: ref.Repository{Host: "registry.test", Name: name}, Tag: tag, Digest: digest.FromString(name)}
}

func TestTheLedgerTellsWhatAnImageWasSpared(t *testing.T) {
	dir := t.TempDir()
	l, err := openLedger(dir)
	if err != nil {
		t.Fatal(err)
	}
	now, set := clockAt("2026-01-31 12:00")
	l.now = now
	began := now().UTC()
	i := imageNamed("app", "v1")
	l.came(i, chunk.OfParent("hub"), 30)
	l.came(i, "upstream", 20)
	l.came(i, "peer", 40)
	set("2026-01-31 13:00")
	l.given(i, "parent hub", 100)
	i.Tag = ""
	l.given(i, "parent hub", 60) // whose client has named it by digest
	l.add("parent hub", 35, 0)
	unknown := proxy.Image{Repository: i.Repository}
	l.came(unknown, chunk.OfParent("hub"), 7)
	want := []ImageAccount{
		{Repository: "registry.test/app", Moved: 7, Parents: 7, Since: now().UTC(), Last: now().UTC()},
		{Repository: "registry.test/app", Tag: "v1", Digest: i.Digest, Asked: 160, Moved: 50, Saved: 110, Parents: 30, Registry: 20, Members: 40, Since: began, Last: now().UTC()},
	}
	check := func(when string) {
		t.Helper()
		all := l.imageSums(9)
		for k := range all {
			all[k].Since, all[k].Last = all[k].Since.UTC(), all[k].Last.UTC()
		}
		if len(all) != 2 || all[0] != want[0] || all[1] != want[1] {
			t.Errorf("%s: %+v", when, all)
		}
		if ref := all[1].Ref(); ref != "registry.test/app:v1" || all[0].Ref() != "registry.test/app" {
			t.Errorf("%s: it is called %s", when, ref)
		}
		carried := Carried{In: 35, Asked: 160, Saved: 125}
		if links := l.sums(); len(links) != 1 || links[0] != (Link{"parent hub", carried, carried, carried}) {
			t.Errorf("%s: %+v", when, links)
		}
		if h := l.history(); len(h) != 1 || len(h[0].Hours) != 1 || h[0].Hours[0].Carried != carried {
			t.Errorf("%s: %+v", when, h)
		}
	}
	check("before a restart")
	got := countedBy(t, l)
	for name, n := range map[string]float64{
		"granary_image_bytes_total asked registry.test/app": 160, "granary_image_bytes_total parents registry.test/app": 37,
		"granary_image_bytes_total registry registry.test/app": 20, "granary_image_bytes_total members registry.test/app": 40,
		"granary_image_saved_bytes registry.test/app": 103, "granary_image_bytes_total asked other": 0,
		"granary_link_asked_bytes_total parent hub": 160, "granary_link_saved_bytes parent hub": 125,
	} {
		if v, there := got[name]; !there || v != n {
			t.Errorf("%s is %v, want %v", name, v, n)
		}
	}
	if err := l.save(); err != nil {
		t.Fatal(err)
	}
	if l, err = openLedger(dir); err != nil {
		t.Fatal(err)
	}
	l.now = now
	check("after a restart")
}

// TestWhatIsFetchedAheadIsNotSaved, nor less than nothing, before it is asked for; the metric of a member that fetches for others is.
func TestWhatIsFetchedAheadIsNotSaved(t *testing.T) {
	l, _ := openLedger("")
	i := imageNamed("app", "v1")
	l.came(i, "upstream", 100)
	l.add("registry other", 100, 0)
	l.given(i, "registry other", 40)
	if a, link := l.imageSums(1)[0], l.sums()[0]; a.Saved != 0 || a.Moved != 100 || link.Month != (Carried{In: 100, Asked: 40}) {
		t.Errorf("%+v, %+v", a, link)
	}
	if got := countedBy(t, l); got["granary_image_saved_bytes registry.test/app"] != -60 || got["granary_link_saved_bytes registry other"] != -60 {
		t.Errorf("%v", got)
	}
}

// TestImagesHaveBounds: those that were used last are remembered, and metrics tell a few repositories apart.
func TestImagesHaveBounds(t *testing.T) {
	dir := t.TempDir()
	l, _ := openLedger(dir)
	at := time.Unix(1e9, 0)
	l.now = func() time.Time { at = at.Add(time.Second); return at }
	const more = 50
	for i := range maxAccounts + more {
		l.given(imageNamed(fmt.Sprint(i), ""), "", 1)
		l.given(imageNamed("0", ""), "", 1)
	}
	check := func() {
		t.Helper()
		all := l.imageSums(2 * maxAccounts)
		if len(all) != maxAccounts || all[0].Repository != "registry.test/0" || all[0].Asked != maxAccounts+more+1 || all[maxAccounts-1].Repository != fmt.Sprint("registry.test/", more+1) {
			t.Errorf("%d images, from %+v to %+v", len(all), all[0], all[len(all)-1])
		}
	}
	check()
	repositories := 0
	got := countedBy(t, l)
	for name := range got {
		if strings.HasPrefix(name, "granary_image_saved_bytes ") {
			repositories++
		}
	}
	if others := float64(maxAccounts + more - maxRepositories); repositories != maxRepositories+1 || got["granary_image_bytes_total asked other"] != others {
		t.Errorf("metrics have %d repositories, and of others %v, want %v", repositories, got["granary_image_bytes_total asked other"], others)
	}
	if err := l.save(); err != nil {
		t.Fatal(err)
	}
	l, _ = openLedger(dir)
	check()
}

// TestTheLedgerCountsForManyAtOnce while it is read and saved.
func TestTheLedgerCountsForManyAtOnce(t *testing.T) {
	l, _ := openLedger(t.TempDir())
	var all sync.WaitGroup
	const each = 200
	for i := range 4 {
		all.Go(func() {
			for range each {
				l.given(imageNamed("app", ""), "registry other", 1)
				l.came(imageNamed("app", ""), "upstream", 1)
				if i == 0 {
					l.sums()
					l.imageSums(9)
				}
			}
		})
	}
	for range 3 {
		if err := l.save(); err != nil {
			t.Error(err)
		}
	}
	all.Wait()
	if err := l.save(); err != nil {
		t.Error(err)
	}
	again, err := openLedger(strings.TrimSuffix(l.path, "/"+ledgerName))
	if err != nil || again.imageSums(1)[0].Asked != 4*each || again.sums()[0].Today.Asked != 4*each {
		t.Errorf("%+v, %+v, error %v", again.imageSums(1), again.sums(), err)
	}
}

// TestWhichLinkIsAsked for what is given from a source.
func TestWhichLinkIsAsked(t *testing.T) {
	deaf := httptest.NewServer(nil)
	url := deaf.URL
	deaf.Close()
	hub := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Docker-Distribution-Api-Version", "registry/2.0")
	}))
	defer hub.Close()
	parents, err := parent.New([]parent.Config{
		{Name: "far", Upstream: upstream.Config{URL: url}}, {Name: "hub", Upstream: upstream.Config{URL: hub.URL}},
	}, nil, func(error) {})
	if err != nil {
		t.Fatal(err)
	}
	defer parents.Close()
	faults := &faultLog{log: slog.New(slog.NewTextHandler(io.Discard, nil)), metrics: newMetrics()}
	node := func(cfg DataConfig, ps *parent.Parents) *Node {
		cfg.DefaultUpstream = "docker.io"
		cfg.Upstream = map[string]string{"here.test": "oci:" + t.TempDir(), "web.test": "oci+http://127.0.0.1:1", "both.test": "oci:" + t.TempDir() + ",http://127.0.0.1:1"}
		u, err := newUpstreams(cfg, nil, newMetrics(), faults)
		if err != nil {
			t.Fatal(err)
		}
		u.parents = ps
		return &Node{upstreams: u}
	}
	alone, child, only := node(DataConfig{}, nil), node(DataConfig{}, parents), node(DataConfig{ParentsOnly: true}, parents)
	for _, c := range []struct {
		n            *Node
		host, source string
		link         string
	}{
		{alone, "docker.io", "upstream", "registry docker.io"}, {alone, "docker.io", "disk", "registry docker.io"}, {alone, "a.test", "peer", "registry other"},
		{alone, "here.test", "layout", ""}, {alone, "here.test", "memory", ""}, {alone, "web.test", "layout", "registry web.test"}, {alone, "both.test", "layout", "registry both.test"},
		{child, "docker.io", "parent far", "parent far"}, {child, "docker.io", "disk", "parent far"}, {child, "docker.io", "upstream", "registry docker.io"},
		{child, "docker.io", "parent 12D3", foundLink}, {child, "here.test", "disk", ""}, {child, "web.test", "disk", "registry web.test"}, {child, "both.test", "disk", "parent far"},
	} {
		if got := c.n.line(c.host, c.source); got != c.link {
			t.Errorf("%s from %s: %q, want %q", c.host, c.source, got, c.link)
		}
	}
	parents.Try(t.Context())
	if got := child.line("docker.io", "disk"); got != "parent hub" {
		t.Errorf("when the first parent does not answer: %q", got)
	}
	hub.Close()
	parents.Try(t.Context())
	if got := child.line("docker.io", "disk"); got != "registry docker.io" {
		t.Errorf("when none does: %q", got)
	}
	if got := only.line("docker.io", "disk"); got != "parent far" {
		t.Errorf("when none does, and only they are asked: %q", got)
	}
}

// BenchmarkLine is how long it takes to know whose they are, at a site whose parent has a limit by the day and a month's hours.
func BenchmarkLine(b *testing.B) {
	l, _ := openLedger("")
	now := time.Now()
	for h := range 31 * 24 {
		l.now = func() time.Time { return now.Add(time.Duration(h-31*24) * time.Hour) }
		l.add("parent hub", 1, 0)
	}
	l.now = time.Now
	limits, err := newLinkLimits([]string{"20GiB/day"}, []string{"hub"}, l)
	if err != nil {
		b.Fatal(err)
	}
	parents, err := parent.New([]parent.Config{{Name: "hub", Upstream: upstream.Config{URL: "http://127.0.0.1:1"}, Allow: func() error { return limits.allow("hub") }}}, nil, func(error) {})
	if err != nil {
		b.Fatal(err)
	}
	u, err := newUpstreams(DataConfig{DefaultUpstream: "docker.io"}, nil, newMetrics(), nil)
	if err != nil {
		b.Fatal(err)
	}
	u.parents = parents
	n := &Node{upstreams: u}
	b.ReportAllocs()
	for b.Loop() {
		if link := n.line("docker.io", "disk"); link != "parent hub" {
			b.Fatal(link)
		}
	}
}

// BenchmarkGiven is what counting takes of each chunk, or 4 MiB of a file, that leaves the node.
func BenchmarkGiven(b *testing.B) {
	l, _ := openLedger("")
	i := imageNamed("library/python", "3.13")
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			l.given(i, "registry other", chunk.Size)
		}
	})
}

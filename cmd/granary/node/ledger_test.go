package node

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/granary-oci/granary/chunkstore/chunk"
	"github.com/granary-oci/granary/p2p"
	"github.com/granary-oci/granary/tracker"
)

// clockAt is a clock that stands at a time.
func clockAt(text string) (now func() time.Time, set func(string)) {
	var at time.Time
	set = func(text string) {
		t, err := time.ParseInLocation("2006-01-02 15:04", text, time.FixedZone("", 5*3600+1800))
		if err != nil {
			panic(err)
		}
		at = t
	}
	set(text)
	return func() time.Time { return at }, set
}

func TestTheLedgerCountsByTheClock(t *testing.T) {
	dir := t.TempDir()
	l, err := openLedger(dir)
	if err != nil {
		t.Fatal(err)
	}
	var set func(string)
	l.now, set = clockAt("2026-01-31 23:50")
	l.add("parent hub", 1, 2)
	set("2026-02-01 00:10")
	l.add("parent hub", 10, 20)
	l.add("zone b", 5, 0)
	set("2026-02-01 01:00")
	l.add("parent hub", 100, 200)
	want := Link{"parent hub", Carried{In: 100, Out: 200}, Carried{In: 110, Out: 220}, Carried{In: 111, Out: 222}}
	if got := l.sums(); len(got) != 2 || got[0] != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
	if err := l.save(); err != nil {
		t.Fatal(err)
	}
	again, err := openLedger(dir)
	if err != nil {
		t.Fatal(err)
	}
	again.now = l.now
	if got := again.sums(); len(got) != 2 || got[0] != want {
		t.Errorf("after a restart %+v", got)
	}
	if h := again.history(); len(h) != 2 || len(h[0].Hours) != 3 || h[0].Hours[1].In != 10 {
		t.Errorf("hour by hour %+v", h)
	}
	set("2026-03-15 00:00")
	again.add("parent hub", 7, 0)
	if h := again.history(); len(h[0].Hours) != 1 {
		t.Errorf("after a month %+v", h[0])
	}
}

func TestALedgerHasBounds(t *testing.T) {
	l, _ := openLedger("")
	for i := range 3 * maxLinks {
		l.add("registry "+string(rune('a'+i)), 1, 0)
	}
	if all := l.sums(); len(all) != maxLinks+1 || all[0].Link != otherLinks {
		t.Errorf("%d links, the first is %+v", len(all), all[0])
	}
}

func TestADamagedLedgerBeginsAnew(t *testing.T) {
	for _, text := range []string{
		"", "null", "[]", "{", `{"links":[]}`, `{"links":{"a":null}}`, `{"links":{"a":{"x":{}}}}`, `{"links":{"a":{"5":null}}}`, `{"links":{"a":{"5":{"in":-1}}}}`,
		`{"images":{}}`, `{"images":[null,{},{"repository":"a"},{"repository":"a/b","digest":"x"},{"repository":"a/b","asked":-1}]}`,
	} {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, ledgerName), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		l, _ := openLedger(dir)
		l.add("a", 1, 0)
		if got := l.since("a", time.Time{}); got != (crossed{In: 1}) {
			t.Errorf("%q: %+v", text, got)
		}
		if all := l.imageSums(9); len(all) != 0 {
			t.Errorf("%q: %+v", text, all)
		}
		if err := l.save(); err != nil {
			t.Errorf("%q: %v", text, err)
		}
	}
}

func TestLinkLimits(t *testing.T) {
	l, _ := openLedger("")
	now, set := clockAt("2026-01-31 12:00")
	l.now = now
	limits, err := newLinkLimits([]string{"100/hour", "hub=150/day", "0/s@22:00-06:00", "thin:5054=1MiB/s@08:00-18:00"}, []string{"hub", "thin:5054"}, l)
	if err != nil {
		t.Fatal(err)
	}
	for _, step := range []struct {
		at      string
		bytes   int64
		allowed bool
	}{
		{"2026-01-31 12:00", 60, true}, {"2026-01-31 12:30", 40, true}, {"2026-01-31 12:59", 0, false},
		{"2026-01-31 13:00", 50, true}, {"2026-01-31 14:00", 0, false}, // the day's
		{"2026-02-01 05:59", 0, false}, {"2026-02-01 06:00", 1, true}, {"2026-02-01 22:00", 0, false},
	} {
		set(step.at)
		if err := limits.allow("hub"); (err == nil) != step.allowed {
			t.Errorf("at %s: %v", step.at, err)
		}
		l.add(chunk.OfParent("hub"), step.bytes, 0)
	}
	set("2026-01-31 15:00")
	if err := limits.allow("thin:5054"); err != nil {
		t.Errorf("the other parent: %v", err)
	}
}

func TestLimitsThatAreNone(t *testing.T) {
	l, _ := openLedger("")
	for _, text := range []string{"", "5", "5/", "5/week", "x/s", "-5/s", "5/s@", "5/s@8-9", "5/s@08:00-08:00", "5/s@08:00-25:00", "other=5/s"} {
		if _, err := newLinkLimits([]string{text}, []string{"hub"}, l); err == nil {
			t.Errorf("%q is a limit", text)
		}
	}
}

func TestWhatCrossesZonesIsCounted(t *testing.T) {
	l, _ := openLedger("")
	member := func(id, zone string, received, sent int64) p2p.PeerStatus {
		return p2p.PeerStatus{Peer: tracker.Peer{ID: tracker.ID(id), Zone: zone}, Received: received, Sent: sent}
	}
	l.addZones("a", []p2p.PeerStatus{member("1", "a", 5, 5), member("2", "b", 10, 1), member("3", "b", 1, 1)})
	l.addZones("a", []p2p.PeerStatus{member("1", "a", 9, 9), member("2", "b", 30, 1), member("3", "b", 0, 4)}) // one was restarted
	if got := l.sums(); len(got) != 1 || got[0].Link != "zone b" || got[0].Today != (Carried{In: 31, Out: 6}) {
		t.Errorf("%+v", got)
	}
}

// countedBy returns the metrics of a ledger: their values by name and labels, sorted by the labels' names.
func countedBy(t *testing.T, l *ledger) map[string]float64 {
	t.Helper()
	r := prometheus.NewRegistry()
	r.MustRegister(l)
	families, err := r.Gather()
	if err != nil {
		t.Fatal(err)
	}
	all := make(map[string]float64)
	for _, f := range families {
		for _, m := range f.GetMetric() {
			name := f.GetName()
			for _, label := range m.GetLabel() {
				name += " " + label.GetValue()
			}
			all[name] = m.GetCounter().GetValue() + m.GetGauge().GetValue()
		}
	}
	return all
}

// TestLinksAreAFewMetrics from 0 on, whatever the ledger remembers, and however many strangers come.
func TestLinksAreAFewMetrics(t *testing.T) {
	dir := t.TempDir()
	l, err := openLedger(dir)
	if err != nil {
		t.Fatal(err)
	}
	l.expect("parent hub")
	for i := range 3 * maxLinks {
		l.add(fmt.Sprint("child ", i), 1, 2)
	}
	got := countedBy(t, l)
	links := func() (n int) {
		for name := range got {
			if strings.HasPrefix(name, "granary_link_bytes_total ") {
				n++
			}
		}
		return n
	}
	if v, there := got["granary_link_bytes_total in parent hub"]; !there || v != 0 {
		t.Errorf("a link that nothing has crossed: %v, %v", v, there)
	}
	if got["granary_link_bytes_total in child 7"] != 1 || got["granary_link_bytes_total out child 7"] != 2 || got["granary_link_bytes_total in other"] != 2*maxLinks || links() != 2*(maxLinks+2) {
		t.Errorf("%d metrics: %v", len(got), got)
	}
	if _, there := got["granary_link_asked_bytes_total child 7"]; there {
		t.Error("a child is asked for images")
	}
	if err := l.save(); err != nil {
		t.Fatal(err)
	}
	if l, err = openLedger(dir); err != nil || len(l.sums()) != maxLinks+1 {
		t.Fatalf("after a restart %+v, error %v", l.sums(), err)
	}
	if got = countedBy(t, l); links() != 0 {
		t.Errorf("after a restart %v", got)
	}
}

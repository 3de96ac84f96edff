package main

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/granary-oci/granary/simtest/figures"
)

// blob is a measurement of three systems, of which one is not there.
func blob(set *figures.Set) {
	m := figures.Measurement{Name: "warm blob of 1 GiB", Unit: "MB/s"}
	for round, v := range []float64{100, 300, 200} {
		set.Add(m, granary, v)
		set.Add(m, nginx, []float64{200, 300, 400}[round])
	}
	set.Compare(m, granary, nginx, dockerRegistry)
	set.Miss(m, dockerRegistry, "it is\nnot | installed")
}

// testReport is what came of three groups: one that was measured, one that failed and one that cannot be run.
func testReport(t *testing.T) *report {
	t.Helper()
	b, err := newBench(t.Context(), quick)
	if err != nil {
		t.Fatal(err)
	}
	defer b.close()
	r := newReport(t.Context(), quick, b.dir)
	for _, g := range []group{
		{name: "warm", title: "A blob", limit: time.Minute, measure: func(_ context.Context, _ *bench, s *figures.Set) error { blob(s); return nil }},
		{name: "cold", title: "Another", limit: time.Minute, measure: func(_ context.Context, _ *bench, s *figures.Set) error {
			s.Add(figures.Measurement{Name: "cold blob", Unit: "MB/s"}, granary, 5)
			return errors.New("the registry has died")
		}},
		{name: "link", title: "No link", needs: []string{"no-such-program"}},
	} {
		r.put(b.runGroup(t.Context(), g))
	}
	return r
}

func TestTheTableHasAllThatWasAndWasNotMeasured(t *testing.T) {
	r := testReport(t)
	var text strings.Builder
	if err := r.markdown(&text); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"| warm blob of 1 GiB | granary | 200 | MB/s | 100 to 300 | 3 | 0.5 × nginx |\n",
		"| warm blob of 1 GiB | nginx | 300 | MB/s | 200 to 400 | 3 |  |\n",
		"| warm blob of 1 GiB | docker-registry | not measured | MB/s | | | it is not \\| installed |\n",
		"| cold blob | granary | 5 | MB/s |  | 1 |  |\n",
		"| the group | | FAILED | | | | the registry has died |\n",
		"Not run: MISSING: no-such-program;",
		"`go run ./simtest/bench -quick` on " + r.Date.Format(time.DateOnly),
	} {
		if !strings.Contains(text.String(), want) {
			t.Errorf("%q is not in\n%s", want, text.String())
		}
	}
	if err := r.Groups[1].err(); err == nil || err.Error() != "cold: the registry has died" {
		t.Errorf("failed: %v", err)
	}
}

func TestJSONHasValuesAndWhatFollowsFromThem(t *testing.T) {
	r := testReport(t)
	file := filepath.Join(t.TempDir(), "results.json")
	if err := r.save(file, r.json); err != nil {
		t.Fatal(err)
	}
	p, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var raw struct {
		Machine struct{ CPUs int }
		Groups  []struct {
			Commit, Error, Missing string
			Figures                []struct {
				System              string
				Values              []float64
				Median, Least, Most float64
				Ratios              map[string]float64
			}
		}
	}
	if err := json.Unmarshal(p, &raw); err != nil {
		t.Fatal(err)
	}
	f := raw.Groups[0].Figures[0]
	if f.System != granary || len(f.Values) != 3 || f.Median != 200 || f.Least != 100 || f.Most != 300 || f.Ratios[nginx] != 0.5 {
		t.Errorf("%+v", f)
	}
	if raw.Machine.CPUs < 1 || raw.Groups[0].Commit == "" || raw.Groups[1].Error == "" || raw.Groups[2].Missing == "" {
		t.Errorf("%+v", raw)
	}
	again, err := readReport(file)
	if err != nil || again.quoted() != r.quoted() {
		t.Errorf("it is read as\n%s\nand was\n%s\n%v", again.quoted(), r.quoted(), err)
	}
}

// A group that takes too long ends, and the next one is run.
func TestAGroupHasALimitOfTime(t *testing.T) {
	b, err := newBench(t.Context(), quick)
	if err != nil {
		t.Fatal(err)
	}
	defer b.close()
	o := b.runGroup(t.Context(), group{name: "warm", limit: 10 * time.Millisecond, measure: func(ctx context.Context, _ *bench, _ *figures.Set) error {
		<-ctx.Done()
		return ctx.Err()
	}})
	if !strings.Contains(o.Error, "more than 10ms") {
		t.Errorf("%q", o.Error)
	}
	if o := b.runGroup(t.Context(), group{name: "warm", limit: time.Minute, measure: func(context.Context, *bench, *figures.Set) error { return nil }}); o.Error == "" {
		t.Error("a group without figures has not failed")
	}
}

// Groups that were run again take the place of what they had found, and the others stay.
func TestOtherGroupsAreKept(t *testing.T) {
	earlier := &report{Scale: usual, Groups: []outcome{{Name: "cold", Error: "old"}, {Name: "ranges"}}}
	r := &report{Scale: usual}
	if err := r.keep(earlier); err != nil {
		t.Fatal(err)
	}
	r.put(outcome{Name: "warm"})
	r.put(outcome{Name: "cold"})
	var got []string
	for _, o := range r.Groups {
		got = append(got, o.Name+o.Error)
	}
	if !slices.Equal(got, []string{"warm", "cold", "ranges"}) {
		t.Errorf("%q", got)
	}
	if err := r.keep(&report{Scale: quick}); err == nil {
		t.Error("results of a quick run were kept beside others")
	}
	if err := r.keep(&report{Scale: usual, Machine: machine{CPUs: 64}}); err == nil {
		t.Error("results of another machine were kept")
	}
}

func TestNumbersHaveTheDigitsThatSaySomething(t *testing.T) {
	for v, want := range map[float64]string{0: "0", 0.00123456: "0.00123", 0.85: "0.85", 1: "1", 1.0021: "1.002", 9.9994: "9.999", 9.9996: "10.0", 12.34: "12.3", 99.96: "100", 28689.2: "28689", -2.5: "-2.500"} {
		if got := number(v); got != want {
			t.Errorf("%v: %s, want %s", v, got, want)
		}
	}
}

func TestResultsOfGoTestAreRead(t *testing.T) {
	var set figures.Set
	addBenchmarks(&set, "toc/cdc", `goos: linux
cpu: AMD EPYC
BenchmarkCut 	      24	  51185575 ns/op	      1777 MB/cpu-s	       0 B/op	       0 allocs/op
BenchmarkCut 	      24	  51185575 ns/op	      1779 MB/cpu-s
Benchmark/find 	      24	  5 ns/op
Benchmarking of nothing is text
BenchmarkOdd 1 2
BenchmarkNone 0 5 ns/op
PASS
`)
	if len(set.All) != 2 || set.All[0].Name != "toc/cdc Cut" || set.All[0].Unit != "MB/cpu-s" || !slices.Equal(set.All[0].Values, []float64{1777, 1779}) ||
		set.All[1].Name != "toc/cdc find" || set.All[1].Unit != "ns/op" {
		t.Errorf("%+v", set.All)
	}
}

func FuzzResultsOfGoTest(f *testing.F) {
	f.Add("BenchmarkCut \t24\t5.5 ns/op\t1 MB/s\n")
	f.Add("Benchmark/ 1 NaN x 1e400 y")
	f.Fuzz(func(t *testing.T, text string) {
		var set figures.Set
		addBenchmarks(&set, "toc", text)
		for _, one := range set.All {
			if _, err := json.Marshal(one); err != nil || len(one.Values) == 0 || one.Unit == "" || one.Name == "" {
				t.Errorf("%+v", one)
			}
		}
	})
}

func TestQuotesAreWrittenBetweenTheirMarks(t *testing.T) {
	r := testReport(t)
	file := filepath.Join(t.TempDir(), "README.md")
	if err := os.WriteFile(file, []byte("before\n"+quoteBegins+"old\n"+quoteEnds+"after\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := r.quoteIn(file); err != nil {
		t.Fatal(err)
	}
	p, _ := os.ReadFile(file)
	text := string(p)
	if !strings.HasPrefix(text, "before\n"+quoteBegins) || !strings.HasSuffix(text, quoteEnds+"after\n") || strings.Contains(text, "old") ||
		!strings.Contains(text, "| warm blob of 1 GiB | 200 MB/s | 0.5 × nginx |\n") {
		t.Error(text)
	}
	if err := os.WriteFile(file, []byte("no marks"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := r.quoteIn(file); err == nil {
		t.Error("it was written into a document without marks")
	}
}

// README.md says what a run has found that can be looked at, and all of it that it is to say.
func TestReadmeQuotesTheResults(t *testing.T) {
	r, err := readReport("results.json")
	if err != nil {
		t.Fatal(err)
	}
	p, err := os.ReadFile("../../README.md")
	if err != nil {
		t.Fatal(err)
	}
	_, quote, _, err := aroundQuote(string(p))
	if err != nil {
		t.Fatal(err)
	}
	if quote != r.quoted() {
		t.Errorf("README.md has\n%s\nand results.json says\n%s", quote, r.quoted())
	}
	if r.Scale == quick {
		t.Error("what README.md quotes is of a quick run")
	}
	for _, g := range groups {
		for _, name := range g.quotes {
			if !strings.Contains(quote, "\n| "+name+" | ") {
				t.Errorf("README.md has nothing of %s: %q", g.name, name)
			}
		}
	}
	var table strings.Builder
	if err := r.markdown(&table); err != nil {
		t.Fatal(err)
	}
	if p, err := os.ReadFile("results.md"); err != nil || string(p) != table.String() {
		t.Errorf("results.md is not of results.json: %v", err)
	}
}

// What each group tells is collected from a process of its own, as in a run.
func TestAQuickRunOfACommand(t *testing.T) {
	if testing.Short() {
		t.Skip("it builds and runs a command")
	}
	b, err := newBench(t.Context(), quick)
	if err != nil {
		t.Fatal(err)
	}
	defer b.close()
	o := b.runGroup(t.Context(), group{name: "sim", limit: time.Minute, measure: command("sim", "-scenario 7", "", "")})
	if o.Error != "" || len(o.Figures) != 3 || o.Figures[0].Median() <= 0 {
		t.Errorf("%+v", o)
	}
	for i := range o.Figures {
		if o.Figures[i].System != "granary, simulated" || len(o.Figures[i].Values) != 1 {
			t.Errorf("%+v", o.Figures[i])
		}
	}
	if o := b.runGroup(t.Context(), group{name: "sim", limit: time.Minute, measure: command("sim", "-scenario 99", "", "")}); o.Error == "" {
		t.Error("a command that fails has not failed its group")
	}
}

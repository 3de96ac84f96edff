package main

import (
	"context"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/granary-oci/granary/simtest/netns"
)

// TestMain lets the test binary be its own clients and hostile members, as the
// program is.
func TestMain(m *testing.M) {
	playRole(os.Args[1:])
	os.Exit(m.Run())
}

// TestCluster judges bytes and errors, not times: four nodes pull a cold image,
// which leaves the registry once, and then each fault with another.
func TestCluster(t *testing.T) {
	l := newTestLab(t, 4)
	img, err := l.registry.ensure(t.Context(), recipe{name: "cold", size: 64e6, seed: 3}) // as image190, and no larger than it has to be
	if err != nil {
		t.Fatal(err)
	}
	if n := img.size(); n < 60e6 || n > 68e6 {
		t.Errorf("the image has %d bytes, want about 64 MB", n)
	}
	t.Run("cold", func(t *testing.T) {
		judge(t, l.granary(t.Context(), "granary", img, false, limits{Egress: 1.05, Requests: true}))
	})
	for _, name := range faultNames() {
		if name == "rotate" {
			continue // it waits long for files to be read again, and simtest/peers does the same over loopback
		}
		t.Run(name, func(t *testing.T) {
			r, err := l.runFault(t.Context(), name)
			if err != nil {
				t.Fatal(err)
			}
			judge(t, r)
		})
	}
}

// TestNetwork asks of the network what the faults rely on: that a partition cuts
// off whom it should and nobody else, that it heals, and that bytes are counted.
func TestNetwork(t *testing.T) {
	l := newTestLab(t, 2)
	home, a, b := l.registry.space, l.spaces[0], l.spaces[1]
	reach := func(s *space) bool { return answers(t.Context(), s, l.registry.url()+"/v2/") }
	if !reach(a) || !reach(b) {
		t.Fatal("the registry does not answer its neighbours")
	}
	before, err := home.Sent()
	if err != nil {
		t.Fatal(err)
	}
	if err := part(t.Context(), []*space{a}, []*space{home}); err != nil {
		t.Fatal(err)
	}
	if reach(a) || !reach(b) {
		t.Error("the partition cuts off the wrong ones")
	}
	if after, err := home.Sent(); err != nil || after <= before || after > before+10_000 {
		t.Errorf("the registry has sent %d bytes, and then %d: %v", before, after, err)
	}
	if err := heal(t.Context(), []*space{a}, []*space{home}); err != nil {
		t.Fatal(err)
	}
	if !reach(a) {
		t.Error("the partition does not heal")
	}
}

// newTestLab makes a lab of n machines, or skips the test.
func newTestLab(t *testing.T, n int) *lab {
	t.Helper()
	if os.Getenv("CI") == "" && os.Getenv("GRANARY_TEST_CLUSTER") != "1" {
		t.Skip("it takes minutes: set GRANARY_TEST_CLUSTER=1")
	}
	if os.Geteuid() != 0 {
		if os.Getenv("CI") == "true" {
			t.Fatal("CI is to run as root")
		}
		t.Skip("it takes root to make network namespaces")
	}
	lookAtSources(t)
	s := defaults()
	s.BytesOnly = true
	if s.Work = os.Getenv("GRANARY_CLUSTER_WORK"); s.Work == "" {
		s.Work = t.TempDir()
	}
	var err error
	if s.Granary, err = buildGranary(t.Context(), s.Work); err != nil {
		t.Fatal(err)
	}
	l, err := newLab(t.Context(), s, n)
	t.Cleanup(func() {
		l.close()
		if t.Failed() {
			showLogs(t, l.logs)
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func judge(t *testing.T, r *row) {
	t.Helper()
	var text strings.Builder
	printHeader(&text)
	r.print(&text)
	t.Logf("\n%s", text.String())
	if r.err != nil {
		t.Error(r.err)
	}
}

// showLogs shows the end of each log of a node.
func showLogs(t *testing.T, dir string) {
	files, _ := filepath.Glob(filepath.Join(dir, "*-node*.log"))
	for _, file := range files {
		p, _ := os.ReadFile(file)
		t.Logf("end of %s:\n%s", filepath.Base(file), p[max(0, len(p)-2000):])
	}
}

// lookAtSources makes the result depend on the binary's sources: go test
// remembers a result for as long as the files that the test looked at stay.
func lookAtSources(t *testing.T) {
	err := filepath.WalkDir("../..", func(path string, _ fs.DirEntry, err error) error {
		if err == nil && strings.HasSuffix(path, ".go") {
			_, err = os.Stat(path)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestRecipeGivesTheSameImage(t *testing.T) {
	for _, what := range []recipe{{name: "a", size: 3e6, seed: 1}, {name: "b", size: 3e6, seed: 1, plain: true}} {
		first, second := buildTwice(t, what, what)
		if first.Digest != second.Digest {
			t.Errorf("%s: %s, and then %s", what.name, first.Digest, second.Digest)
		}
		if n := first.size(); n < 29e5 || n > 31e5 {
			t.Errorf("%s: %d bytes, want %d", what.name, n, what.size)
		}
	}
}

func TestAnotherSeedSharesNoBlob(t *testing.T) {
	first, second := buildTwice(t, recipe{name: "a", size: 3e6, seed: 1}, recipe{name: "a", size: 3e6, seed: 2})
	for _, b := range first.Blobs {
		if slices.ContainsFunc(second.Blobs, func(d ocispec.Descriptor) bool { return d.Digest == b.Digest }) {
			t.Errorf("both have %s", b.Digest)
		}
	}
}

func buildTwice(t *testing.T, a, b recipe) (first, second *image) {
	t.Helper()
	put := func(ocispec.Descriptor, string) error { return nil }
	first, err := a.build(t.TempDir(), put)
	if err != nil {
		t.Fatal(err)
	}
	if second, err = b.build(t.TempDir(), put); err != nil {
		t.Fatal(err)
	}
	return first, second
}

func TestRequestsAreCountedOnce(t *testing.T) {
	log := filepath.Join(t.TempDir(), "log")
	const line = `10.208.0.11 - - [21/Nov/2026:17:50:10 +0000] "GET /v2/a/blobs/b HTTP/1.1" 206 91 "" "granary"` + "\n"
	r := &registry{Process: &netns.Process{Log: log}}
	for i, step := range []struct {
		text string
		want int
	}{{line + "time=… level=error msg=\"…\" http.request.uri=/v2/a\n", 1}, {line + line, 2}, {"", 0}, {line[:30], 0}, {line[30:], 1}} {
		appendTo(t, log, step.text)
		if got := r.requests(); got != step.want {
			t.Errorf("step %d: %d requests, want %d", i, got, step.want)
		}
	}
}

func appendTo(t *testing.T, file, text string) {
	t.Helper()
	f, err := os.OpenFile(file, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteString(text); err != nil {
		t.Fatal(err)
	}
}

func TestEventuallyGivesUp(t *testing.T) {
	if err := eventually(context.Background(), time.Millisecond, "x", func() bool { return false }); err == nil {
		t.Error("it waited for nothing and said that it came")
	}
}

package main

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/granary-oci/granary/proxy/compat"
	"github.com/granary-oci/granary/proxy/ref"
)

// Sets of proposals I and J that are alike for every machine that tests run on.
const (
	anyLinux = `{"oci.os.kernel":">=2.6","tags":"any","description":"each Linux"}`
	noCPU    = `{"oci.cpu.features":"NOSUCHFEATURE"}`
	noKey    = `{"oci.moon.phase":"full"}`
)

// withSets is an image for a platform, with sets in a blob (proposal J).
func (l *library) withSets(name, architecture, sets string) map[string]any {
	return entry(l.image(name), architecture, map[string]any{"compat": l.blob(compatType, `{"compatibilities":[`+sets+`]}`)})
}

// withConfig is an image for a platform, with sets in a configuration (proposal I).
func (l *library) withConfig(name, architecture, sets string) map[string]any {
	config := l.blob(ocispec.MediaTypeImageConfig, `{"config":{"compatibilities":[`+sets+`]}}`)
	return entry(l.image(name), architecture, map[string]any{"compat": l.manifest(imageType, map[string]any{"config": config, "layers": []any{}})})
}

func (l *library) index(tag string, entries ...any) ocispec.Descriptor {
	index := l.manifest(indexType, map[string]any{"manifests": entries})
	l.tag(tag, index)
	return index
}

// nfd adds an artifact of NFD's that refers to a manifest and asks for a kernel.
func (l *library) nfd(subject ocispec.Descriptor, created, major string) ocispec.Descriptor {
	layer := l.blob(compat.NFDMediaType, "version: v1alpha1\ncompatibilities:\n- rules:\n  - name: kernel\n    matchFeatures:\n    - feature: kernel.version\n      matchExpressions:\n        major: {op: Gt, value: ['"+major+"']}\n")
	artifact := l.manifest(imageType, map[string]any{
		"artifactType": compat.NFDArtifactType, "config": l.blob(ocispec.MediaTypeEmptyJSON, "{}"), "layers": []any{layer},
		"subject": subject, "annotations": map[string]string{ocispec.AnnotationCreated: created},
	})
	artifact.ArtifactType, artifact.Annotations = compat.NFDArtifactType, map[string]string{ocispec.AnnotationCreated: created}
	if l.referrers == nil {
		l.referrers = make(map[digest.Digest][]ocispec.Descriptor)
	}
	l.referrers[subject.Digest] = append(l.referrers[subject.Digest], artifact)
	return artifact
}

// compat asks for a tag through a node of its own.
func (l *library) compat(t *testing.T, reference string, args ...string) (status int, stdout, stderr string) {
	t.Helper()
	return granary(t, append([]string{
		"compat", "registry.test/app" + reference, "--node", "http://127.0.0.1:1", "--data-dir", t.TempDir(), "--upstream", "registry.test=" + l.URL, "--platform", "linux/amd64",
	}, args...)...)
}

// offers adds an index of images for amd64 that suit no machine, and those of the tests more
// and more, and one for arm64.
func (l *library) offers() (none, some, best ocispec.Descriptor) {
	none, some, best = l.image("none"), l.image("some"), l.image("best")
	l.index("v1", l.withSets("none", "amd64", noCPU), l.withConfig("some", "amd64", noCPU+","+anyLinux), l.withSets("best", "amd64", anyLinux), l.withSets("other", "arm64", anyLinux))
	l.nfd(best, "2026-01-02T00:00:00Z", "1")
	return none, some, best
}

func TestCompatInWords(t *testing.T) {
	l := newLibrary(t)
	none, some, best := l.offers()
	status, out, errs := l.compat(t, ":v1")
	host, images, _ := strings.Cut(out, "\n")
	want := fmt.Sprintf(`linux/amd64 %s: does not suit
    platform.compat: needs NOSUCHFEATURE, which this CPU has not
linux/amd64 %s: suits
    platform.compat: any (each Linux): suits, conditions that hold: 1
linux/amd64 %s: suits; pull --compat=prefer takes it
    platform.compat: any (each Linux): suits, conditions that hold: 1
    NFD: suits, conditions that hold: 1
linux/arm64 %s: is for another platform
`, none.Digest, some.Digest, best.Digest, l.image("other").Digest)
	if status != 0 || images != want || errs != "" {
		t.Errorf("compat: %d, %s%s\nwant %s", status, errs, images, want)
	}
	if !strings.HasPrefix(host, "this host: CPU ") || !strings.Contains(host, "Linux "+thisHost().Kernel) {
		t.Errorf("the host is %s", host)
	}
}

func TestCompatInJSON(t *testing.T) {
	l := newLibrary(t)
	none, some, best := l.offers()
	status, out, errs := l.compat(t, ":v1", "--json", "--platform", "linux/amd64")
	var r compatReport
	if err := json.Unmarshal([]byte(out), &r); err != nil || status != 0 || len(r.Images) != 4 {
		t.Fatalf("compat: %d, %v, %s%s", status, err, out, errs)
	}
	for i, want := range []struct {
		digest  digest.Digest
		verdict compat.Verdict
		met     int
	}{{none.Digest, compat.Unsuited, 0}, {some.Digest, compat.Suits, 1}, {best.Digest, compat.Suits, 2}, {l.image("other").Digest, otherPlatform, 0}} {
		if got := r.Images[i]; got.Digest != want.digest || got.Verdict != want.verdict || got.Met != want.met {
			t.Errorf("image %d is %+v, want %+v", i, got, want)
		}
	}
	if r.Choice != string(best.Digest) || r.Host.Kernel != thisHost().Kernel || len(r.Images[1].Statements[0].Alternatives) != 2 {
		t.Errorf("compat: %s", out)
	}
}

// TestPullTakesNoNoticeOfCompatibility unless it is told to.
func TestPullTakesNoNoticeOfCompatibility(t *testing.T) {
	l := newLibrary(t)
	none, _, best := l.offers()
	var asked [2][]string
	for i, args := range [][]string{{}, {"--compat=off"}} {
		l.asked = nil
		dir, status, out, errs := l.pullInto(t, ":v1", append(args, "--platform", "linux/amd64")...)
		if status != 0 || !holds(t, dir, none.Digest) || holds(t, dir, best.Digest) || strings.Count(out, "\n") != 1 {
			t.Errorf("pull %v: %d, %s%s", args, status, out, errs)
		}
		asked[i] = l.asked
		if strings.Contains(strings.Join(l.asked, "\n"), "/referrers/") {
			t.Errorf("pull %v asks for %v", args, l.asked)
		}
	}
	slices.Sort(asked[0]) // several are asked for at a time
	slices.Sort(asked[1])
	if !slices.Equal(asked[0], asked[1]) {
		t.Errorf("pull asks for\n%v\nand with --compat=off for\n%v", asked[0], asked[1])
	}
}

func TestPullTakesWhatSuits(t *testing.T) {
	l := newLibrary(t)
	none, some, best := l.offers()
	for _, policy := range []string{"prefer", "require"} {
		dir, status, out, errs := l.pullInto(t, ":v1", "--platform", "linux/amd64", "--compat", policy)
		if status != 0 || !holds(t, dir, best.Digest) || holds(t, dir, none.Digest) || holds(t, dir, some.Digest) {
			t.Errorf("pull --compat=%s: %d, %s%s", policy, status, out, errs)
		}
		if !strings.HasSuffix(out, "taken: linux/amd64 "+string(best.Digest)+": suits\n") {
			t.Errorf("pull --compat=%s: %s", policy, out)
		}
	}
	_, status, out, errs := l.pullInto(t, ":v1", "--platform", "linux/amd64", "--compat=prefer", "--json")
	var r pulled
	if err := json.Unmarshal([]byte(out), &r); err != nil || status != 0 || r.Chosen == nil || r.Chosen.Digest != best.Digest {
		t.Errorf("pull --json: %d, %v, %s%s", status, err, out, errs)
	}
	if _, status, _, errs := l.pullInto(t, ":v1", "--platform", "all", "--compat=prefer"); status != 1 || !strings.Contains(errs, "--compat=prefer takes one platform") {
		t.Errorf("pull of all: %d, %s", status, errs)
	}
	if status, _, errs := granary(t, "pull", "app", "--compat=maybe"); status != 2 || !strings.Contains(errs, "--compat") {
		t.Errorf("pull --compat=maybe: %d, %s", status, errs)
	}
}

// TestWhatIsNotKnownToSuit is refused by require, and by prefer taken for want of better: what
// nothing is said of first, then what cannot be judged, and what is known not to suit last.
func TestWhatIsNotKnownToSuit(t *testing.T) {
	l := newLibrary(t)
	silent := entry(l.image("silent"), "amd64", nil)
	bad, open := l.withSets("bad", "amd64", noCPU), l.withSets("open", "amd64", noKey)
	for _, test := range []struct {
		name    string
		entries []any
		taken   string
		why     string
		status  int // of compat
	}{
		{"bad", []any{bad}, "bad", "does not suit: needs NOSUCHFEATURE, which this CPU has not", 1},
		{"open", []any{bad, open}, "open", "unknown: oci.moon.phase is not a key that is known", 1},
		{"silent", []any{bad, open, silent}, "silent", "says nothing", 1},
		{"nothing", []any{silent}, "silent", "says nothing", 0},
	} {
		l.index(test.name, test.entries...)
		taken := l.image(test.taken)
		reason := "linux/amd64 " + string(taken.Digest) + ": " + test.why
		dir, status, out, errs := l.pullInto(t, ":"+test.name, "--platform", "linux/amd64", "--compat=prefer")
		if status != 0 || !holds(t, dir, taken.Digest) || !strings.HasSuffix(out, "taken: "+reason+"\n") {
			t.Errorf("%s: prefer: %d, %s%s", test.name, status, out, errs)
		}
		dir, status, _, errs = l.pullInto(t, ":"+test.name, "--platform", "linux/amd64", "--compat=require")
		if status != 1 || holds(t, dir, taken.Digest) || !strings.Contains(errs, "no image is known to suit this host; of the best, "+reason) {
			t.Errorf("%s: require: %d, %s", test.name, status, errs)
		}
		if status, out, errs := l.compat(t, ":"+test.name); status != test.status {
			t.Errorf("%s: compat: %d, %s%s", test.name, status, out, errs)
		}
	}
}

// TestDocumentsThatCannotBeRead leave an image that nobody knows about.
func TestDocumentsThatCannotBeRead(t *testing.T) {
	l := newLibrary(t)
	gone := l.blob(compatType, "gone")
	l.remove(gone)
	short := l.blob(compatType, anyLinux)
	short.Size++
	for name, test := range map[string]struct{ compat, want any }{
		"gone":      {gone, "404"},
		"wrong":     {l.blob(compatType, "{"), "unexpected end of JSON"},
		"short":     {short, "bytes with digest"},
		"odd":       {l.blob(oddType, anyLinux), `documents of type "` + oddType + `" are not known`},
		"malformed": {7, "it is no descriptor"},
		"config":    {l.manifest(imageType, map[string]any{"config": gone}), "404"},
		"large":     {map[string]any{"mediaType": compatType, "digest": gone.Digest, "size": 5 << 20}, "a document does not have 5242880 bytes"},
	} {
		l.index(name, entry(l.image(name), "amd64", map[string]any{"compat": test.compat}))
		status, out, errs := l.compat(t, ":"+name)
		if status != 1 || !strings.Contains(out, string(l.image(name).Digest)+": unknown") || !strings.Contains(out, test.want.(string)) {
			t.Errorf("%s: %d, %s%s", name, status, out, errs)
		}
	}
}

// TestARegistryThatRefuses says nothing of an image, not even that it is unknown.
func TestARegistryThatRefuses(t *testing.T) {
	l := newLibrary(t)
	blob := l.blob(compatType, `{"compatibilities":[]}`)
	l.index("v1", entry(l.image("i"), "amd64", map[string]any{"compat": blob}))
	l.refused = string(blob.Digest)
	if status, out, errs := l.compat(t, ":v1"); status != 1 || out != "" || !strings.Contains(errs, "platform.compat "+l.refused) {
		t.Errorf("compat: %d, %s%s", status, out, errs)
	}
	if dir, status, _, errs := l.pullInto(t, ":v1", "--platform", "linux/amd64", "--compat=prefer"); status != 1 || holds(t, dir, l.image("i").Digest) {
		t.Errorf("pull: %d, %s", status, errs)
	}
}

func TestNFDArtifacts(t *testing.T) {
	for _, lists := range []bool{true, false} {
		l := newLibrary(t)
		image := l.image("alone")
		l.tag("alone", image)
		index := l.index("index", entry(image, "amd64", nil))
		newest := l.nfd(image, "2026-03-01T00:00:00Z", "1")
		l.nfd(image, "2026-02-01T00:00:00Z", "999")
		ofIndex := l.nfd(index, "", "999")
		signature := l.manifest(imageType, map[string]any{"subject": image, "artifactType": oddType, "layers": []any{}})
		signature.ArtifactType, signature.Annotations = oddType, map[string]string{ocispec.AnnotationCreated: "2026-04-01T00:00:00Z"}
		l.referrers[image.Digest] = append(l.referrers[image.Digest], signature)
		if !lists {
			for d, all := range l.referrers {
				l.tag(ref.FallbackTag(d), l.manifest(indexType, map[string]any{"manifests": all}))
			}
			l.referrers = nil
		}
		if status, out, errs := l.compat(t, ":alone"); status != 0 || !strings.Contains(out, string(image.Digest)+": suits") {
			t.Errorf("an image alone: %d, %s%s", status, out, errs)
		}
		status, out, errs := l.compat(t, ":index", "--json")
		var r compatReport
		if err := json.Unmarshal([]byte(out), &r); err != nil || status != 1 || len(r.Images) != 1 || len(r.Images[0].Statements) != 2 {
			t.Fatalf("an index: %d, %v, %s%s", status, err, out, errs)
		}
		if s := r.Images[0].Statements; r.Images[0].Verdict != compat.Unsuited || s[0].Digest != ofIndex.Digest || s[1].Digest != newest.Digest {
			t.Errorf("an index: %s", out)
		}
	}
}

// TestNestedIndexes are looked into, and what stands above holds below.
func TestNestedIndexes(t *testing.T) {
	l := newLibrary(t)
	other := l.manifest(indexType, map[string]any{"manifests": []any{l.withSets("o", "arm64", anyLinux)}})
	good := l.manifest(indexType, map[string]any{"manifests": []any{l.withSets("x", "amd64", noCPU), l.withSets("y", "amd64", anyLinux)}})
	bad := l.manifest(indexType, map[string]any{"manifests": []any{l.withSets("z", "amd64", noCPU)}})
	l.index("v1", other, bad, good)
	dir, status, out, errs := l.pullInto(t, ":v1", "--platform", "linux/amd64", "--compat=require")
	if want := l.image("y"); status != 0 || !holds(t, dir, want.Digest) || holds(t, dir, l.image("x").Digest) || holds(t, dir, bad.Digest) {
		t.Errorf("pull: %d, %s%s", status, out, errs)
	}
	if status, out, errs := l.compat(t, ":v1"); status != 0 || !strings.Contains(out, string(l.image("y").Digest)+": suits; pull") {
		t.Errorf("compat: %d, %s%s", status, out, errs)
	}
	l.nfd(good, "", "999")
	if _, status, _, errs := l.pullInto(t, ":v1", "--platform", "linux/amd64", "--compat=require"); status != 1 || !strings.Contains(errs, "major above 999") && !strings.Contains(errs, "NOSUCHFEATURE") {
		t.Errorf("pull: %d, %s", status, errs)
	}
}

func TestPlatforms(t *testing.T) {
	l := newLibrary(t)
	l.offers()
	if status, out, errs := l.compat(t, ":v1", "--platform", "all"); status != 0 || strings.Count(out, ": suits\n") != 3 || strings.Contains(out, "takes it") {
		t.Errorf("all: %d, %s%s", status, out, errs)
	}
	if status, out, errs := l.compat(t, ":v1", "--platform", "linux/s390x"); status != 1 || !strings.Contains(errs, "no image for linux/s390x; there are linux/amd64, ") {
		t.Errorf("none: %d, %s%s", status, out, errs)
	}
}

// TestOfEqualsTheFirst image is taken, as without --compat.
func TestOfEqualsTheFirst(t *testing.T) {
	l := newLibrary(t)
	l.index("v1", l.withSets("first", "amd64", anyLinux), l.withSets("second", "amd64", anyLinux))
	dir, status, out, errs := l.pullInto(t, ":v1", "--platform", "linux/amd64", "--compat=prefer")
	if status != 0 || !holds(t, dir, l.image("first").Digest) || holds(t, dir, l.image("second").Digest) {
		t.Errorf("pull: %d, %s%s", status, out, errs)
	}
}

// TestSurveysEnd also for those who made an index to have them go on.
func TestSurveysEnd(t *testing.T) {
	l := newLibrary(t)
	var many, others []any
	for range 257 {
		many = append(many, entry(l.image("i"), "amd64", nil))
	}
	for range 4097 {
		others = append(others, map[string]any{"mediaType": imageType, "platform": map[string]any{"os": "x"}})
	}
	deep := l.image("deep")
	for range 10 {
		deep = l.manifest(indexType, map[string]any{"manifests": []any{deep}})
	}
	l.index("many", many...)
	l.index("others", others...)
	l.tag("deep", deep)
	for tag, want := range map[string]string{
		"many": "more than 256 images are for the platform", "others": "there are more than 4096 images", "deep": "indexes are nested more than 8 deep",
	} {
		if status, out, errs := l.compat(t, ":"+tag); status != 1 || !strings.Contains(errs, want) {
			t.Errorf("%s: %d, %s%s; want %s", tag, status, out, errs, want)
		}
	}
}

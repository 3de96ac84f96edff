package profile

import (
	"fmt"
	"math/rand/v2"
	"reflect"
	"testing"

	"github.com/opencontainers/go-digest"
)

var layer = digest.FromString("a layer")

func run(paths ...string) []File {
	var r Recorder
	for _, p := range paths {
		r.Read(layer, p, 0, 100)
	}
	return r.Files()
}

func names(files []File) (all []string) {
	for _, f := range files {
		all = append(all, f.Path)
	}
	return all
}

func check(t *testing.T, got []File, want ...string) {
	t.Helper()
	if !reflect.DeepEqual(names(got), want) {
		t.Errorf("%q, want %q", names(got), want)
	}
}

func TestLikely(t *testing.T) {
	var p Profile
	check(t, p.Likely())
	p = p.Add(run("sh", "libc"), false)
	check(t, p.Likely(), "sh", "libc")
	p = p.Add(run("libc", "python"), false)
	check(t, p.Likely(), "libc", "python", "sh")
	for range 3 {
		p = p.Add(run("libc", "python"), false)
	}
	check(t, p.Likely(), "libc", "python") // sh was read by one of five
	for range history {
		p = p.Add(run("libc"), false)
	}
	check(t, p.Files, "libc")
	if p.Runs != history {
		t.Errorf("%d runs are remembered", p.Runs)
	}
}

func TestARunAgain(t *testing.T) {
	p := Profile{}.Add(run("sh"), false).Add(run("sh", "libc"), true)
	if p.Runs != 1 {
		t.Errorf("%d runs", p.Runs)
	}
	check(t, p.Likely(), "sh", "libc")
}

func TestRangesOfRunsAreJoined(t *testing.T) {
	var one, two Recorder
	one.Read(layer, "f", 0, 10)
	two.Read(layer, "f", 1<<20, 10)
	two.Read(layer, "f", 5, 10)
	p := Profile{}.Add(one.Files(), false).Add(two.Files(), false)
	if want := []Range{{0, 15}, {1 << 20, 10}}; !reflect.DeepEqual(p.Files[0].Ranges, want) {
		t.Errorf("%v", p.Files[0].Ranges)
	}
}

func TestRecorder(t *testing.T) {
	var r Recorder
	for _, i := range rand.New(rand.NewPCG(1, 2)).Perm(1000) {
		r.Read(layer, "scattered", int64(i)<<20, 4096)
	}
	r.Read(layer, "near", 0, 4096)
	r.Read(layer, "near", 16<<10, 4096)
	r.Read(layer, "no", -1, 4096)
	r.Read(layer, "no", 0, 0)
	r.Read(layer, "no", 1<<62, 1<<62)
	files := r.Files()
	check(t, files, "scattered", "near")
	if got := files[1].Ranges; !reflect.DeepEqual(got, []Range{{0, 20 << 10}}) {
		t.Errorf("near: %v", got)
	}
	scattered := files[0].Ranges
	if len(scattered) > maxRanges || scattered[0].Offset != 0 || scattered[len(scattered)-1].end() != 999<<20+4096 {
		t.Errorf("scattered: %d ranges, %v to %v", len(scattered), scattered[0], scattered[len(scattered)-1])
	}
	for i := range maxFiles + 10 {
		r.Read(layer, fmt.Sprint(i), 0, 1)
	}
	if r.Len() != maxFiles {
		t.Errorf("%d files", r.Len())
	}
}

func TestEncode(t *testing.T) {
	p := Profile{}.Add(run("sh", "lib/libc.so", "ü\xff"), false)
	packed, err := p.Encode()
	if err != nil {
		t.Fatal(err)
	}
	back, err := Decode(packed)
	if err != nil {
		t.Fatal(err)
	}
	if back.Runs != 1 || len(back.Files) != 3 || !reflect.DeepEqual(back.Files[:2], p.Files[:2]) {
		t.Errorf("%+v", back)
	}
}

func TestDecodeRefuses(t *testing.T) {
	for name, p := range map[string]Profile{
		"a digest":        {Files: []File{{Layer: "sha256:no", Path: "f"}}},
		"no path":         {Files: []File{{Layer: layer}}},
		"runs":            {Runs: 9},
		"ranges in order": {Files: []File{{Layer: layer, Path: "f", Ranges: []Range{{10, 1}, {0, 1}}}}},
		"overflow":        {Files: []File{{Layer: layer, Path: "f", Ranges: []Range{{1, 1<<63 - 1}}}}},
	} {
		packed, err := p.Encode()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := Decode(packed); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

func FuzzDecode(f *testing.F) {
	packed, err := Profile{}.Add(run("sh", "libc"), false).Encode()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(packed)
	f.Fuzz(func(t *testing.T, p []byte) {
		got, err := Decode(p)
		if err != nil {
			return
		}
		if again, err := got.Add(run("sh"), false).Encode(); err == nil {
			if _, err := Decode(again); err != nil {
				t.Errorf("what was made of it is refused: %v", err)
			}
		}
	})
}

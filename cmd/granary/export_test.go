package main

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"oras.land/oras-go/v2/content/oci"
	"oras.land/oras-go/v2/registry"

	"github.com/granary-oci/granary/proxy/ref"
)

// export exports through a node of its own.
func (l *library) export(t *testing.T, args ...string) (status int, stdout, stderr string) {
	t.Helper()
	return granary(t, append([]string{"export", "--node", "http://127.0.0.1:1", "--data-dir", t.TempDir(), "--upstream", "registry.test=" + l.URL}, args...)...)
}

// exported exports what must succeed.
func (l *library) exported(t *testing.T, args ...string) (stdout, stderr string) {
	t.Helper()
	status, out, errs := l.export(t, args...)
	if status != 0 {
		t.Fatalf("export %q: %d, %s%s", args, status, out, errs)
	}
	return out, errs
}

// unpack writes the files of a tar into a directory.
func unpack(t *testing.T, file string) (dir string) {
	t.Helper()
	p, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	dir = t.TempDir()
	r := tar.NewReader(bytes.NewReader(p))
	for {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return dir
		}
		name := filepath.Join(dir, h.Name)
		if h.Typeflag == tar.TypeDir {
			err = os.MkdirAll(name, 0o755)
		} else if p, err = io.ReadAll(r); err == nil {
			err = os.WriteFile(name, p, 0o644)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

// exports are the forms of an export, and how its files are got at.
var exports = map[string]struct {
	target func(dir string) string
	files  func(t *testing.T, dir string) string
}{
	"layout":  {func(dir string) string { return "oci:" + filepath.Join(dir, "out") }, func(_ *testing.T, dir string) string { return filepath.Join(dir, "out") }},
	"archive": {func(dir string) string { return "oci-archive:" + filepath.Join(dir, "out.tar") }, func(t *testing.T, dir string) string { return unpack(t, filepath.Join(dir, "out.tar")) }},
}

// nested is what an odd manifest has that nothing but an odd field names. A layout does not tell
// manifests from blobs, so nothing that is read from one is looked for in it.
const nested = "of an odd manifest"

// same reports what of a registry a layout does not have as it is, but for one content.
func (l *library) same(t *testing.T, dir, except string) {
	t.Helper()
	for d, x := range l.all() {
		if p, err := os.ReadFile(layoutFile(dir, d)); string(x.bytes) != except && (err != nil || !bytes.Equal(p, x.bytes)) {
			t.Errorf("%s, %.60s: %.60q, %v", d, x.bytes, p, err)
		}
	}
}

// TestAnExportIsPulledAgain: from the registry into files, and with these in the registry's
// place into other files, everything is the same.
func TestAnExportIsPulledAgain(t *testing.T) {
	for name, form := range exports {
		for _, lists := range []bool{true, false} {
			t.Run(name, func(t *testing.T) {
				l, dir, again := newLibrary(t), t.TempDir(), t.TempDir()
				index := l.everything(lists)
				out, _ := l.exported(t, "registry.test/app:v1", form.target(dir), "--referrers")
				if !strings.HasPrefix(out, "registry.test/app:v1@"+string(index.Digest)+": ") {
					t.Errorf("it says %s", out)
				}
				status, out, errs := granary(t, "pull", "registry.test/app:v1", "-o", "oci:"+again, "--platform", "all", "--referrers",
					"--upstream", "registry.test="+form.target(dir), "--data-dir", t.TempDir(), "--node", "http://127.0.0.1:1")
				if status != 0 || strings.Contains(errs, "not there") {
					t.Fatalf("pull: %d, %s%s", status, out, errs)
				}
				l.same(t, form.files(t, dir), "")
				l.same(t, again, nested)
			})
		}
	}
}

// TestReferrersAreFoundAsOthersLookForThem: oras among the entries of index.json, regctl in
// the index that is tagged for the subject.
func TestReferrersAreFoundAsOthersLookForThem(t *testing.T) {
	for name, form := range exports {
		for _, lists := range []bool{true, false} {
			t.Run(name, func(t *testing.T) {
				l, dir := newLibrary(t), t.TempDir()
				image := l.image("signed")
				l.tag("v1", image)
				signature := l.manifest(imageType, map[string]any{
					"subject": image, "artifactType": oddType, "config": l.blob(ocispec.MediaTypeEmptyJSON, "{}"), "layers": []any{l.blob(oddType, "signature")},
					"annotations": map[string]string{"by": "me", containerdName: "registry.test/app:v1"}, // which is another's name
				})
				if lists {
					l.referrers = map[digest.Digest][]ocispec.Descriptor{image.Digest: {signature}}
				} else {
					l.tag(ref.FallbackTag(image.Digest), l.manifest(indexType, map[string]any{"manifests": []any{signature}}))
				}
				l.exported(t, "registry.test/app:v1", form.target(dir), "--referrers")
				files := form.files(t, dir)

				store, err := oci.New(files)
				if err != nil {
					t.Fatal(err)
				}
				found, err := registry.Referrers(t.Context(), store, image, oddType)
				if err != nil || len(found) != 1 || found[0].Digest != signature.Digest || found[0].Annotations["by"] != "me" {
					t.Errorf("as oras looks for them: %+v, %v", found, err)
				}
				var list ocispec.Index
				for _, m := range listed(t, files).Manifests {
					name := m.Annotations[ocispec.AnnotationRefName]
					switch {
					case strings.HasSuffix(name, ":"+ref.FallbackTag(image.Digest)):
						p, err := os.ReadFile(layoutFile(files, m.Digest))
						if err != nil || json.Unmarshal(p, &list) != nil {
							t.Errorf("the list is %s, %v", p, err)
						}
					case m.Digest == signature.Digest && (name != "" || m.ArtifactType != oddType || m.Annotations[containerdName] != ""):
						t.Errorf("the signature is listed as %+v", m)
					}
				}
				if len(list.Manifests) != 1 || list.Manifests[0].Digest != signature.Digest || lists && list.Manifests[0].ArtifactType != oddType {
					t.Errorf("as regctl looks for them: %+v", list.Manifests)
				}
			})
		}
	}
}

// TestAListThatLacksReferrersIsMadeAnew: the registry's API knows of more than its tag.
func TestAListThatLacksReferrersIsMadeAnew(t *testing.T) {
	l, dir := newLibrary(t), t.TempDir()
	image := l.image("signed")
	l.tag("v1", image)
	old := l.manifest(imageType, map[string]any{"subject": image, "layers": []any{l.blob(oddType, "old")}})
	late := l.manifest(imageType, map[string]any{"subject": image, "layers": []any{l.blob(oddType, "late")}})
	l.tag(ref.FallbackTag(image.Digest), l.manifest(indexType, map[string]any{"manifests": []any{old}}))
	l.referrers = map[digest.Digest][]ocispec.Descriptor{image.Digest: {old, late}}
	l.exported(t, "registry.test/app:v1", "oci:"+dir, "--referrers")
	for _, m := range listed(t, dir).Manifests {
		if !strings.HasSuffix(m.Annotations[ocispec.AnnotationRefName], ":"+ref.FallbackTag(image.Digest)) {
			continue
		}
		p, err := os.ReadFile(layoutFile(dir, m.Digest))
		if err != nil || !bytes.Contains(p, []byte(old.Digest)) || !bytes.Contains(p, []byte(late.Digest)) {
			t.Errorf("the list is %s, %v", p, err)
		}
		return
	}
	t.Error("there is no list")
}

func TestAnExportSaysWhatIsMissing(t *testing.T) {
	for name, form := range exports {
		t.Run(name, func(t *testing.T) {
			l, dir := newLibrary(t), t.TempDir()
			good, bad := l.image("good"), l.image("bad")
			l.tag("good", good)
			l.tag("bad", bad)
			layer := l.blob(layerType, "layer of bad")
			l.remove(layer)
			status, out, errs := l.export(t, "registry.test/app:bad", "registry.test/app:none", "registry.test/app:good", form.target(dir))
			for _, want := range []string{
				"missing: blob " + string(layer.Digest) + " (layers[0] of " + string(bad.Digest) + ")",
				"export registry.test/app:bad: incomplete, 1 of what it refers to is missing",
				"export registry.test/app:none: ",
			} {
				if status != 1 || !strings.Contains(errs, want) {
					t.Errorf("%d, %s%s; want %s", status, out, errs, want)
				}
			}
			if name == "archive" {
				if files, err := os.ReadDir(dir); err != nil || len(files) > 0 || out != "" {
					t.Errorf("%v, %v and %q are there of an archive that is not complete", files, err, out)
				}
				return
			}
			if all := listed(t, form.files(t, dir)).Manifests; len(all) != 1 || all[0].Digest != good.Digest || strings.Count(out, "\n") != 1 {
				t.Errorf("listed are %+v; it says %s", all, out)
			}
		})
	}
}

func TestAnExportSaysWhatIsMissingAsJSON(t *testing.T) {
	l := newLibrary(t)
	bad := l.image("bad")
	l.tag("bad", bad)
	layer := l.blob(layerType, "layer of bad")
	l.remove(layer)
	status, out, errs := l.export(t, "registry.test/app:bad", "oci:"+t.TempDir(), "--json")
	var result pulled
	if err := json.Unmarshal([]byte(out), &result); status != 1 || err != nil || len(result.Missing) != 1 || result.Missing[0].Digest != string(layer.Digest) {
		t.Errorf("%d, %s%s", status, out, errs)
	}
}

func TestAnExportGoesOnWhereAnotherEnded(t *testing.T) {
	l, dir := newLibrary(t), t.TempDir()
	image := l.image("i")
	l.tag("v1", image)
	config, layer := l.blob(ocispec.MediaTypeImageConfig, `{"config of":"i"}`), l.blob(layerType, "layer of i")
	l.remove(layer)
	if status, _, errs := l.export(t, "registry.test/app:v1", "oci:"+dir); status != 1 || !holds(t, dir, config.Digest) {
		t.Fatalf("without a layer: %d, %s", status, errs)
	}
	l.blob(layerType, "layer of i")
	fetched := func() (blobs []string) {
		l.mu.Lock()
		l.asked = nil
		l.mu.Unlock()
		l.exported(t, "registry.test/app:v1", "oci:"+dir)
		l.mu.Lock()
		defer l.mu.Unlock()
		for _, q := range l.asked {
			if d, ok := strings.CutPrefix(q, "GET /v2/app/blobs/"); ok && !slices.Contains(blobs, d) {
				blobs = append(blobs, d)
			}
		}
		return blobs
	}
	if got := fetched(); !slices.Equal(got, []string{string(layer.Digest)}) || !holds(t, dir, layer.Digest) {
		t.Errorf("to complete it %v were fetched", got)
	}
	if got := fetched(); got != nil {
		t.Errorf("of what is complete %v were fetched", got)
	}
	// What is there is believed only if it is right.
	if err := os.WriteFile(layoutFile(dir, layer.Digest), []byte("LAYER OF i"), 0o644); err != nil {
		t.Fatal(err)
	}
	if got := fetched(); !slices.Equal(got, []string{string(layer.Digest)}) || !holds(t, dir, layer.Digest) {
		t.Errorf("in place of wrong bytes %v were fetched", got)
	}
	other := filepath.Join(t.TempDir(), "other")
	if err := errors.Join(os.WriteFile(other, []byte("layer of i"), 0o644), os.Remove(layoutFile(dir, layer.Digest)), os.Symlink(other, layoutFile(dir, layer.Digest))); err != nil {
		t.Fatal(err)
	}
	if got := fetched(); !slices.Equal(got, []string{string(layer.Digest)}) {
		t.Errorf("in place of a symlink that leads out %v were fetched", got)
	}
	if info, err := os.Lstat(layoutFile(dir, layer.Digest)); err != nil || !info.Mode().IsRegular() {
		t.Errorf("the blob is now %v, %v", info.Mode(), err)
	}
}

func TestAnExportSinceAnother(t *testing.T) {
	for name, form := range exports {
		t.Run(name, func(t *testing.T) {
			l, old, dir := newLibrary(t), t.TempDir(), t.TempDir()
			base, wrong, top := l.blob(layerType, "base"), l.blob(layerType, "wrong"), l.blob(layerType, "top")
			config := l.blob(ocispec.MediaTypeImageConfig, `{}`)
			l.tag("v1", l.manifest(imageType, map[string]any{"config": config, "layers": []any{base, wrong}}))
			image := l.manifest(imageType, map[string]any{"config": config, "layers": []any{base, wrong, top}})
			l.tag("v2", image)
			l.exported(t, "registry.test/app:v1", "oci:"+old)
			if err := os.WriteFile(layoutFile(old, wrong.Digest), []byte("WRONG"), 0o644); err != nil {
				t.Fatal(err)
			}
			l.remove(base) // it is not needed
			out, _ := l.exported(t, "registry.test/app:v2", form.target(dir), "--since", "oci:"+old)
			if !strings.Contains(out, ": 1 manifests, 2 blobs, 8 B; 2 blobs of 6 B left out, which oci:"+old+" has") {
				t.Errorf("it says %s", out)
			}
			files := form.files(t, dir)
			for _, d := range []ocispec.Descriptor{image, wrong, top} {
				if !holds(t, files, d.Digest) {
					t.Errorf("%s is not there", d.Digest)
				}
			}
			for _, d := range []ocispec.Descriptor{base, config} {
				if holds(t, files, d.Digest) {
					t.Errorf("%s is there, and in the old one", d.Digest)
				}
			}
			// Where the old one is, both are all of it.
			status, out, errs := granary(t, "pull", "registry.test/app:v2", "--upstream", "registry.test=oci:"+files+",oci:"+old, "--data-dir", t.TempDir(), "--node", "http://127.0.0.1:1")
			if status != 0 {
				t.Errorf("pull: %d, %s%s", status, out, errs)
			}
		})
	}
}

func TestTheSameImagesMakeTheSameArchive(t *testing.T) {
	l, dir := newLibrary(t), t.TempDir()
	l.everything(true)
	l.tag("v2", l.image("nested")) // which is in the other one too
	var files [2][]byte
	for i, name := range []string{"a.tar", "b.tar"} {
		file := filepath.Join(dir, name)
		l.exported(t, "registry.test/app:v1", "registry.test/app:v2", "oci-archive:"+file, "--referrers")
		p, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		files[i] = p
	}
	if !bytes.Equal(files[0], files[1]) {
		t.Error("they differ")
	}
	var names []string
	r := tar.NewReader(bytes.NewReader(files[0]))
	for {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil || slices.Contains(names, h.Name) {
			t.Fatalf("%v after %v: %v", h, names, err)
		}
		names = append(names, h.Name)
	}
	if !slices.Equal(names[:2], []string{"oci-layout", "index.json"}) {
		t.Errorf("it begins with %v", names[:2])
	}
}

func TestAnArchiveTakesItsPlaceWhenItIsComplete(t *testing.T) {
	l, dir := newLibrary(t), t.TempDir()
	image := l.image("i")
	l.tag("v1", image)
	file := filepath.Join(dir, "out.tar")
	for name, text := range map[string]string{file: "an earlier one", file + ".part": "somebody else's"} {
		if err := os.WriteFile(name, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if status, _, errs := l.export(t, "registry.test/app:v1", "oci-archive:"+file); status != 1 || !strings.Contains(errs, "out.tar.part: it is somebody else's") {
		t.Errorf("over a file of another program: %d, %s", status, errs)
	}
	if err := os.WriteFile(file+".part", []byte("oci-layout\x00 and what came then"), 0o644); err != nil {
		t.Fatal(err)
	}
	wrong := l.blob(layerType, "layer of i")
	l.mu.Lock()
	l.blobs[string(wrong.Digest)] = thing{wrong, []byte("LAYER OF i")}
	l.mu.Unlock()
	if status, out, errs := l.export(t, "registry.test/app:v1", "oci-archive:"+file); status != 1 || out != "" || !strings.Contains(errs, string(wrong.Digest)) {
		t.Errorf("with wrong bytes: %d, %s%s", status, out, errs)
	}
	if p, err := os.ReadFile(file); err != nil || string(p) != "an earlier one" {
		t.Errorf("the file is now %.20q, %v", p, err)
	}
	l.blob(layerType, "layer of i")
	l.exported(t, "registry.test/app:v1", "oci-archive:"+file)
	if !holds(t, unpack(t, file), image.Digest) {
		t.Error("the image is not in it")
	}
	if _, err := os.Stat(file + ".part"); err == nil {
		t.Error("a part of it has stayed")
	}
}

func TestAnExportOfOnePlatform(t *testing.T) {
	l, dir := newLibrary(t), t.TempDir()
	index, manifest, _, blob := l.compatible()
	l.tag("v1", index)
	out, _ := l.exported(t, "registry.test/app:v1", "oci:"+dir, "--platform", "linux/amd64", "--json")
	var result pulled
	if err := json.Unmarshal([]byte(out), &result); err != nil || result.Digest != string(index.Digest) || result.Manifests != 3 || result.Layout != "oci:"+dir {
		t.Errorf("it says %s", out)
	}
	if !holds(t, dir, manifest.Digest) || holds(t, dir, blob.Digest) {
		t.Error("what is of one platform is not there, or what is of the other is")
	}
}

func TestExportsThatCannotBe(t *testing.T) {
	l := newLibrary(t)
	l.tag("v1", l.image("i"))
	index, _, _, _ := l.compatible()
	l.tag("index", index)
	wrongVersion, noLayout := t.TempDir(), t.TempDir()
	if err := os.WriteFile(filepath.Join(wrongVersion, "oci-layout"), []byte(`{"imageLayoutVersion":"9"}`), 0o644); err != nil {
		t.Fatal(err)
	}
	for want, args := range map[string][]string{
		"want images, and last where to write them":        {"registry.test/app:v1"},
		"export to docker:x: want oci:DIR":                 {"registry.test/app:v1", "docker:x"},
		"export to oci:: want oci:DIR":                     {"registry.test/app:v1", "oci:"},
		"export to registry.test/app:v2: want oci:DIR":     {"registry.test/app:v1", "registry.test/app:v2"},
		"--since x: want oci:OLD":                          {"registry.test/app:v1", "oci:" + t.TempDir(), "--since", "x"},
		filepath.Join(noLayout, "oci-layout"):              {"registry.test/app:v1", "oci:" + t.TempDir(), "--since", "oci:" + noLayout},
		`oci-layout: version "9" is not 1.0.0`:             {"registry.test/app:v1", "oci:" + wrongVersion},
		"no such file or directory":                        {"registry.test/app:v1", "oci-archive:" + filepath.Join(noLayout, "none", "out.tar")},
		"registry.test/app:index: no image for linux/x; t": {"registry.test/app:v1", "registry.test/app:index", "oci:" + t.TempDir(), "--platform", "linux/x"},
	} {
		if status, out, errs := l.export(t, args...); status != 1 || !strings.Contains(errs, want) {
			t.Errorf("%q: %d, %s%s; want %s", args, status, out, errs, want)
		}
	}
}

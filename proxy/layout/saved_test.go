package layout_test

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/granary-oci/granary/chunkstore/chunk"
	"github.com/granary-oci/granary/proxy/layout"
)

// An image of two layers, the first of them twice.
const (
	baseLayer = "the base layer"
	topLayer  = "the top layer"
)

var (
	baseID, topID = digest.FromString(baseLayer), digest.FromString(topLayer)
	savedConfig   = configOf(baseID, topID, baseID)
)

// configOf returns the config of an image.
func configOf(diffIDs ...digest.Digest) string {
	p, _ := json.Marshal(diffIDs)
	return `{"architecture":"amd64","os":"linux", "odd": [1e3],"rootfs":{"type":"layers","diff_ids":` + string(p) + `}}`
}

// configName is what Docker and others call a config.
func configName(config string) string { return digest.FromString(config).Encoded() + ".json" }

// savedJSON is manifest.json with one image.
func savedJSON(config, tags string, layers ...string) item {
	p, _ := json.Marshal(layers)
	return file("manifest.json", fmt.Sprintf(`[{"Config":%q,"RepoTags":%s,"Layers":%s}]`, config, tags, p))
}

func packedWith(how, content string) string {
	var b bytes.Buffer
	var w io.WriteCloser = gzip.NewWriter(&b)
	if how == "zstd" {
		w, _ = zstd.NewWriter(&b)
	}
	_, _ = io.WriteString(w, content)
	_ = w.Close()
	return b.String()
}

// hex64 is a name such as Docker gives a layer.
func hex64(s string) string { return digest.FromString("name of " + s).Encoded() }

// savedForms are archives of the image, as programs write them.
func savedForms() map[string][]item {
	const tags = `["app:v1","registry.test/team/app:v2"]`
	base, top := hex64("base"), hex64("top")
	dir := func(name string) item {
		return item{tar.Header{Typeflag: tar.TypeDir, Name: name + "/", Mode: 0o755}, ""}
	}
	hex := func(content string) string { return digest.FromString(content).Encoded() }
	gzipped, zipped := packedWith("gzip", topLayer), packedWith("zstd", topLayer)
	manifest := func(layers ...string) item { return savedJSON(configName(savedConfig), tags, layers...) }
	config := file(configName(savedConfig), savedConfig)
	return map[string][]item{
		"docker before 25": {
			dir(base), file(base+"/VERSION", "1.0"), file(base+"/json", "{}"), file(base+"/layer.tar", baseLayer),
			dir(top), file(top+"/layer.tar", topLayer), dir("again"), link(tar.TypeSymlink, "again/layer.tar", "../"+base+"/layer.tar"),
			config, manifest(base+"/layer.tar", top+"/layer.tar", "again/layer.tar"), file("repositories", "{}"),
		},
		"podman and skopeo": {
			file(hex(baseLayer)+".tar", baseLayer), file(hex(topLayer)+".tar", topLayer), config,
			link(tar.TypeSymlink, base+"/layer.tar", "../"+hex(baseLayer)+".tar"),
			manifest(hex(baseLayer)+".tar", hex(topLayer)+".tar", hex(baseLayer)+".tar"), file("repositories", "{}"),
		},
		"hard links, and links to links": {
			config, manifest("a", "./b", "e"),
			file("a", baseLayer), link(tar.TypeLink, "c", "./a"), link(tar.TypeSymlink, "d", "c"), link(tar.TypeLink, "e", "d"), file("b", topLayer),
		},
		"what comes again later": {
			file("a", "something else"), link(tar.TypeLink, "old", "a"), file("b", topLayer), link(tar.TypeSymlink, "b", "/etc/passwd"),
			file("a", baseLayer), file("b", topLayer), file("manifest.json", "{"), config, manifest("a", "b", "a"),
		},
		"crane": {
			file("sha256:"+hex(savedConfig), savedConfig), file(hex(gzipped)+".tar.gz", gzipped), file("base.tar", baseLayer),
			savedJSON("sha256:"+hex(savedConfig), tags, "base.tar", hex(gzipped)+".tar.gz", "base.tar"),
		},
		"compressed, and nothing says so":         {config, manifest("base/layer.tar", "top/layer.tar", "base/layer.tar"), file("base/layer.tar", baseLayer), file("top/layer.tar", gzipped)},
		"compressed, with the name of what it is": {config, manifest("base", hex(topLayer)+".tar", "base"), file("base", baseLayer), file(hex(topLayer)+".tar", zipped)},
	}
}

// TestSavedArchives are read as layouts: under the names that their tags mean, with manifests of
// what lies in them.
func TestSavedArchives(t *testing.T) {
	var plain []byte // the manifest where no layer is compressed
	for name, items := range savedForms() {
		t.Run(name, func(t *testing.T) {
			r := new(reports)
			files := layout.NewArchive(written(t, tarOf(t, items...)), r.add)
			hub, other := layout.New("docker.io", files, r.add), layout.New("registry.test", files, r.add)
			got, err := hub.Repository("library/app").Manifest(t.Context(), "v1")
			if err != nil {
				t.Fatal(err)
			}
			again, err := other.Repository("team/app").Manifest(t.Context(), "v2")
			if err != nil || again.Digest != got.Digest {
				t.Errorf("by another tag: %s, %v", again.Digest, err)
			}
			if _, err := other.Repository("app").Manifest(t.Context(), "v1"); !errors.Is(err, chunk.ErrNotFound) {
				t.Errorf("a name without a host is docker.io's, not another registry's: %v", err)
			}
			var m ocispec.Manifest
			if err := json.Unmarshal(got.Bytes, &m); err != nil || got.MediaType != ocispec.MediaTypeImageManifest || m.MediaType != got.MediaType || m.Config.MediaType != ocispec.MediaTypeImageConfig || len(m.Layers) != 3 {
				t.Fatalf("%s, %v", got.Bytes, err)
			}
			for i, want := range []string{savedConfig, baseLayer, topLayer, baseLayer} {
				desc := append([]ocispec.Descriptor{m.Config}, m.Layers...)[i]
				p := readBlob(t, files, desc)
				switch desc.MediaType {
				case ocispec.MediaTypeImageLayerGzip:
					want = packedWith("gzip", want)
				case ocispec.MediaTypeImageLayerZstd:
					want = packedWith("zstd", want)
				}
				if string(p) != want || digest.FromString(want) != desc.Digest {
					t.Errorf("%+v is %q", desc, p)
				}
			}
			if strings.Contains(name, "compressed") || name == "crane" {
				if m.Layers[0].MediaType != ocispec.MediaTypeImageLayer || m.Layers[1].MediaType == ocispec.MediaTypeImageLayer {
					t.Errorf("layers are %+v", m.Layers)
				}
				return
			}
			if plain == nil {
				plain = got.Bytes
			}
			if !bytes.Equal(got.Bytes, plain) {
				t.Errorf("the manifest is %s, and in another form %s", got.Bytes, plain)
			}
		})
	}
}

// readBlob reads a blob.
func readBlob(t *testing.T, files layout.Files, desc ocispec.Descriptor) []byte {
	t.Helper()
	m, err := chunk.Grid(desc.Digest, desc.Size)
	if err != nil {
		t.Fatal(err)
	}
	p := make([]byte, desc.Size)
	if _, err := chunk.NewBlob(m, files.Blob(), chunk.BlobConfig{}).ReaderAt(t.Context()).ReadAt(p, 0); err != nil {
		t.Error(err)
	}
	return p
}

// TestSavedArchivesWithoutTags have their images by digest.
func TestSavedArchivesWithoutTags(t *testing.T) {
	for _, tags := range []string{"null", "[]", `["<none>:<none>","UPPER:v1","a@sha256:x"]`} {
		l := inArchive(written(t, tarOf(t, file("c", configOf()), savedJSON("c", tags))), new(reports))
		entries, err := l.Entries(t.Context())
		if err != nil || len(entries) != 1 || entries[0].Tag != "" {
			t.Fatalf("%s: %+v, %v", tags, entries, err)
		}
		if m, err := l.Repository("any").Manifest(t.Context(), string(entries[0].Descriptor.Digest)); err != nil || digest.FromBytes(m.Bytes) != entries[0].Descriptor.Digest {
			t.Errorf("%s: %s, %v", tags, m.Bytes, err)
		}
	}
}

// TestBadSavedArchives: the error names the archive, what in it is wrong, and the digest.
func TestBadSavedArchives(t *testing.T) {
	config, layer := file(configName(savedConfig), savedConfig), file("l", baseLayer)
	one := configOf(baseID)
	oneFile, manifest := file("c", one), savedJSON("c", "[]", "l")
	wrong, _ := strings.CutSuffix(packedWith("gzip", topLayer), "\x00") // it ends with the size
	good := tarOf(t, layer, oneFile, manifest)
	var many []item
	for i := range 20 {
		many = append(many, link(tar.TypeSymlink, fmt.Sprint("link", i), fmt.Sprint("link", i+1)))
	}
	for want, p := range map[string][]byte{
		"manifest.json: unexpected end of JSON":                                           tarOf(t, file("manifest.json", "[{"), layer),
		"manifest.json: manifests is no list":                                             tarOf(t, file("manifest.json", `{"Config":"c"}`), oneFile),
		`manifest.json: "manifest.json" has more than 8388608 bytes`:                      tarOf(t, file("manifest.json", "["+strings.Repeat(" ", 8<<20)+"]")),
		"manifest.json: it names more than 32768 manifests":                               tarOf(t, file("manifest.json", "["+strings.Repeat("{},", 1<<15)+"{}]")),
		`image 0: "" is not in the archive`:                                               tarOf(t, file("manifest.json", "[{}]")),
		`image 0: "c" is not in the archive`:                                              tarOf(t, manifest, layer),
		`image 0: layer ` + string(baseID) + `: "l" is not in the archive`:                tarOf(t, manifest, oneFile),
		`image 0: layer ` + string(baseID) + `: "../l" leads out`:                         tarOf(t, savedJSON("c", "[]", "../l"), oneFile, layer),
		`layer ` + string(baseID) + `: "/l" leads out`:                                    tarOf(t, savedJSON("c", "[]", "/l"), oneFile, layer),
		`image 0: "out" leads out`:                                                        tarOf(t, savedJSON("out", "[]"), link(tar.TypeSymlink, "out", "../../etc/passwd")),
		`image 0: "abs" leads out`:                                                        tarOf(t, savedJSON("abs", "[]"), link(tar.TypeSymlink, "abs", "/etc/passwd")),
		`image 0: "loop" is a link that leads to more than 16 others`:                     tarOf(t, savedJSON("loop", "[]"), link(tar.TypeSymlink, "loop", "loop")),
		`image 0: "link0" is a link that leads to more than 16 others`:                    tarOf(t, append(many, savedJSON("link0", "[]"), file("link20", one))...),
		`image 0: "hard" is not in the archive`:                                           tarOf(t, savedJSON("hard", "[]"), link(tar.TypeLink, "hard", "later"), file("later", one)),
		`has 1 layers, and 3 by its config "` + config.Name + `" (` + digestOf(config):    tarOf(t, savedJSON(config.Name, "[]", "l"), config, layer),
		`it has 2 layers, and 1 by its config "c" (` + digestOf(oneFile):                  tarOf(t, savedJSON("c", "[]", "l", "l"), oneFile, layer),
		`config "c" (` + digestOf(file("c", "[]")) + "): json:":                           tarOf(t, manifest, file("c", "[]"), layer),
		`diff_ids: digest "sha256:short"`:                                                 tarOf(t, savedJSON("c", "[]", "l"), file("c", configOf("sha256:short")), layer),
		`"c" has more than 4393216 bytes`:                                                 tarOf(t, savedJSON("c", "[]"), file("c", strings.Repeat(" ", 5<<20))),
		`/` + config.Name + `: corrupt: the file does not have this digest`:               tarOf(t, savedJSON(config.Name, "[]"), file(config.Name, one)),
		`/l2: corrupt: the file has 2 bytes, and "l" of the same digest 14`:               tarOf(t, savedJSON("c", "[]", "l", "l2"), file("c", configOf(baseID, baseID)), layer, file("l2", "xx")),
		`layer ` + string(baseID) + `: "l" is compressed with xz`:                         tarOf(t, manifest, oneFile, file("l", "\xfd7zXZ\x00...")),
		"chunk " + string(baseID) + "[0+" + fmt.Sprint(len(packedWith("gzip", topLayer))): tarOf(t, manifest, oneFile, file("l", packedWith("gzip", topLayer))),
		"/l: corrupt: decompressed it has digest " + string(topID):                        tarOf(t, manifest, oneFile, file("l", packedWith("zstd", topLayer))),
		"/l: corrupt: unexpected EOF":                                                     tarOf(t, manifest, oneFile, file("l", wrong)),
		"/l: corrupt: gzip: invalid header":                                               tarOf(t, manifest, oneFile, file("l", "\x1f\x8b and nothing else")),
		`: the archive ends within "l"`:                                                   good[:512+5],
		`: the archive cannot be read beyond its first 1 files: unexpected EOF`:           good[:2*512+100],
		"/index.json: the file is missing":                                                good[:2*512],
		`: "../x" leads out of the archive`:                                               tarOf(t, layer, oneFile, manifest, file("../x", "")),
	} {
		name := written(t, p)
		_, err := inArchive(name, new(reports)).Entries(t.Context())
		if err == nil || !strings.Contains(err.Error(), name) || !strings.Contains(err.Error(), want) {
			t.Errorf("%v; want %s", err, want)
		}
		if strings.Contains(want, "corrupt") != chunk.IsCorrupt(err) && !strings.HasPrefix(want, "chunk ") {
			t.Errorf("%v: is corrupt: %v", err, chunk.IsCorrupt(err))
		}
	}
}

func digestOf(i item) string { return string(digest.FromString(i.content)) }

// TestBadLayersOfSavedArchives are named as the archive has them, and by the digest that their
// config gives.
func TestBadLayersOfSavedArchives(t *testing.T) {
	upper := strings.ToUpper(baseLayer)
	name := hex64("l") + "/layer.tar"
	path := written(t, tarOf(t, file("c", configOf(baseID)), savedJSON("c", `["app:v1"]`, name), file(name, upper)))
	files := layout.NewArchive(path, nil)
	l := layout.New("docker.io", files, nil)
	if _, err := l.Repository("library/app").Manifest(t.Context(), "v1"); err != nil {
		t.Fatal(err)
	}
	m, err := chunk.Grid(baseID, int64(len(upper)))
	if err != nil {
		t.Fatal(err)
	}
	_, err = files.Blob().Get(t.Context(), m.At(0))
	if !chunk.IsCorrupt(err) || !strings.Contains(err.Error(), path+"/"+name) || !strings.Contains(err.Error(), string(baseID)) {
		t.Errorf("%v", err)
	}
}

// TestALayoutBesideSavedImages, as Docker writes both since 25, is what counts.
func TestALayoutBesideSavedImages(t *testing.T) {
	for _, others := range [][]item{{file("manifest.json", "{")}, {savedJSON("c", `["app:v1"]`), file("c", configOf())}} {
		items := append(others, file("oci-layout", theMarker), indexOf("88"), blobFile(theManifest))
		if m, err := inArchive(written(t, tarOf(t, items...)), new(reports)).Repository("app").Manifest(t.Context(), "v1"); err != nil || string(m.Bytes) != theManifest {
			t.Errorf("%s, %v", m.Bytes, err)
		}
	}
	if _, err := inArchive(written(t, tarOf(t, file("oci-layout", theMarker), savedJSON("c", "[]"), file("c", configOf()))), new(reports)).Entries(t.Context()); err == nil || !strings.Contains(err.Error(), "index.json: the file is missing") {
		t.Errorf("a layout without an index: %v", err)
	}
}

// TestASavedArchiveThatIsReplaced is read anew, whatever was found out of the earlier one.
func TestASavedArchiveThatIsReplaced(t *testing.T) {
	manifests := make(map[digest.Digest]bool)
	path := written(t, nil)
	l := inArchive(path, new(reports))
	for _, layer := range []string{"one", "two"} {
		p := tarOf(t, file("c", configOf(digest.FromString(layer))), savedJSON("c", "[]", "l"), file("l", packedWith("gzip", layer)))
		if err := os.WriteFile(path, p, 0o644); err != nil {
			t.Fatal(err)
		}
		entries, err := l.Entries(t.Context())
		if err != nil || len(entries) != 1 {
			t.Fatalf("%+v, %v", entries, err)
		}
		manifests[entries[0].Descriptor.Digest] = true
	}
	if len(manifests) != 2 {
		t.Errorf("the manifests are %v", slices.Collect(maps.Keys(manifests)))
	}
}

// TestManyLayersOfSavedArchives are too many together.
func TestManyLayersOfSavedArchives(t *testing.T) {
	const layers = 1 << 13
	image := fmt.Sprintf(`{"Config":"c","Layers":[%s"l"]}`, strings.Repeat(`"l",`, layers-1))
	list := "[" + strings.Repeat(image+",", 16) + image + "]"
	p := tarOf(t, file("manifest.json", list), file("l", baseLayer), file("c", configOf(slices.Repeat([]digest.Digest{baseID}, layers)...)))
	if _, err := inArchive(written(t, p), new(reports)).Entries(t.Context()); err == nil || !strings.Contains(err.Error(), "image 16: with it the images have more than 131072 layers") {
		t.Errorf("%v", err)
	}
}

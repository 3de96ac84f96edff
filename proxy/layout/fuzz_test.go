package layout

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"io"
	"path"
	"slices"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/granary-oci/granary/proxy/ref"
)

// FuzzIndex: whatever index.json is, the tags that come of it are tags, and each leads to
// the first entry that has it.
func FuzzIndex(f *testing.F) {
	for _, name := range []string{"v1", "app:v1", "registry.test/team/app:v1", "a/b@sha256:" + strings.Repeat("0", 64), "", "../x", "[::1]:5000/a:b"} {
		f.Add([]byte(`{"schemaVersion":2,"manifests":[{"mediaType":"a/b","digest":"sha256:`+strings.Repeat("0", 64)+`","size":1,"annotations":{"org.opencontainers.image.ref.name":"`+name+`"}}]}`), "team/app")
	}
	f.Add([]byte(`{"schemaVersion":2,"manifests":[{"annotations":{"io.containerd.image.name":"registry.test/app:v1"}},{"digest":"x"},null]}`), "app")
	f.Add([]byte(`{"schemaVersion":2}`), "")
	f.Fuzz(func(t *testing.T, raw []byte, repository string) {
		const host = "registry.test"
		x, err := parseIndex(raw, host)
		if err != nil {
			return
		}
		repo := ref.Repository{Host: host, Name: repository}
		for _, tag := range x.tags(repo) {
			e := x.find(repo, tag)
			if !ref.IsTag(tag) || e == nil || e.tag != tag || !e.in(repo) {
				t.Fatalf("tag %q leads to %+v", tag, e)
			}
			for _, other := range x.entries {
				if other.in(repo) && other.tag == tag && other.any() == e.any() {
					if other.digest != e.digest {
						t.Fatalf("tag %q leads to %s, and first to %s", tag, e.digest, other.digest)
					}
					break
				}
			}
		}
		for _, e := range x.entries {
			if !e.any() && e.tag != "" && e.in(ref.Repository{Host: "other.test", Name: repository}) {
				t.Fatalf("%+v is in another registry", e)
			}
			if checkDigest(e.digest) == nil && strings.Contains(blobPath(e.digest), "..") {
				t.Fatalf("the path of %q leads out", e.digest)
			}
		}
	})
}

// FuzzMediaType: what a manifest is taken for can be sent as a header.
func FuzzMediaType(f *testing.F) {
	f.Add([]byte(`{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[]}`))
	f.Add([]byte(`{"schemaVersion":2,"config":{},"layers":[]}`))
	f.Add([]byte(`{"mediaType":"a/b\r\nX: y"}`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		if m := mediaTypeOf(raw); len(m) > 255 || strings.ContainsFunc(m, func(c rune) bool { return c < ' ' || c == 0x7f }) {
			t.Fatalf("%q", m)
		}
		if x := (entry{digest: digest.Digest(raw)}); checkDigest(x.digest) == nil && strings.Count(blobPath(x.digest), "/") != 2 {
			t.Fatalf("path %q", blobPath(x.digest))
		}
	})
}

// FuzzArchive: whatever a tar is, each file that is found in it is what who unpacks it gets.
func FuzzArchive(f *testing.F) {
	archive := func(format tar.Format, names ...string) {
		var b bytes.Buffer
		w := tar.NewWriter(&b)
		for _, name := range names {
			_ = w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Size: int64(len(name)), Format: format})
			_, _ = io.WriteString(w, name)
		}
		_ = w.Close()
		f.Add(b.Bytes())
	}
	for _, links := range [][]tar.Header{
		{{Typeflag: tar.TypeSymlink, Name: "a/layer.tar", Linkname: "../b/layer.tar"}, {Typeflag: tar.TypeSymlink, Name: "b/layer.tar", Linkname: "../a/layer.tar"}},
		{{Typeflag: tar.TypeReg, Name: "a"}, {Typeflag: tar.TypeLink, Name: "b", Linkname: "a"}, {Typeflag: tar.TypeLink, Name: "c", Linkname: "none"}, {Typeflag: tar.TypeSymlink, Name: "a", Linkname: "/b"}},
	} {
		var b bytes.Buffer
		w := tar.NewWriter(&b)
		for _, h := range links {
			_ = w.WriteHeader(&h)
		}
		_ = w.Close()
		f.Add(b.Bytes())
	}
	for _, format := range []tar.Format{tar.FormatUSTAR, tar.FormatPAX, tar.FormatGNU} {
		archive(format, "oci-layout", "./index.json", "blobs/sha256/x", "other", "blobs/sha256/x")
		archive(format, "blobs/sha512/"+strings.Repeat("0", 128), "../x")
	}
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, p []byte) {
		found, err := readArchive(bytes.NewReader(p), int64(len(p)))
		if err != nil {
			return
		}
		r := tar.NewReader(bytes.NewReader(p))
		unpacked := make(map[string][]byte)
		for h, err := r.Next(); err == nil; h, err = r.Next() {
			name := path.Clean(h.Name)
			switch h.Typeflag {
			case tar.TypeReg:
				if unpacked[name], err = io.ReadAll(r); err != nil {
					delete(unpacked, name)
				}
			case tar.TypeLink:
				unpacked[name] = unpacked[path.Clean(h.Linkname)]
			}
		}
		for name, at := range found.files {
			if at.base < 0 || at.size < 0 || at.base+at.size > int64(len(p)) || !bytes.Equal(p[at.base:at.base+at.size], unpacked[name]) {
				t.Errorf("%q at %+v is not %q", name, at, unpacked[name])
			}
		}
		for name := range found.links {
			_, _ = found.find(name) // which ends
		}
	})
}

// FuzzSaved: whatever manifest.json and a config are, what is made of them is a layout, of which
// all is within the archive.
func FuzzSaved(f *testing.F) {
	layer := "sha256:" + strings.Repeat("0", 64)
	for _, manifest := range []string{
		`[{"Config":"c.json","RepoTags":["app:v1","registry.test/a/b:c"],"Layers":["l.tar","d/layer.tar"]}]`,
		`[{"Config":"c.json","RepoTags":null,"Layers":["l.tar"]},{"Config":"./c.json","RepoTags":["app"],"Layers":["../l.tar"]}]`,
		`[{"Config":"loop","Layers":[]}]`, `[{}]`, `[]`, `{}`, `[null]`, `[{"Config":{"Config":1}}]`, `[[[[`,
	} {
		for _, config := range []string{`{"rootfs":{"diff_ids":["` + layer + `","` + layer + `"]}}`, `{"rootfs":{"diff_ids":["` + layer + `"]}}`, `{"rootfs":{"diff_ids":["x"]}}`, `{}`, ``} {
			f.Add([]byte(manifest), []byte(config), []byte("layer"))
			f.Add([]byte(manifest), []byte(config), []byte("\x1f\x8b"))
		}
	}
	f.Fuzz(func(t *testing.T, manifest, config, layer []byte) {
		all := slices.Concat(manifest, config, layer)
		at := func(entry string, base, size int) span {
			return span{entry: entry, base: int64(base), size: int64(size)}
		}
		found := &found{
			files: map[string]span{
				"manifest.json": at("manifest.json", 0, len(manifest)), "c.json": at("c.json", len(manifest), len(config)), "l.tar": at("l.tar", len(manifest)+len(config), len(layer)),
			},
			links: map[string]string{"d/layer.tar": "l.tar", "loop": "loop"},
		}
		a := &archive{path: "a.tar"}
		files, err := a.saved(found, bytes.NewReader(all), "")
		if err != nil {
			return
		}
		if err := parseMarker(files["oci-layout"].made); err != nil {
			t.Fatal(err)
		}
		x, err := parseIndex(files["index.json"].made, "registry.test")
		if err != nil {
			t.Fatal(err)
		}
		is := func(d digest.Digest, size int64) span {
			f, ok := files[blobPath(d)]
			if !ok || f.size != size || f.made == nil && (f.base < 0 || f.base+f.size > int64(len(all))) {
				t.Fatalf("%s of %d bytes is %+v", d, size, f)
			}
			return f
		}
		for _, e := range x.entries {
			var m ocispec.Manifest
			if err := json.Unmarshal(is(e.digest, e.size).made, &m); err != nil {
				t.Fatal(err)
			}
			if is(m.Config.Digest, m.Config.Size); m.Config.Digest != digest.FromBytes(config) {
				t.Fatalf("the config is %s", m.Config.Digest)
			}
			for _, l := range m.Layers {
				is(l.Digest, l.Size)
			}
		}
	})
}

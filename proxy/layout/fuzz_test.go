package layout

import (
	"archive/tar"
	"bytes"
	"io"
	"path"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"

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
			if _, ok := found[name]; !ok {
				continue
			}
			if content, err := io.ReadAll(r); err == nil {
				unpacked[name] = content
			}
			for key := range h.PAXRecords {
				if strings.HasPrefix(key, "GNU.sparse.") {
					return // its bytes are not those that are unpacked, and match no digest
				}
			}
		}
		for name, at := range found {
			if at.base < 0 || at.size < 0 || at.base+at.size > int64(len(p)) || !bytes.Equal(p[at.base:at.base+at.size], unpacked[name]) {
				t.Errorf("%q at %+v is not %q", name, at, unpacked[name])
			}
		}
	})
}

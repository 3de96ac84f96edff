package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/url"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sync/errgroup"

	"github.com/granary-oci/granary/toc"
)

// listed is a file as "granary ls --json" prints it.
type listed struct {
	Name    string
	Type    string
	Mode    string
	UID     uint32
	GID     uint32
	Size    int64
	ModTime time.Time
	Links   int
	Inode   uint64
	Link    string
	Major   uint32
	Minor   uint32
	Xattrs  map[string][]byte
	Digest  string
	Layer   digest.Digest
}

// parse reads what "granary ls -R --json" has printed.
func parse(t *testing.T, out []byte) map[string]*found {
	t.Helper()
	all, first := make(map[string]*found), make(map[uint64]string)
	for d := json.NewDecoder(bytes.NewReader(out)); ; {
		var l listed
		if err := d.Decode(&l); err == io.EOF {
			return all
		} else if err != nil {
			t.Fatal(err)
		}
		f := &found{
			Name: l.Name, Type: l.Type, Mode: l.Mode, UID: l.UID, GID: l.GID, Size: l.Size, ModTime: l.ModTime,
			Links: l.Links, Link: l.Link, Major: l.Major, Minor: l.Minor, First: l.Name, digest: l.Digest,
		}
		for k, v := range l.Xattrs {
			if f.Xattrs == nil {
				f.Xattrs = make(map[string]string)
			}
			f.Xattrs[k] = string(v)
		}
		if name, ok := first[l.Inode]; ok {
			f.First = name
		} else {
			first[l.Inode] = l.Name
		}
		if all[f.Name] != nil {
			t.Errorf("%q is listed twice", f.Name)
		}
		all[f.Name] = f
	}
}

// checkListing compares what is listed with what is on the disk. seconds says that
// the format has no shorter times.
func checkListing(t *testing.T, got, want map[string]*found, seconds bool) {
	t.Helper()
	wrong := 0
	for _, name := range slices.Sorted(maps.Keys(merged(got, want))) {
		g, w := got[name], want[name]
		switch {
		case w == nil:
			t.Errorf("%q is listed, and not on the disk", name)
		case g == nil:
			t.Errorf("%q is on the disk, and not listed", name)
		default:
			a, b := *g, *w
			if seconds {
				a.ModTime, b.ModTime = a.ModTime.Truncate(time.Second), b.ModTime.Truncate(time.Second)
			}
			if a.digest == "" {
				a.digest = b.digest // which is compared when it is read
			}
			if !a.ModTime.Equal(b.ModTime) || !sameBut(a, b) {
				t.Errorf("%q is listed as\n %+v, and on the disk\n %+v", name, a, b)
			} else {
				continue
			}
		}
		if wrong++; wrong > 20 {
			t.Fatal("and so on")
		}
	}
}

// sameBut compares all but times.
func sameBut(a, b found) bool {
	a.ModTime, b.ModTime = time.Time{}, time.Time{}
	if b.Size == 0 {
		a.digest, b.digest = "", ""
	}
	return reflect.DeepEqual(a, b)
}

func merged(a, b map[string]*found) map[string]*found {
	all := maps.Clone(a)
	maps.Copy(all, b)
	return all
}

// tree reads the tables of an image's layers from a node, and lays them over each
// other. It returns the layers' digests too, by table.
func (n *node) tree(t *testing.T, repository string, img *image) (*toc.Tree, map[*toc.Layer]digest.Digest) {
	t.Helper()
	var layers []*toc.Layer
	digests := make(map[*toc.Layer]digest.Digest)
	for _, d := range img.layers {
		p, h, err := fetch(t.Context(), n.layer(repository, "toc/"+string(d.Digest), "manifest="+string(img.manifest.Digest)))
		if err != nil {
			t.Fatal(err)
		}
		if got, want := h.Get("Granary-Layer-Format"), formatOf(t, img.name).known; got != want {
			t.Errorf("layer %s is read as %q, want %q", d.Digest, got, want)
		}
		table, err := toc.DecodeJSON(bytes.NewReader(p), d.Size)
		if err != nil {
			t.Fatal(err)
		}
		l := &toc.Layer{TOC: table, Overlayfs: h.Get("Granary-Layer-Whiteouts") == "overlayfs"}
		layers, digests[l] = append(layers, l), d.Digest
	}
	tree, err := toc.Overlay(layers)
	if err != nil {
		t.Fatal(err)
	}
	return tree, digests
}

// checkContents reads files of an image through a node, all that pass keep, a few at
// once, and compares each with that on the disk.
func (n *node) checkContents(t *testing.T, repository string, img *image, keep func(toc.File) bool) (read int) {
	t.Helper()
	tree, digests := n.tree(t, repository, img)
	g, ctx := errgroup.WithContext(t.Context())
	g.SetLimit(6)
	for f := range tree.All() {
		if f.Type != toc.Regular || !keep(f) {
			continue
		}
		read++
		g.Go(func() error { return n.checkContent(ctx, repository, img, f, digests[f.Layer]) })
	}
	if err := g.Wait(); err != nil {
		t.Error(err)
	}
	return read
}

func (n *node) checkContent(ctx context.Context, repository string, img *image, f toc.File, layer digest.Digest) error {
	query := url.Values{"manifest": {string(img.manifest.Digest)}, "path": {f.Source}}
	resp, err := get(ctx, n.layer(repository, "file/"+string(layer), query.Encode()), nil)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	sum := sha256.New()
	size, err := io.Copy(sum, resp.Body)
	want := disk["/"+f.Name]
	switch got := "sha256:" + hex.EncodeToString(sum.Sum(nil)); {
	case err != nil:
		return fmt.Errorf("%q: %w", f.Name, err)
	case resp.StatusCode != http.StatusOK:
		return fmt.Errorf("%q: %s", f.Name, resp.Status)
	case size != want.Size || got != want.digest:
		return fmt.Errorf("%q: %d bytes, %s, came; want %d, %s", f.Name, size, got, want.Size, want.digest)
	}
	return nil
}

// sampled are the files that are read by commands, one for each kind of content.
var sampled = []string{
	"/etc/motd", "/etc/issue", "/usr/bin/env", "/bin/true", "/opt/license", "/opt/third", "/opt/absolute", "/opt/empty", "/opt/zeros", "/opt/sparse-gnu",
	"/opt/sparse-posix", "/" + smallFile, "/" + largeFile, "/opt/Ünïcödé ☃ \"quoted\"", "/opt/" + strings.Repeat("pax", 80), "/opt/" + strings.Repeat("gnu", 80),
}

// follows are those of them that are symlinks, or below one: where they lead.
var follows = map[string]string{"/opt/absolute": "/etc/motd", "/bin/true": "/usr/bin/true"}

// checkCat compares files that a command has written with those on the disk.
func checkCat(t *testing.T, cat func(path string) ([]byte, error)) {
	t.Helper()
	for _, path := range sampled {
		got, err := cat(path)
		want := disk[path]
		if to := follows[path]; to != "" {
			want = disk[to]
		}
		if err != nil {
			t.Error(err)
		} else if d := digest.FromBytes(got); string(d) != want.digest {
			t.Errorf("cat %s: %d bytes, %s; want %d, %s", path, len(got), d, want.Size, want.digest)
		}
	}
}

// Each format is read by a node of its own, which has read nothing before.
func TestImagesAreWhatTheyUnpackTo(t *testing.T) {
	theLab(t)
	for _, f := range formats {
		t.Run(f.name, func(t *testing.T) {
			n := serve(t)
			checkListing(t, parse(t, n.mustRun(t, "ls", "-R", "--json", f.name+":v1")), disk, f.seconds)
			checkCat(t, func(path string) ([]byte, error) { return n.run(t.Context(), "cat", f.name+":v1", path) })
			every := 5 // a mount reads all
			if f.name == "zstd" {
				every = 50 // each takes all that is before it
			}
			i := 0
			read := n.checkContents(t, f.name, shared.images[f.name], func(toc.File) bool { i++; return i%every == 0 })
			t.Logf("%d files listed, %d contents read", len(disk), read)
		})
	}
}

func TestWithoutANode(t *testing.T) {
	l := theLab(t)
	for _, name := range []string{"gzip", "estargz", "zstd-storage"} {
		t.Run(name, func(t *testing.T) {
			out, err := l.runAlone(t.Context(), "ls", "-R", "--json", name+":v1")
			if err != nil {
				t.Fatal(err)
			}
			checkListing(t, parse(t, out), disk, formatOf(t, name).seconds)
			got, err := l.runAlone(t.Context(), "cat", name+":v1", "/"+smallFile)
			if err != nil || string(digest.FromBytes(got)) != disk["/"+smallFile].digest {
				t.Errorf("cat: %d bytes, %v", len(got), err)
			}
		})
	}
}

// formatOf returns the format of a name.
func formatOf(t *testing.T, name string) format {
	t.Helper()
	i := slices.IndexFunc(formats, func(f format) bool { return f.name == name })
	if i < 0 {
		t.Fatalf("there is no format %q", name)
	}
	return formats[i]
}

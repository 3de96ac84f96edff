package main

import (
	"context"
	"encoding/json"
	"io"
	"net/http"
	"net/url"
	"strings"
	"testing"

	"github.com/granary-oci/granary/chunkstore"
	"github.com/granary-oci/granary/proxy"
)

// tellOfMount tells a node of a mount of an image, as granary mount does, until end is called.
func (n *node) tellOfMount(t *testing.T, img *image, id string) (end func()) {
	t.Helper()
	ctx, end := context.WithCancel(t.Context())
	t.Cleanup(end)
	query := url.Values{"id": {id}, "ref": {img.name}, "dir": {"/mnt"}, "prefetch": {""}}
	resp, err := get(ctx, n.layer(img.name, "mount/"+string(img.manifest.Digest), query.Encode()), nil)
	if err != nil {
		t.Fatal(err)
	}
	if resp.StatusCode != http.StatusOK {
		t.Fatalf("mount: %s", resp.Status)
	}
	go func() { _, _ = io.Copy(io.Discard, resp.Body); resp.Body.Close() }()
	return end
}

// read reads a file of an image's last layer for a mount.
func (n *node) read(t *testing.T, img *image, id, name string) {
	t.Helper()
	query := url.Values{"path": {name}, "manifest": {string(img.manifest.Digest)}}
	resp, err := get(t.Context(), n.layer(img.name, "file/"+string(img.top().Digest), query.Encode()), http.Header{proxy.MountHeader: {id}})
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if _, err := io.Copy(io.Discard, resp.Body); err != nil || resp.StatusCode != http.StatusOK {
		t.Fatalf("%s: %s, %v", name, resp.Status, err)
	}
}

// mounted returns what a node says of its mounts.
func (n *node) mounted(t *testing.T) []proxy.MountStatus {
	t.Helper()
	var s struct{ Mounts []proxy.MountStatus }
	if err := json.Unmarshal(n.status(t, "--json"), &s); err != nil {
		t.Fatal(err)
	}
	return s.Mounts
}

// contents returns how many bytes of files' contents a node keeps.
func (n *node) contents(t *testing.T) int64 {
	t.Helper()
	var s struct{ Contents chunkstore.Usage }
	if err := json.Unmarshal(n.status(t, "--json"), &s); err != nil {
		t.Fatal(err)
	}
	return s.Contents.Bytes
}

// status returns what granary status prints.
func (n *node) status(t *testing.T, more ...string) []byte {
	t.Helper()
	out, err := n.lab.run(t.Context(), append([]string{"status", "--node", n.admin}, more...)...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// The second member that runs an image is given what the first one has read, before it
// asks.
func TestAMemberKnowsWhatIsRead(t *testing.T) {
	l := theLab(t)
	a, b := cluster(t)
	img := l.images["estargz"]
	files := []string{smallFile, largeFile}

	end := a.tellOfMount(t, img, "first")
	for _, name := range files {
		a.read(t, img, "first", name)
	}
	if all := a.mounted(t); len(all) != 1 || all[0].Ref != img.name || all[0].Files != len(files) {
		t.Errorf("mounts: %+v", all)
	}
	if out := string(a.status(t)); !strings.Contains(out, img.name+" at /mnt") {
		t.Errorf("status: %s", out)
	}
	end()
	a.eventually(t, "the mount is over", func() bool { return len(a.mounted(t)) == 0 })

	b.mustRun(t, "ls", img.name+":v1")
	moved := l.moved(func() {
		end := b.tellOfMount(t, img, "second")
		defer end()
		// Of some of it the second member is the one that has read it for all.
		b.eventually(t, "the second member gets what the first has read", func() bool {
			return b.contents(t) >= disk["/"+smallFile].Size+disk["/"+largeFile].Size
		})
		for _, name := range files {
			b.read(t, img, "second", name)
		}
	})
	if moved > 0 {
		t.Errorf("%d bytes left the registry, though another member had them", moved)
	}
}

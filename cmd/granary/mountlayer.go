package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime"
	"slices"
	"sync"
	"time"
	"weak"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"

	"github.com/granary-oci/granary/cmd/granary/node"
	"github.com/granary-oci/granary/fuse"
	"github.com/granary-oci/granary/fuse/mounter"
	"github.com/granary-oci/granary/proxy/flight"
	"github.com/granary-oci/granary/proxy/ref"
	"github.com/granary-oci/granary/proxy/upstream"
	"github.com/granary-oci/granary/toc"
)

// How long a mounter waits for the table of a layer: one that has none is read as a whole,
// which takes as long as an ordinary pull would.
const (
	tableFor     = 30 * time.Second
	tableForEach = 4 << 20 // bytes of the layer: another second
	// keepTables is how long a table that came is kept for a mount that may ask for it.
	keepTables = 2 * time.Minute
)

// layerMounts opens layers of images, each to be mounted alone, through the node that has
// attached last. It is safe for concurrent use.
type layerMounts struct {
	log     *slog.Logger
	files   string       // the socket at which the node lends files
	flights flight.Group // tables that are waited for

	mu     sync.Mutex
	from   mounter.Node
	images map[string]*imageMount // of which layers are mounted
	tables map[string]*table      // that came lately
	// shared are tables that mounts have, and may have together: many images have the
	// same layers at their bottom.
	shared map[toc.Digest]weak.Pointer[table]
}

// attached takes note of the node to ask.
func (m *layerMounts) attached(n mounter.Node) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.from = n
	m.log.Info("a node has attached", "url", n.URL)
}

// open opens a layer as a file system for overlayfs, once the tables of contents of the
// layer and of those below it are there. ctx lives for as long as the mount.
func (m *layerMounts) open(ctx context.Context, l mounter.Layer) (*fuse.FileSystem, error) {
	img, err := m.image(ctx, l)
	if err != nil {
		return nil, err
	}
	whole := m.join(ctx, img)
	m.openAhead(img, l)
	img.layers = img.layers[:img.at(l.Digest)+1]
	if err := m.read(ctx, img); err != nil {
		return nil, err
	}
	t, err := img.lower()
	if err != nil {
		return nil, err
	}
	// Files are not passed to the kernel: containers may lay overlays over overlays.
	contents := newLent(m.files, &nodeContents{img: img, connect: whole.connect, mount: whole.id})
	context.AfterFunc(ctx, contents.done)
	f, err := fuse.New(fuse.Config{Tree: t, Source: img.want.Repository.String() + "@" + string(l.Digest), Contents: contents, Log: m.log})
	if err == nil {
		whole.mounts(ctx, f)
	}
	return f, err
}

// repository returns an image's repository through a new connection to the node.
func (m *layerMounts) repository(want ref.Reference, answer time.Duration) (*upstream.Repository, error) {
	m.mu.Lock()
	from := m.from
	m.mu.Unlock()
	if from.URL == "" {
		return nil, errors.New("no node has attached")
	}
	return repositoryAt(reachable(from.URL), node.DataConfig{DockerConfig: from.DockerConfig}, want, answer)
}

// image finds the image of a layer, which its manifest must name.
func (m *layerMounts) image(ctx context.Context, l mounter.Layer) (*image, error) {
	m.mu.Lock()
	host := m.from.DefaultUpstream
	m.mu.Unlock()
	want, err := ref.Parse(l.Image, host)
	if err != nil {
		return nil, err
	}
	want.Tag, want.Digest = "", l.Manifest
	img := &image{want: want}
	if img.from, err = m.repository(want, nodeTimeout); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, tableFor)
	defer cancel()
	if err := img.find(ctx, want, nil); err != nil {
		return nil, fmt.Errorf("%s: %w", want, err)
	}
	if img.top != l.Manifest || img.at(l.Digest) < 0 {
		return nil, fmt.Errorf("%s: it has no layer %s", want, l.Digest)
	}
	return img, nil
}

// at returns which of the layers has a digest, or -1.
func (img *image) at(d digest.Digest) int {
	return slices.IndexFunc(img.layers, func(l ocispec.Descriptor) bool { return l.Digest == d })
}

// openAhead begins to read the tables of layers that will be asked for next.
func (m *layerMounts) openAhead(img *image, l mounter.Layer) {
	var coming []ocispec.Descriptor
	for _, desc := range img.layers {
		if slices.Contains(l.Coming, desc.Digest) {
			coming = append(coming, desc)
		}
	}
	go func() {
		var g errgroup.Group
		g.SetLimit(parallel)
		for _, desc := range coming {
			g.Go(func() error {
				_, err := m.table(context.Background(), img, desc)
				return err // which who asks for the layer will see too
			})
		}
		_ = g.Wait()
	}()
}

// read gets the tables of all layers.
func (m *layerMounts) read(ctx context.Context, img *image) error {
	img.tables = make([]*table, len(img.layers))
	g, ctx := errgroup.WithContext(ctx)
	for i, l := range img.layers {
		g.Go(func() (err error) {
			img.tables[i], err = m.table(ctx, img, l)
			return err
		})
	}
	return g.Wait()
}

// table returns a layer's table: one that came lately, or is on its way for somebody else.
func (m *layerMounts) table(ctx context.Context, img *image, l ocispec.Descriptor) (*table, error) {
	key := img.want.String() + " " + string(l.Digest)
	m.mu.Lock()
	t := m.tables[key]
	m.mu.Unlock()
	if t != nil {
		return t, nil
	}
	limit := tableFor + time.Duration(l.Size/tableForEach)*time.Second
	got, err := m.flights.Do(ctx, key, limit, func(ctx context.Context) (any, error) {
		t, err := img.table(ctx, l)
		if err == nil {
			t = m.keep(key, t)
		}
		return t, err
	})
	if err != nil {
		return nil, fmt.Errorf("%s: layer %s: %w", img.want, l.Digest, err)
	}
	return got.(*table), nil
}

// keep keeps a table for a while, and returns it, or an equal one that is there.
func (m *layerMounts) keep(key string, t *table) *table {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.tables == nil {
		m.tables, m.shared = make(map[string]*table), make(map[toc.Digest]weak.Pointer[table])
	}
	if same := m.shared[t.sum].Value(); same != nil {
		t = same
	} else {
		m.shared[t.sum] = weak.Make(t)
		runtime.AddCleanup(t, m.unshare, t.sum)
	}
	m.tables[key] = t
	time.AfterFunc(keepTables, func() {
		m.mu.Lock()
		defer m.mu.Unlock()
		delete(m.tables, key)
	})
	return t
}

// unshare forgets a table that no mount has any more.
func (m *layerMounts) unshare(sum toc.Digest) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.shared[sum].Value() == nil { // another one may have come meanwhile
		delete(m.shared, sum)
	}
}

// lower returns what overlayfs is to see of the last layer.
func (img *image) lower() (*toc.Tree, error) {
	var layers []*toc.Layer
	for _, t := range img.tables {
		layers = append(layers, t.Layer)
	}
	trees, err := toc.Lowers(layers)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", img.want, err)
	}
	t := trees[len(trees)-1]
	if root, _ := t.Lookup(""); len(trees) > 1 && root.Xattrs["trusted.overlay.opaque"] == "y" {
		return nil, fmt.Errorf("%s: the layer removes all that is below, which overlayfs asks no root about", img.want)
	}
	return t, nil
}

package main

import (
	"context"
	"sync"

	"github.com/granary-oci/granary/fuse"
	"github.com/granary-oci/granary/proxy/upstream"
)

// fetchAllAt is the share of an image's content, in percent, from which on a snapshotter
// has the node fetch all of it.
const fetchAllAt = 30

// imageMount is what the node knows of an image of which layers are mounted, each alone:
// it is one mount for the node, which fetches ahead for it what earlier runs of the image
// have read. It lives for as long as any of the layers is mounted.
type imageMount struct {
	*session
	end    context.CancelFunc
	joined int // layers; guarded by layerMounts.mu

	open   sync.Mutex // guards layers
	layers map[*fuse.FileSystem]bool
}

// join adds a layer that is about to be mounted to the mount of its image, for as long as
// ctx lives.
func (m *layerMounts) join(ctx context.Context, img *image) *imageMount {
	key := img.want.String()
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.images == nil {
		m.images = make(map[string]*imageMount)
	}
	i := m.images[key]
	if i == nil {
		i = m.newImage(img)
		m.images[key] = i
	}
	i.joined++
	context.AfterFunc(ctx, func() {
		m.mu.Lock()
		defer m.mu.Unlock()
		if i.joined--; i.joined == 0 {
			delete(m.images, key)
			i.end()
		}
	})
	return i
}

// newImage tells the node of an image.
func (m *layerMounts) newImage(img *image) *imageMount {
	whole := &image{want: img.want, top: img.top, layers: img.layers}
	i := &imageMount{layers: make(map[*fuse.FileSystem]bool)}
	i.session = newSession(whole, "containerd", func(context.Context) (*upstream.Repository, error) { return m.repository(img.want, 0) })
	i.prefetch = true
	var ctx context.Context
	ctx, i.end = context.WithCancel(context.Background())
	go i.run(ctx)
	go i.watch(ctx, i.usage, fetchAllAt)
	return i
}

// mounts adds a layer's file system, for as long as ctx lives.
func (i *imageMount) mounts(ctx context.Context, f *fuse.FileSystem) {
	i.open.Lock()
	defer i.open.Unlock()
	i.layers[f] = true
	context.AfterFunc(ctx, func() {
		i.open.Lock()
		defer i.open.Unlock()
		delete(i.layers, f)
	})
}

// usage returns what programs have read of all layers.
func (i *imageMount) usage() (sum fuse.Usage) {
	i.open.Lock()
	defer i.open.Unlock()
	for f := range i.layers {
		u := f.Usage()
		sum.Read += u.Read
		sum.Fetched += u.Fetched
		sum.Content += u.Content
	}
	return sum
}

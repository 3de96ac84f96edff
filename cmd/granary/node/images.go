package node

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/granary-oci/granary/chunkstore/chunk"
	"github.com/granary-oci/granary/proxy"
	"github.com/granary-oci/granary/proxy/ref"
	"github.com/granary-oci/granary/tracker"
)

const (
	imagesFor = 5 * time.Second // what takes which part of the store is not looked up anew
	maxImages = 1000            // that are told, those first that take most
)

// Images is what takes which part of the store.
type Images struct {
	At     time.Time       `json:"at"`    // it was so
	Count  int             `json:"count"` // of all images, more of which there may be than are listed
	Images []proxy.Holding `json:"images"`
	// Accounts are what was asked for of images, what moved and what was saved, also of those that are not here any more:
	// of the thousand that were used last.
	Accounts []ImageAccount `json:"accounts"`
}

// images remembers for a while what takes which part of the store: to find out takes a look
// through the catalog.
type images struct {
	mu    sync.Mutex // held while it is found out, for others to wait
	known Images
}

// Images returns what takes which part of the store, as it was a few seconds ago.
func (n *Node) Images(ctx context.Context) Images {
	n.images.mu.Lock()
	defer n.images.mu.Unlock()
	if time.Since(n.images.known.At) > imagesFor {
		all := n.registry.Holdings(ctx)
		n.images.known = Images{time.Now(), len(all), append([]proxy.Holding{}, all[:min(len(all), maxImages)]...), n.ledger.imageSums(maxAccounts)}
	}
	return n.images.known
}

// EvictRequest says which image is to leave the store. It is what /api/v1/evict takes.
type EvictRequest struct {
	Ref      string `json:"ref"`
	AllNodes bool   `json:"allNodes,omitempty"` // of all members, too
	// Imported lets an image go that was imported, which may be had nowhere else.
	Imported bool `json:"imported,omitempty"`
}

// Evicted is what came of an [EvictRequest].
type Evicted struct {
	Freed   int64    `json:"freed"`            // bytes
	Kept    int64    `json:"kept"`             // bytes that stayed, for somebody reads them
	Members int      `json:"members"`          // others that did the same
	Failed  []string `json:"failed,omitempty"` // others that did not, and why
}

// Evict removes from the store what belongs to an image and to no other.
func (n *Node) Evict(ctx context.Context, q EvictRequest) (Evicted, error) {
	done, err := n.evictHere(ctx, q)
	if err != nil || !q.AllNodes || n.cluster == nil {
		return done, err
	}
	var mu sync.Mutex
	told, err := n.cluster.client.Each(n.cluster.client.Others(nil), func(m tracker.Peer) error {
		var there Evicted
		err := n.pass(ctx, m.ID, orderEvict, q, &there)
		mu.Lock()
		defer mu.Unlock()
		done.Freed, done.Kept = done.Freed+there.Freed, done.Kept+there.Kept
		return err
	})
	done.Members, done.Failed = told, lines(err)
	return done, nil
}

func (n *Node) evictHere(ctx context.Context, q EvictRequest) (done Evicted, err error) {
	if err := n.keeps(); err != nil {
		return done, err
	}
	want, err := ref.Parse(q.Ref, n.cfg.DefaultUpstream)
	if err != nil {
		return done, err
	}
	n.images.mu.Lock() // one look through the catalog at a time
	defer n.images.mu.Unlock()
	own, h, err := n.registry.Evictable(ctx, want, q.Imported)
	if errors.Is(err, chunk.ErrNotFound) {
		return done, nil // as on members that never had it
	}
	if err != nil {
		return done, err
	}
	if h.Imported && !q.Imported {
		return done, fmt.Errorf("%s was imported, and may be had nowhere else: say that it is to go all the same", want)
	}
	n.images.known = Images{}
	gone := make(map[digest.Digest]bool)
	for _, d := range own {
		gone[d] = true
	}
	n.store.Memory.Drop(func(r chunk.Ref) bool { return gone[r.Blob] })
	done.Freed = n.store.Disk.Evict(own...)
	for _, d := range own {
		if info, err := n.store.Disk.Stat(d); err == nil {
			done.Kept += info.Stored
		}
	}
	for _, tag := range h.Tags {
		if _, err := n.registry.Invalidate(want.Repository, tag); err != nil {
			return done, err
		}
	}
	n.log.Info("evicted an image", "ref", want.String(), "freed", done.Freed, "kept", done.Kept)
	return done, nil
}

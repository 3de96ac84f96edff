package virtual

import (
	"cmp"
	"slices"
	"time"

	"github.com/granary-oci/granary/p2p/decide"
	"github.com/granary-oci/granary/tracker"
)

// report prints what a pull has cost.
func (c *cluster) report(name string) {
	c.t.Helper()
	up := c.uploads()
	took := c.times()
	bound := time.Duration(float64(c.img.size) / float64(c.links.registry) * float64(time.Second))
	elsewhere := int64(0)
	for _, n := range c.nodes {
		elsewhere += n.elsewhere.Load()
	}
	c.t.Logf("%s: %d nodes, %d MiB", name, len(c.nodes), c.img.size/mib)
	c.t.Logf("  registry %.3f copies, requests %d of %d stripes", c.copies(c.sent()), c.registry.count(), c.img.stripes(len(c.nodes)))
	c.t.Logf("  median %v, last %v, bound %v: %.2f times", round(took[len(took)/2]), round(took[len(took)-1]), round(bound), float64(took[len(took)-1])/float64(bound))
	c.t.Logf("  upload %.2f copies in the median, %.2f at most; owned %.3f at most; elsewhere %d", c.copies(up[len(up)/2]), c.copies(up[len(up)-1]), c.copies(c.owned(c.largestOwner())), elsewhere)
}

func round(d time.Duration) time.Duration { return d.Round(time.Millisecond) }

// copies returns bytes in copies of the image.
func (c *cluster) copies(n int64) float64 { return float64(n) / float64(c.img.size) }

// times returns what the nodes that have the image took for it, the shortest first.
func (c *cluster) times() (all []time.Duration) {
	for _, n := range c.nodes {
		if n.took > 0 {
			all = append(all, n.took)
		}
	}
	slices.Sort(all)
	return append(all, 0)[:max(len(all), 1)]
}

// owned returns how many bytes of the image a node owns.
func (c *cluster) owned(n *node) (owned int64) {
	view := n.members.View()
	for _, b := range c.img.blobs {
		size := decide.StripeSize(b.Size(), view.Near())
		for off := int64(0); off < b.Size(); off += size {
			owners := view.Owners(tracker.StripeKey(b.Blob(), int(off/size)), 1)
			if len(owners) > 0 && owners[0].ID == n.peer.ID {
				owned += min(size, b.Size()-off)
			}
		}
	}
	return owned
}

// largestOwner returns the node that owns most of the image.
func (c *cluster) largestOwner() *node {
	return slices.MaxFunc(c.nodes, func(a, b *node) int { return cmp.Compare(c.owned(a), c.owned(b)) })
}

// mayHaveSent fails the test if more copies of the image have left the registry.
func (c *cluster) mayHaveSent(most float64) {
	c.t.Helper()
	if got := c.copies(c.sent()); got > most {
		c.t.Errorf("%.3f copies of the image have left the registry, want %.2f at most", got, most)
	}
}

// mayHaveUploaded fails the test if a node has uploaded more copies of the image.
func (c *cluster) mayHaveUploaded(most float64) {
	c.t.Helper()
	up := c.uploads()
	if got := c.copies(up[len(up)-1]); got > most {
		c.t.Errorf("a node has uploaded %.2f copies of the image, want %.2f at most", got, most)
	}
}

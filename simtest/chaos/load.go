package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/granary-oci/granary/simtest/netns"
)

const (
	clients   = 8
	newImages = 5 * time.Second // between a new one and the next
)

// load has clients pull from all nodes until ctx ends, and new images appear. It returns when they are through.
func (l *lab) load(ctx context.Context, first int) (next int) {
	var all sync.WaitGroup
	for i := range clients {
		c := &client{lab: l, rng: rand.New(rand.NewPCG(l.seed, uint64(1000+i)))}
		all.Go(func() { c.run(ctx) })
	}
	for next = first; netns.Pause(ctx, newImages) == nil; next++ {
		l.push(next)
	}
	all.Wait()
	return next
}

func (l *lab) push(number int) {
	img := makeImage(l.seed, number)
	img.made = l.history.now()
	l.registry.push(img)
	l.images.add(img)
}

// client is one of those that pull, one request after the other.
type client struct {
	lab *lab
	rng *rand.Rand
}

// run makes requests until ctx ends; what has begun then is finished.
func (c *client) run(ctx context.Context) {
	for netns.Pause(ctx, time.Duration(50+c.rng.IntN(100))*time.Millisecond) == nil {
		n, img := c.lab.nodes[c.rng.IntN(c.lab.count)], c.lab.images.pick(c.rng)
		ctx := context.WithoutCancel(ctx)
		switch k := c.rng.IntN(100); {
		case k < 35:
			c.pull(ctx, n, img)
		case k < 50:
			c.manifest(ctx, n, img)
		case k < 65:
			c.blob(ctx, n, img, img.blobs[c.rng.IntN(len(img.blobs))])
		case k < 85:
			c.part(ctx, n, img, img.blobs[c.rng.IntN(len(img.blobs))])
		default:
			c.steal(ctx, n, img)
		}
	}
}

// pull gets all of an image, three blobs at a time.
func (c *client) pull(ctx context.Context, n *node, img *image) {
	if !c.manifest(ctx, n, img) {
		return
	}
	var all sync.WaitGroup
	slots := make(chan struct{}, 3)
	for _, b := range img.blobs {
		slots <- struct{}{}
		all.Go(func() { c.blob(ctx, n, img, b); <-slots })
	}
	all.Wait()
}

func (c *client) manifest(ctx context.Context, n *node, img *image) bool {
	name := tag
	if c.rng.IntN(3) == 0 {
		name = string(img.manifest.digest)
	}
	return c.read(ctx, n, img, "manifests", name, img.manifest, nil)
}

func (c *client) blob(ctx context.Context, n *node, img *image, b thing) bool {
	return c.read(ctx, n, img, "blobs", string(b.digest), b, nil)
}

// part gets a part of a blob, or what is left of it.
func (c *client) part(ctx context.Context, n *node, img *image, b thing) bool {
	from := c.rng.IntN(len(b.bytes))
	x := extent{from, from + 1 + c.rng.IntN(min(len(b.bytes)-from, 200e3))}
	if c.rng.IntN(4) == 0 {
		x.to = len(b.bytes)
	}
	return c.read(ctx, n, img, "blobs", string(b.digest), b, &x)
}

// read gets something that the client may have, and judges what comes.
func (c *client) read(ctx context.Context, n *node, img *image, kind, name string, t thing, x *extent) bool {
	l := c.lab
	r := request{node: n.index, repository: img.name, private: img.private(), wants: []digest.Digest{t.digest}, made: img.made}
	switch {
	case kind == "blobs":
		r.wants = append(r.wants, img.manifest.digest) // that it belongs to the repository is known with the manifest
	case name == tag:
		r.wants = append(r.wants, tag) // what that stands for nobody knows by the manifest
	}
	what := fmt.Sprintf("%s %s of %s", kind, name, img.name)
	if x != nil {
		what = fmt.Sprintf("bytes %d to %d of ", x.from, x.to-1) + what
		l.history.part(held{n.index, img.name, t.digest}, *x, len(t.bytes))
	}
	tried, err := n.fetch(ctx, &r, img.path(kind, name), img.right, t.bytes, x)
	if t.common {
		r.made = 0
	}
	return l.judge(n, r, what, tried, err, x == nil)
}

// judge counts a request, and fails the run if it went as it may not.
func (l *lab) judge(n *node, r request, what string, tried int, err error, whole bool) bool {
	var wrong *wrongError
	switch {
	case err == nil:
		if whole && n.room == wide {
			l.history.hold(held{n.index, r.repository, r.wants[0]}, r.made, r.from)
		}
		if r.wants[len(r.wants)-1] == tag {
			l.history.hold(held{n.index, r.repository, tag}, r.made, r.from)
		}
		if tried > 1 {
			l.count1("right in more than one try")
		} else {
			l.count1("right at once")
		}
		return true
	case errors.As(err, &wrong):
		l.fail(n, r.from, r.to, "node %d: %s: %v", n.index+1, what, err)
		l.count1("wrong")
		return false
	}
	why := l.history.excuse(r)
	if why == "" {
		l.count1("errors")
		l.fail(n, r.from, r.to, "node %d: %s: %d tries, %.1f s: %v", n.index+1, what, tried, (r.to - r.from).Seconds(), err)
	} else {
		l.count1("excused: " + why)
	}
	return false
}

// steal asks for what the client may not have: without a credential, with a wrong one, with that of another repository, or under the name of
// a public one. Whatever is wrong with the registry or the node, no byte of it comes.
func (c *client) steal(ctx context.Context, n *node, img *image) {
	all := c.lab.images.all()
	start := c.rng.IntN(len(all))
	for i := 0; !img.private() && i < len(all); i++ {
		img = all[(start+i)%len(all)]
	}
	var public, another *image
	for _, other := range all {
		switch {
		case other == img:
		case other.private():
			another = other
		default:
			public = other
		}
	}
	if !img.private() || another == nil || public == nil {
		return
	}
	b := img.blobs[c.rng.IntN(len(img.blobs))]
	path, right := img.path("blobs", string(b.digest)), ""
	switch c.rng.IntN(6) {
	case 0:
		path = img.path("manifests", tag)
	case 1:
		path = img.path("manifests", string(img.manifest.digest))
	case 2:
		right = another.right
	case 3:
		right = "Basic d3Jvbmc6d3Jvbmc="
	case 4:
		path = public.path("blobs", string(b.digest))
	}
	method := http.MethodGet
	if c.rng.IntN(4) == 0 {
		method = http.MethodHead
	}
	ctx, cancel := context.WithTimeout(ctx, stalled)
	defer cancel()
	from := c.lab.history.now()
	resp, err := n.ask(ctx, method, path, right, http.Header{})
	if err != nil {
		c.lab.count1("refused: no answer")
		return
	}
	defer resp.Body.Close()
	if resp.StatusCode/100 == 2 {
		c.lab.count1("stolen")
		c.lab.fail(n, from, c.lab.history.now(), "node %d: %s %s of the private %s was answered %d to a client with %q", n.index+1, method, path, img.name, resp.StatusCode, right)
		return
	}
	c.lab.count1(fmt.Sprintf("refused: %d", resp.StatusCode))
}

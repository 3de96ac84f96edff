package main

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"

	"github.com/granary-oci/granary/cmd/granary/node"
	"github.com/granary-oci/granary/proxy"
	"github.com/granary-oci/granary/proxy/graph"
	"github.com/granary-oci/granary/proxy/ref"
	"github.com/granary-oci/granary/proxy/upstream"
	"github.com/granary-oci/granary/toc"
)

// imageFlags are those of commands that look into an image.
type imageFlags struct {
	node.DataConfig `embed:""`
	nodeFlag        `embed:""`

	Platform string `name:"platform" default:"${platform}" placeholder:"OS/ARCH[/VARIANT]" help:"Which image of an index to look into."`
	Layer    string `name:"layer" placeholder:"N|DIGEST" help:"Look into one layer alone: the Nth from the bottom, or that of a digest."`
	Ref      string `arg:"" name:"ref" help:"Image, as in alpine:3 or ghcr.io/org/app@sha256:…; or a layer by its digest."`
}

// Limits of an image that is looked into.
const (
	maxNesting = 8    // of indexes
	maxLayers  = 4096 // of one image
)

// image is an image that is looked into through a node.
type image struct {
	want   ref.Reference
	url    string // of the node's registry face
	from   *upstream.Repository
	top    digest.Digest // the manifest that names the layers; "" for a layer alone
	layers []ocispec.Descriptor
	part   bool // layers is one of several, or may be
	tables []*table
}

// table is what a node says of a layer.
type table struct {
	*toc.Layer
	desc     ocispec.Descriptor
	format   string
	verified string
	sum      toc.Digest // of all that the node said
}

// open finds the image and its layers, and reads their tables. done is to be called
// after.
func (c *imageFlags) open(e *env) (img *image, done func(), err error) {
	img, done, err = c.locate(e)
	if err != nil {
		return nil, nil, err
	}
	slow := time.AfterFunc(3*time.Second, func() {
		fmt.Fprintln(e.stderr, "waiting for tables of contents; a layer that has none is read and indexed first")
	})
	defer slow.Stop()
	if err := img.read(e.ctx); err != nil {
		done()
		return nil, nil, fmt.Errorf("%s: %w", img.want, err)
	}
	return img, done, nil
}

// look opens the image, and has do look into its tree.
func (c *imageFlags) look(e *env, do func(*image, *toc.Tree) error) error {
	img, done, err := c.open(e)
	if err != nil {
		return err
	}
	defer done()
	t, err := img.tree()
	if err != nil {
		return fmt.Errorf("%s: %w", c.Ref, err)
	}
	return do(img, t)
}

// locate finds the image and its layers. done is to be called after.
func (c *imageFlags) locate(e *env) (img *image, done func(), err error) {
	want, err := ref.Parse(c.Ref, c.DefaultUpstream)
	if err != nil {
		return nil, nil, err
	}
	platform, err := parsePlatform(c.Platform)
	if err != nil {
		return nil, nil, err
	}
	img = &image{want: want}
	if img.url, done, err = registryFace(e, c.DataConfig, c.nodeFlag); err != nil {
		return nil, nil, err
	}
	img.from, err = repositoryAt(img.url, c.DataConfig, want, nodeTimeout)
	if err == nil {
		err = img.find(e.ctx, want, platform)
	}
	if err == nil && c.Layer != "" {
		err = img.only(c.Layer)
	}
	if err != nil {
		done()
		return nil, nil, fmt.Errorf("%s: %w", want, err)
	}
	return img, done, nil
}

// find resolves what a reference names: an image, or a layer.
func (img *image) find(ctx context.Context, want ref.Reference, platform *ocispec.Platform) error {
	name := manifestName(want)
	for range maxNesting {
		m, err := img.from.Manifest(ctx, name)
		if err != nil {
			if size, serr := img.statLayer(ctx, want.Digest); serr == nil {
				img.layers, img.part = []ocispec.Descriptor{{Digest: want.Digest, Size: size}}, true
				return nil
			}
			return err
		}
		var content struct {
			Manifests []ocispec.Descriptor `json:"manifests"`
			Layers    []ocispec.Descriptor `json:"layers"`
		}
		if err := json.Unmarshal(m.Bytes, &content); err != nil {
			return fmt.Errorf("manifest %s: %w", m.Digest, err)
		}
		if len(content.Manifests) == 0 {
			img.top, img.layers = m.Digest, content.Layers
			return img.checkLayers()
		}
		chosen, err := graph.Choose(content.Manifests, platform)
		if err != nil {
			return err
		}
		name = string(content.Manifests[chosen[0]].Digest)
	}
	return fmt.Errorf("indexes are nested more than %d deep", maxNesting)
}

func (img *image) statLayer(ctx context.Context, d digest.Digest) (int64, error) {
	if d == "" {
		return 0, toc.ErrNoFile
	}
	return img.from.Stat(ctx, d)
}

func (img *image) checkLayers() error {
	if len(img.layers) == 0 || len(img.layers) > maxLayers {
		return fmt.Errorf("manifest %s has %d layers", img.top, len(img.layers))
	}
	for _, l := range img.layers {
		if err := l.Digest.Validate(); err != nil || l.Size < 0 {
			return fmt.Errorf("layer %q of %d bytes: %w", string(l.Digest), l.Size, err)
		}
	}
	return nil
}

// only leaves one layer.
func (img *image) only(which string) error {
	i := slices.IndexFunc(img.layers, func(l ocispec.Descriptor) bool { return string(l.Digest) == which })
	if n, err := strconv.Atoi(which); err == nil {
		i = n - 1
	}
	if i < 0 || i >= len(img.layers) {
		return fmt.Errorf("there is no layer %s; there are %d", which, len(img.layers))
	}
	img.part = len(img.layers) > 1
	img.layers = img.layers[i : i+1]
	return nil
}

// read gets the tables of all layers.
func (img *image) read(ctx context.Context) error {
	img.tables = make([]*table, len(img.layers))
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(parallel)
	for i, l := range img.layers {
		g.Go(func() (err error) {
			img.tables[i], err = img.table(ctx, l)
			return err
		})
	}
	return g.Wait()
}

// query are the parameters that tell the node whose word on a layer holds.
func (img *image) query() url.Values {
	if img.top == "" {
		return url.Values{}
	}
	return url.Values{"manifest": {string(img.top)}}
}

// maxBlank is how much may follow a table, in bytes.
const maxBlank = 1 << 10

func (img *image) table(ctx context.Context, l ocispec.Descriptor) (*table, error) {
	resp, err := img.from.Get(ctx, "_granary/toc/"+string(l.Digest), img.query(), http.Header{"Accept": {proxy.TOCType}})
	if err != nil {
		return nil, explained(err)
	}
	defer resp.Body.Close()
	sum, h := sha256.New(), resp.Header
	body := io.TeeReader(resp.Body, sum)
	t, err := toc.DecodeJSON(body, l.Size)
	if err == nil {
		_, err = io.Copy(io.Discard, io.LimitReader(body, maxBlank))
	}
	if err != nil {
		return nil, fmt.Errorf("layer %s: %w", l.Digest, err)
	}
	fmt.Fprintln(sum, l.Digest, h.Get(proxy.WhiteoutsHeader))
	return &table{
		Layer: &toc.Layer{TOC: t, Overlayfs: h.Get(proxy.WhiteoutsHeader) == "overlayfs"},
		desc:  l, format: h.Get(proxy.FormatHeader), verified: h.Get(proxy.VerifiedHeader), sum: toc.Digest(sum.Sum(nil)),
	}, nil
}

// tree lays the layers over each other.
func (img *image) tree() (*toc.Tree, error) {
	if img.part {
		return toc.Alone(img.tables[0].Layer)
	}
	var layers []*toc.Layer
	for _, t := range img.tables {
		layers = append(layers, t.Layer)
	}
	return toc.Overlay(layers)
}

// layerOf returns the digest of the layer that has a file.
func (img *image) layerOf(f toc.File) digest.Digest {
	i := slices.IndexFunc(img.tables, func(t *table) bool { return t.Layer == f.Layer })
	return img.tables[i].desc.Digest
}

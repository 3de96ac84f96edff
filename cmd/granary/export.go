package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/granary-oci/granary/cmd/granary/node"
	"github.com/granary-oci/granary/proxy/graph"
	"github.com/granary-oci/granary/proxy/ref"
)

// exportCmd writes images as files, to be carried where no registry is.
type exportCmd struct {
	node.DataConfig `embed:""`
	nodeFlag        `embed:""`

	// Platform is for all unless it is given: this machine's says nothing of the one that an
	// export is carried to.
	Platform  string   `name:"platform" default:"all" placeholder:"OS/ARCH[/VARIANT]" help:"Which image of an index to export; 'all' for each of them."`
	Referrers bool     `name:"referrers" help:"Export what refers to the images too: signatures, attestations, SBOMs."`
	Since     string   `name:"since" placeholder:"oci:OLD" help:"Leave out the blobs that this OCI image layout has."`
	JSON      bool     `name:"json" help:"Print a line of JSON for each image."`
	Args      []string `arg:"" name:"ref-and-target" sep:"none" help:"Images, as in alpine:3, and last where to write them: oci:DIR for an OCI image layout, oci-archive:FILE for one in a tar file."`
}

// The kinds of places that images are written to and read from.
const (
	layoutKind  = "oci"
	archiveKind = "oci-archive"
)

// export is an export under way.
type export struct {
	images  []*puller
	archive string     // the file to write, "" for a layout in a directory
	out     *layoutDir // nil for an archive
}

func (c *exportCmd) Run(e *env) (err error) {
	x, err := c.plan(e)
	if err != nil {
		return err
	}
	defer func() { x.out.close(err == nil) }()
	url, done, err := registryFace(e, c.DataConfig, c.nodeFlag)
	if err != nil {
		return err
	}
	defer done()
	for _, p := range x.images {
		if p.from, err = repositoryAt(url, c.DataConfig, p.want, nodeTimeout); err != nil {
			return err
		}
	}
	defer x.images[0].progress.finish() // all have the same
	return c.run(e, x)
}

// run exports what is there of all images. The error tells of each that is not complete: a
// layout then has the others, and an archive is not written.
func (c *exportCmd) run(e *env, x *export) error {
	var failed []error
	for _, p := range x.images {
		err := x.bring(e, p)
		if err != nil {
			failed = append(failed, fmt.Errorf("export %w", err))
		}
		if e.ctx.Err() != nil {
			break
		}
		if err == nil && x.archive == "" || c.JSON && p.incomplete() {
			if err := c.print(e, p); err != nil {
				return err
			}
		}
	}
	if x.archive == "" || failed != nil {
		return errors.Join(failed...)
	}
	if err := writeArchive(e.ctx, x.archive, x.images); err != nil {
		return fmt.Errorf("export to %s: %w", x.archive, err)
	}
	for _, p := range x.images {
		if err := c.print(e, p); err != nil {
			return err
		}
	}
	return nil
}

// plan returns what the command line says is to be exported.
func (c *exportCmd) plan(e *env) (*export, error) {
	if len(c.Args) < 2 {
		return nil, errors.New("export: want images, and last where to write them")
	}
	platform, err := parsePlatform(c.Platform)
	if err != nil {
		return nil, err
	}
	like := puller{platform: platform, referrers: c.Referrers, progress: newProgress(e.stderr)}
	if c.Since != "" {
		if like.since, err = c.older(); err != nil {
			return nil, err
		}
	}
	x := &export{}
	refs, target := c.Args[:len(c.Args)-1], c.Args[len(c.Args)-1]
	for _, r := range refs {
		p := like
		if p.want, err = ref.Parse(r, c.DefaultUpstream); err != nil {
			return nil, err
		}
		x.images = append(x.images, &p)
	}
	return x, x.to(target)
}

// older returns the layout that the export is to be added to.
func (c *exportCmd) older() (*layoutDir, error) {
	dir, ok := strings.CutPrefix(c.Since, layoutKind+":")
	if !ok || dir == "" {
		return nil, fmt.Errorf("--since %s: want oci:OLD", c.Since)
	}
	return findLayout(dir)
}

// to sets where the export goes.
func (x *export) to(target string) error {
	kind, path, _ := strings.Cut(target, ":")
	switch {
	case path == "" || kind != layoutKind && kind != archiveKind:
		return fmt.Errorf("export to %s: want oci:DIR or oci-archive:FILE", target)
	case kind == archiveKind:
		if info, err := os.Stat(path); err == nil && info.IsDir() {
			return fmt.Errorf("export to %s: %s is a directory", target, path)
		}
		x.archive = path
		return nil
	}
	var err error
	x.out, err = openLayout(path)
	for _, p := range x.images {
		p.out = x.out
	}
	return err
}

// bring brings an image into the layout, or finds out whether it can be written to an archive.
// The error is that it is not complete.
func (x *export) bring(e *env, p *puller) error {
	do := p.pull
	if x.archive != "" {
		do = p.survey
	}
	if err := do(e.ctx); err != nil {
		return fmt.Errorf("%s: %w", p.want, err)
	}
	return report(e.stderr, p.graph, p.want.String())
}

// survey finds out what belongs to the image, and whether it is there.
func (p *puller) survey(ctx context.Context) error {
	if err := p.find(ctx); err != nil {
		return err
	}
	return forEach(ctx, p.graph, p.wanted(), func(ctx context.Context, n *graph.Node) error {
		if n.Content != nil {
			return nil
		}
		size, err := registrySource{p.from}.Stat(ctx, n.Descriptor)
		if err == nil && size != n.Size {
			err = &graph.WrongError{Digest: n.Digest, Reason: fmt.Sprintf("it has %d bytes, not the %d that are stated", size, n.Size)}
		}
		return err
	})
}

// print tells what an image has.
func (c *exportCmd) print(e *env, p *puller) error {
	r := p.result()
	r.Layout = c.Args[len(c.Args)-1]
	if c.JSON {
		return json.NewEncoder(e.stdout).Encode(r)
	}
	text := fmt.Sprintf("%s: %d manifests, %d blobs, %s", r.name(), r.Manifests, r.Blobs, bytesText(r.Bytes))
	if p.since != nil {
		text += fmt.Sprintf("; %d blobs of %s left out, which %s has", r.Spared, bytesText(r.SparedBytes), c.Since)
	}
	_, err := fmt.Fprintln(e.stdout, text)
	return err
}

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/granary-oci/granary/chunkstore/chunk"
	"github.com/granary-oci/granary/cmd/granary/node"
	"github.com/granary-oci/granary/proxy"
	"github.com/granary-oci/granary/proxy/catalog"
	"github.com/granary-oci/granary/proxy/graph"
	"github.com/granary-oci/granary/proxy/layout"
	"github.com/granary-oci/granary/proxy/ref"
)

// importCmd gives a node images from files, to serve without their registries.
type importCmd struct {
	node.DataConfig `embed:""`
	nodeFlag        `embed:""`

	Platform string `name:"platform" default:"all" placeholder:"OS/ARCH[/VARIANT]" help:"Which image of an index to import; 'all' for each of them."`
	From     string `arg:"" name:"layout" help:"oci:DIR, oci-archive:FILE, or docker-archive:FILE as docker save and podman save write it."`
	Ref      string `arg:"" optional:"" name:"ref" help:"Image, as in ghcr.io/org/app:v1, that what has no full name in the layout belongs to."`
}

func (c *importCmd) Run(e *env) error {
	platform, err := parsePlatform(c.Platform)
	if err != nil {
		return err
	}
	all, err := c.repositories(e)
	if err != nil {
		return fmt.Errorf("import: %w", err)
	}
	s, done, err := anyNode(e, c.DataConfig, c.nodeFlag)
	if err != nil {
		return err
	}
	defer done()
	bars := newProgress(e.stderr)
	defer bars.finish()
	// Nothing is sent before everything has been verified.
	for _, i := range all {
		i.to, i.progress = c.nodeFlag, bars
		i.to.Node = s.Admin
		if err := i.verify(e, platform); err != nil {
			return fmt.Errorf("import %w", err)
		}
	}
	for _, i := range all {
		if err := i.send(e.ctx); err != nil {
			return fmt.Errorf("import %s: %w", i.repository, err)
		}
		if _, err := fmt.Fprintf(e.stdout, "%s: %d tags, %d manifests, %d blobs\n", i.repository, len(i.tags), len(i.graph.Manifests()), len(i.graph.Blobs())); err != nil {
			return err
		}
	}
	return nil
}

// imported is what is imported into one repository.
type imported struct {
	repository ref.Repository
	files      layout.Files
	from       *layout.Repository
	roots      []ocispec.Descriptor
	tags       map[string]digest.Digest
	to         nodeFlag
	progress   *progress

	graph *graph.Graph // once it is known
}

// imports are what is imported, by repository.
type imports struct {
	files  layout.Files
	report func(error)
	into   map[ref.Repository]*imported
}

// in returns what is imported into a repository.
func (all *imports) in(repository ref.Repository) *imported {
	i := all.into[repository]
	if i == nil {
		from := layout.New(repository.Host, all.files, all.report).Repository(repository.Name)
		i = &imported{repository: repository, files: all.files, from: from, tags: make(map[string]digest.Digest)}
		all.into[repository] = i
	}
	return i
}

// add adds a manifest, with a tag unless that is "". Of several with one tag the first counts.
func (i *imported) add(tag string, desc ocispec.Descriptor) {
	i.roots = append(i.roots, desc)
	if tag != "" && i.tags[tag] == "" {
		i.tags[tag] = desc.Digest
	}
}

// repositories finds out what belongs where.
func (c *importCmd) repositories(e *env) ([]*imported, error) {
	all := &imports{report: func(err error) { fmt.Fprintln(e.stderr, err) }, into: make(map[ref.Repository]*imported)}
	var want ref.Reference
	var err error
	if c.Ref != "" {
		want, err = ref.Parse(c.Ref, c.DefaultUpstream)
	}
	if want.Digest != "" {
		err = fmt.Errorf("as %s: a digest is no name", c.Ref)
	}
	if err != nil {
		return nil, err
	}
	var ok bool
	if all.files, ok = layout.At(c.From, all.report); !ok {
		return nil, fmt.Errorf("from %s: want oci:DIR, oci-archive:FILE or docker-archive:FILE", c.From)
	}
	from := layout.New(c.DefaultUpstream, all.files, all.report)
	entries, err := from.Entries(e.ctx)
	if err != nil {
		return nil, err
	}
	var images []ocispec.Descriptor // that have no name
	for _, entry := range entries {
		repository := entry.Repository
		if repository == (ref.Repository{}) {
			repository = want.Repository
		}
		isReferrer := false
		if entry.Tag == "" {
			if isReferrer, err = refersToAnother(e.ctx, from, entry.Descriptor); err != nil {
				return nil, err
			}
		}
		switch {
		case isReferrer && repository == (ref.Repository{}): // it is found with what it refers to
		case repository == (ref.Repository{}):
			return nil, fmt.Errorf("%s has no full name in the layout: say which, as in granary import %s registry.example/app:v1", entry.Descriptor.Digest, c.From)
		case entry.Tag == "" && !isReferrer:
			images = append(images, entry.Descriptor)
			fallthrough
		default:
			all.in(repository).add(entry.Tag, entry.Descriptor)
		}
	}
	if len(images) == 1 && want.Tag != "" {
		all.in(want.Repository).add(want.Tag, images[0])
	}
	if len(all.into) == 0 {
		return nil, errors.New("the layout names no images")
	}
	return slices.SortedFunc(maps.Values(all.into), func(a, b *imported) int {
		return strings.Compare(a.repository.String(), b.repository.String())
	}), nil
}

// refersToAnother reports whether a manifest of a layout has a subject.
func refersToAnother(ctx context.Context, from *layout.Layout, desc ocispec.Descriptor) (bool, error) {
	m, err := from.Repository("any").Manifest(ctx, string(desc.Digest))
	if err != nil {
		return false, err
	}
	var body struct {
		Subject *ocispec.Descriptor `json:"subject"`
	}
	_ = json.Unmarshal(m.Bytes, &body) // what is of another form has none
	return body.Subject != nil, nil
}

// verify reads all that belongs to the repository. The error is that something is wrong, or
// missing and was not imported before.
func (i *imported) verify(e *env, platform *ocispec.Platform) (err error) {
	source := registrySource{i.from}
	i.graph, err = graph.Walk(e.ctx, source, i.roots, graph.Options{Platform: platform, Parallel: parallel, Referrers: source})
	var wrong *graph.WrongError
	if errors.As(err, &wrong) && wrong.Digest.Validate() == nil {
		err = fmt.Errorf("%s: %w", i.files.Path(blobName(wrong.Digest)), err)
	}
	if err != nil {
		return fmt.Errorf("%s: %w", i.repository, err)
	}
	err = forEach(e.ctx, i.graph, i.graph.Blobs(), func(ctx context.Context, n *graph.Node) error {
		r, err := i.open(ctx, n.Descriptor)
		if err == nil {
			err = copyVerified(io.Discard, r, n.Descriptor)
		}
		if isWrong(err) {
			err = fmt.Errorf("%s: %w", i.files.Path(blobName(n.Digest)), err)
		}
		if err = missing(err); errors.Is(err, graph.ErrNotFound) {
			there, serr := i.status(ctx, n.Descriptor)
			if serr != nil || there.Stored && there.Imported {
				return serr
			}
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("%s: %w", i.repository, err)
	}
	return report(e.stderr, i.graph, i.repository.String())
}

// open returns the bytes of a blob in the layout.
func (i *imported) open(ctx context.Context, desc ocispec.Descriptor) (*io.SectionReader, error) {
	m, err := chunk.Grid(desc.Digest, desc.Size)
	if err != nil {
		return nil, err
	}
	b := chunk.NewBlob(m, i.from.Blob(), chunk.BlobConfig{})
	return io.NewSectionReader(b.ReaderAt(ctx), 0, desc.Size), nil
}

// send gives the node what it lacks, and then tells it what that is.
func (i *imported) send(ctx context.Context) error {
	in := proxy.Import{Members: make(map[digest.Digest]catalog.Member), Tags: i.tags}
	for _, n := range i.graph.Blobs() {
		in.Members[n.Digest] = catalog.Member{MediaType: n.MediaType, Size: n.Size}
		r, err := i.open(ctx, n.Descriptor)
		if err == nil {
			err = i.put(ctx, n.Descriptor, r)
		}
		if err != nil {
			return err
		}
	}
	for _, m := range manifestsOf(i.graph) {
		in.Members[m.Digest] = catalog.Member{MediaType: m.MediaType, Size: m.Size, Manifest: true}
		if err := i.put(ctx, m, bytes.NewReader(m.Data)); err != nil {
			return err
		}
	}
	for _, l := range referrerLists(i.graph) {
		in.Tags[l.tag] = l.Digest
	}
	p, err := json.Marshal(in)
	if err != nil {
		return err
	}
	body, err := i.to.send(ctx, http.MethodPost, "/api/v1/import?"+i.query(0, 0), bytes.NewReader(p), int64(len(p)))
	if err == nil {
		err = body.Close()
	}
	return err
}

// query are the parameters of a question to the node.
func (i *imported) query(size, offset int64) string {
	return url.Values{"repository": {i.repository.String()}, "size": {strconv.FormatInt(size, 10)}, "offset": {strconv.FormatInt(offset, 10)}}.Encode()
}

// status asks what the node has of a blob.
func (i *imported) status(ctx context.Context, desc ocispec.Descriptor) (s node.ImportStatus, err error) {
	body, err := i.to.do(ctx, http.MethodGet, "/api/v1/import/"+string(desc.Digest)+"?"+i.query(desc.Size, 0))
	if err != nil {
		return s, err
	}
	defer body.Close()
	err = json.NewDecoder(io.LimitReader(body, maxAnswer)).Decode(&s)
	if err == nil && (s.Offset < 0 || s.Offset > desc.Size) {
		err = fmt.Errorf("node %s: it has %d bytes of %s, which has %d", i.to.Node, s.Offset, desc.Digest, desc.Size)
	}
	return s, err
}

// put gives the node what it lacks of a blob, and all of it once what it had turns out to be wrong.
func (i *imported) put(ctx context.Context, desc ocispec.Descriptor, r io.ReaderAt) error {
	there, err := i.status(ctx, desc)
	if err != nil {
		return err
	}
	if there.Stored {
		i.progress.add(desc).done("already there")
		return nil
	}
	err = i.putFrom(ctx, desc, r, there.Offset)
	var said *nodeError
	if errors.As(err, &said) && said.status == http.StatusConflict {
		err = i.putFrom(ctx, desc, r, 0)
	}
	return err
}

// putFrom gives the node what follows an offset of a blob.
func (i *imported) putFrom(ctx context.Context, desc ocispec.Descriptor, r io.ReaderAt, offset int64) error {
	bar := i.progress.add(desc)
	bar.skip(offset)
	rest := io.NewSectionReader(r, offset, desc.Size-offset)
	body, err := i.to.send(ctx, http.MethodPut, "/api/v1/import/"+string(desc.Digest)+"?"+i.query(desc.Size, offset), bar.reader(rest), rest.Size())
	if err != nil {
		bar.drop()
		return err
	}
	bar.done("done")
	return body.Close()
}

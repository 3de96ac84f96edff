package proxy

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"regexp"
	"slices"

	"github.com/opencontainers/go-digest"

	"github.com/granary-oci/granary/chunkstore/chunk"
	"github.com/granary-oci/granary/proxy/access"
	"github.com/granary-oci/granary/proxy/catalog"
	"github.com/granary-oci/granary/proxy/ref"
	"github.com/granary-oci/granary/proxy/upstream"
)

// What is imported into a repository belongs to it by the word of whoever commands the node.
// While the upstream can be asked it decides as ever; while it cannot, be it that this node does not
// connect to its address, what was imported, and nothing else of the repository, is served to
// everybody, however long ago that was. Members of the cluster are told of it as of what an upstream
// says.

// Import is what is imported into a repository, once all of it is stored.
type Import struct {
	Members map[digest.Digest]catalog.Member `json:"members"`
	Tags    map[string]digest.Digest         `json:"tags"` // of members that are manifests
}

// imported reports whether d was imported into the repository.
func (p *Repository) imported(d digest.Digest) bool {
	m, ok := p.registry.cfg.Catalog.Member(p.String(), d)
	return ok && m.Imported
}

// importedAs reports whether a tag was imported, and meant d.
func (r *Registry) importedAs(repo ref.Repository, tag string, d digest.Digest) bool {
	t, ok := r.cfg.Catalog.Tag(repo.String(), tag)
	return ok && t.Imported && t.Digest == d
}

// Stored reports whether all of a blob is stored, and known to match its digest.
func (r *Registry) Stored(d digest.Digest, size int64) bool {
	info, err := r.cfg.Store.Stat(d)
	return err == nil && info.Size == size && info.Stored == size && (info.Proven || size <= chunk.Size)
}

// Begun returns how many bytes of a blob an import into a repository need not send: those that
// are stored from its beginning on, in whole chunks, and came from the repository's registry or for it.
func (r *Registry) Begun(repo ref.Repository, d digest.Digest, size int64) int64 {
	m, err := chunk.Grid(d, size)
	if err != nil {
		return 0
	}
	near := r.Open(repo, access.Caller{}).near(d)
	n := int64(0)
	for i := 0; i < m.Len() && near.Has(m.At(i)); i++ {
		n += m.At(i).Size
	}
	return n
}

// ErrDropped says that what was stored of a blob is not there any more, and was wrong if it was
// not evicted.
var ErrDropped = errors.New("what was stored of it before is gone")

// ImportBlob stores a blob, a manifest among them, that is going to be imported into a
// repository. It belongs nowhere yet. body is what follows the first offset bytes, which are no
// more than [Registry.Begun] says. If all is not what the digest and size say, the error is a
// [*chunk.CorruptError] and nothing is stored; it is an [ErrDropped] too if other bytes than
// those of body may be to blame, and so is one that says that the first bytes are not there. Of a body that ends too soon, what came is kept, to go on from.
func (r *Registry) ImportBlob(ctx context.Context, repo ref.Repository, d digest.Digest, size, offset int64, body io.Reader) error {
	m, err := chunk.Grid(d, size)
	if err != nil || r.Stored(d, size) {
		return err
	}
	defer r.cfg.Store.Retain(d, size)()
	r.supply(repo.Host, d, true) // what another host has left unproven goes
	switch begun := r.Begun(repo, d, size); {
	case offset < 0 || offset > size || offset%chunk.Size != 0 && offset != size:
		return fmt.Errorf("import: blob %s: nothing goes on at %d of %d bytes", d, offset, size)
	case offset > begun:
		return fmt.Errorf("import: blob %s: %d bytes of it are here, not %d: %w", d, begun, offset, ErrDropped)
	}
	before := r.stores(d)
	near := r.Open(repo, access.Caller{}).near(d)
	if err = fill(ctx, near, m, offset, body); err == nil && m.Len() > 1 {
		// What is stored is hashed, not what came: a chunk may have been there before.
		err = chunk.NewBlob(m, chunk.Named(importing, near), chunk.BlobConfig{Window: r.cfg.Window, Budget: r.cfg.Budget, Proofs: near}).Prove(ctx)
	}
	if err == nil {
		near.Prove(d, size)
		return nil
	}
	if chunk.IsCorrupt(err) {
		r.cfg.Store.Drop(d)
		if before {
			err = fmt.Errorf("%w; %w", err, ErrDropped)
		}
	}
	return fmt.Errorf("import: blob %s: %w", d, err)
}

// importing is the source that is to blame for what is wrong in an import.
const importing = "import"

// fill puts the chunks of a blob from an offset on. One that is the whole is checked before.
func fill(ctx context.Context, to chunk.Store, m *chunk.Map, offset int64, body io.Reader) error {
	if offset > 0 && offset == m.Size() {
		return nil // it is all there, and not proven yet
	}
	for i := m.Find(offset); i < m.Len(); i++ {
		c := m.At(i)
		p := make([]byte, c.Size) // the store's from now on
		n, err := io.ReadFull(body, p)
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			return fmt.Errorf("it ends after %d of %d bytes: %w", c.Offset+int64(n), m.Size(), io.ErrUnexpectedEOF)
		}
		if c.Last() && more(body) {
			return &chunk.CorruptError{Source: importing, Ref: chunk.Ref{Blob: m.Blob(), Total: m.Size(), Size: m.Size()}, Reason: "there are more bytes"}
		}
		if err == nil {
			err = c.Check(importing, p)
		}
		if err == nil {
			err = to.Put(ctx, c, p)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// more reports whether there is anything to be read.
func more(r io.Reader) bool {
	n, _ := io.ReadFull(r, make([]byte, 1))
	return n > 0
}

// Import makes what is stored belong to a repository, and tells others. Unless all of it is
// stored nothing is recorded.
func (r *Registry) Import(repo ref.Repository, in Import) error {
	p, now := r.Open(repo, access.Caller{}), r.ledger.Now()
	for d, m := range in.Members {
		if err := d.Validate(); err != nil || len(m.MediaType) > maxMediaType {
			return fmt.Errorf("import: %q of type %q: %w", string(d), m.MediaType, errors.Join(err, errors.New("this is no descriptor")))
		}
		if !r.Stored(d, m.Size) {
			return fmt.Errorf("import: blob %s is not stored, or not any more: %w", d, chunk.ErrNotFound)
		}
		m.Confirmed, m.Imported = true, true
		in.Members[d] = m
	}
	facts := Facts{Members: in.Members, Tags: make(map[string]TagFact)}
	for tag, d := range in.Tags {
		m := in.Members[d]
		if !ref.IsTag(tag) || !m.Manifest || m.Size > upstream.MaxManifestSize {
			return fmt.Errorf("import: tag %q is none, or %s no manifest", tag, d)
		}
		facts.Tags[tag] = TagFact{Digest: d, MediaType: m.MediaType, Size: m.Size, Imported: true}
	}
	for d := range in.Members {
		p.shown(d)
	}
	if err := r.cfg.Catalog.AddMembers(p.String(), in.Members); err != nil {
		return err
	}
	for tag, t := range facts.Tags {
		if err := r.cfg.Catalog.SetTag(p.String(), tag, catalog.Tag{Digest: t.Digest, MediaType: t.MediaType, Size: t.Size, Checked: now, Imported: true}); err != nil {
			return err
		}
	}
	r.lists.forget(p.String())
	p.tellAll(facts)
	return nil
}

// tellAll tells others of what was imported, in as many parts as they take.
func (p *Repository) tellAll(f Facts) {
	for some := range slices.Chunk(slices.Collect(maps.Keys(f.Members)), maxFactMembers) {
		part := Facts{Members: make(map[digest.Digest]catalog.Member, len(some))}
		for _, d := range some {
			part.Members[d] = f.Members[d]
		}
		p.tell(access.Caller{}, nil, part)
	}
	for some := range slices.Chunk(slices.Collect(maps.Keys(f.Tags)), maxFactTags) {
		part := Facts{Tags: make(map[string]TagFact, len(some))}
		for _, tag := range some {
			part.Tags[tag] = f.Tags[tag]
		}
		p.tell(access.Caller{}, nil, part)
	}
}

// importedTags returns the tags that were imported into the repository, sorted.
func (p *Repository) importedTags() (tags []string) {
	for tag, t := range p.registry.cfg.Catalog.Tags(p.String(), maxFactTags) {
		if t.Imported {
			tags = append(tags, tag)
		}
	}
	slices.Sort(tags)
	return tags
}

// tagOfReferrers is the form of tags under which others than the registry list what refers to a
// manifest: the fallback tag, and those of cosign.
var tagOfReferrers = regexp.MustCompile(`^sha(256|512)-[0-9a-f]{64}(\.[a-z]+)?$`)

// importedWithout reports whether there is no such tag as far as the repository was imported:
// an import has all that its layout says of what refers to others.
func (p *Repository) importedWithout(tag string) bool {
	if !tagOfReferrers.MatchString(tag) {
		return false
	}
	_, known := p.registry.cfg.Catalog.Tag(p.String(), tag)
	return !known && len(p.importedTags()) > 0
}

// importedReferrers returns what the list says that was imported under the fallback tag of d.
// An import makes one of whatever refers to d.
func (p *Repository) importedReferrers(ctx context.Context, d digest.Digest) []Referrer {
	t, ok := p.registry.cfg.Catalog.Tag(p.String(), ref.FallbackTag(d))
	if !ok || !p.imported(t.Digest) {
		return nil
	}
	m, err := p.Manifest(ctx, t.Digest)
	if err != nil {
		p.registry.report(err)
		return nil
	}
	found, _ := parseReferrers(m.Bytes) // what is no index lists nothing
	return unique(found)
}

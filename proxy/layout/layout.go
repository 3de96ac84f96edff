package layout

import (
	"context"
	"crypto/sha256"
	"errors"
	"net/http"
	"sync"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/granary-oci/granary/chunkstore/chunk"
	"github.com/granary-oci/granary/proxy/flight"
	"github.com/granary-oci/granary/proxy/ref"
)

// Origin names what a layout has said or sent, see [chunk.SetOrigin].
const Origin = "layout"

// Files are where the files of a layout are. Their errors are those of the package
// comment, but for what is in the files.
type Files interface {
	// File returns a small file, of at most limit bytes, and its version: what is never the
	// same for another content, or "" if that cannot be told. Of the version that is
	// known it returns no bytes.
	File(ctx context.Context, name string, limit int64, known string) (p []byte, version string, err error)
	// Stat returns the size of a blob in bytes.
	Stat(ctx context.Context, d digest.Digest) (int64, error)
	// Blob returns a source of the chunks of blobs, checked as far as each can be alone.
	Blob() chunk.Source
	// Range answers a GET of a blob with a range of bytes (RFC 9110, section 14).
	Range(ctx context.Context, d digest.Digest, bytes string) (*http.Response, error)
	// Path returns where a file is, for people.
	Path(name string) string
}

// Layout is a layout in the place of a registry. It is safe for concurrent use.
type Layout struct {
	host   string
	files  Files
	report func(error)
	loads  flight.Group

	mu       sync.Mutex
	last     *index // that was understood, nil before
	version  string // of its file
	sum      [sha256.Size]byte
	reported string // what is wrong with the file, as it was last reported
	subjects map[digest.Digest]subject
	wrongs   map[string]bool // faults that have been reported
}

// New returns the layout that files are, as that of the registry host. It reads nothing.
// report, which may be nil, is told what is wrong with files while an earlier state of
// them holds.
func New(host string, files Files, report func(error)) *Layout {
	if report == nil {
		report = func(error) {}
	}
	return &Layout{
		host: host, files: files, report: report,
		subjects: make(map[digest.Digest]subject), wrongs: make(map[string]bool),
	}
}

// Repository returns a repository of the layout: each has what the layout has, by digest,
// and the tags that it has a name for.
func (l *Layout) Repository(name string) *Repository {
	return &Repository{layout: l, name: ref.Repository{Host: l.host, Name: name}}
}

// Check reads what the layout says of itself.
func (l *Layout) Check(ctx context.Context) error {
	_, err := l.index(ctx)
	return err
}

// Entry is a manifest that index.json names, as far as that says so and as it may be wrong.
type Entry struct {
	Repository ref.Repository // the zero for a name in any repository, and for none
	Tag        string         // "" for none
	Descriptor ocispec.Descriptor
}

// Entries returns the manifests that the layout names, in order.
func (l *Layout) Entries(ctx context.Context) ([]Entry, error) {
	x, err := l.index(ctx)
	if err != nil {
		return nil, err
	}
	var all []Entry
	for _, e := range x.entries {
		all = append(all, Entry{e.repository, e.tag, ocispec.Descriptor{MediaType: e.mediaType, Digest: e.digest, Size: e.size}})
	}
	return all, nil
}

// loadFor bounds the reading of index.json, which takes as long as what has to be found out of
// an archive before.
const loadFor = checkFor

// index returns index.json as it is now, or was when it could last be understood.
func (l *Layout) index(ctx context.Context) (*index, error) {
	x, err := l.loads.Do(ctx, ocispec.ImageIndexFile, loadFor, func(ctx context.Context) (any, error) {
		ctx, _ = chunk.WithOrigin(ctx) // whoever began may read on elsewhere meanwhile
		return l.load(ctx)
	})
	if err != nil {
		return nil, err
	}
	return x.(*index), nil
}

// load is called by one at a time.
func (l *Layout) load(ctx context.Context) (*index, error) {
	l.mu.Lock()
	last, version, sum := l.last, l.version, l.sum
	l.mu.Unlock()
	x, version, sum, err := l.read(ctx, last, version, sum)
	l.mu.Lock()
	defer l.mu.Unlock()
	var malformed *FormatError
	switch {
	case err == nil:
		l.last, l.version, l.sum, l.reported = x, version, sum, ""
		return x, nil
	case last == nil || !errors.As(err, &malformed):
		return nil, err
	case l.reported != err.Error():
		l.reported = err.Error()
		l.report(err)
	}
	return last, nil
}

// read reads index.json, and what says that it is one, unless it is the last one still.
func (l *Layout) read(ctx context.Context, last *index, version string, sum [sha256.Size]byte) (*index, string, [sha256.Size]byte, error) {
	raw, now, err := l.file(ctx, ocispec.ImageIndexFile, maxIndex, version)
	if err != nil {
		return nil, "", sum, err
	}
	if raw == nil {
		return last, version, sum, nil
	}
	was := sum
	if sum = sha256.Sum256(raw); last != nil && sum == was {
		return last, now, sum, nil
	}
	marker, _, err := l.file(ctx, ocispec.ImageLayoutFile, maxMarker, "")
	if err == nil {
		err = l.malformed(ocispec.ImageLayoutFile, parseMarker(marker))
	}
	if err != nil {
		return nil, "", sum, err
	}
	x, err := parseIndex(raw, l.host)
	return x, now, sum, l.malformed(ocispec.ImageIndexFile, err)
}

// file returns a file that no layout lacks.
func (l *Layout) file(ctx context.Context, name string, limit int64, known string) (p []byte, version string, err error) {
	p, version, err = l.files.File(ctx, name, limit, known)
	if errors.Is(err, chunk.ErrNotFound) {
		err = l.malformed(name, errors.New("the file is missing, without which this is no image layout"))
	}
	return p, version, err
}

func (l *Layout) malformed(name string, err error) error {
	if err == nil {
		return nil
	}
	return &FormatError{l.files.Path(name), err}
}

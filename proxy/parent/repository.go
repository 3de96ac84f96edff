package parent

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"

	"github.com/opencontainers/go-digest"

	"github.com/granary-oci/granary/chunkstore/chunk"
	"github.com/granary-oci/granary/proxy/ref"
	"github.com/granary-oci/granary/proxy/upstream"
)

// Repository is a repository of a registry as a parent has it. Its methods are those of an
// [upstream.Repository], and its answers and chunks have the name of [chunk.OfParent].
type Repository struct {
	parents *Parents
	parent  *Parent
	name    ref.Repository
	up      *upstream.Repository
	public  bool // it is read in nobody's name
}

// Repositories returns a repository as each parent has it, in order of preference, as it is read
// with a value of Authorization.
func (ps *Parents) Repositories(name ref.Repository, authorization string) (all []*Repository) {
	for _, p := range ps.all {
		all = append(all, &Repository{ps, p, name, p.repository(name, authorization), authorization == ""})
	}
	return all
}

// Deputy marks answers as those of somebody who speaks for the registry while that cannot be
// asked.
func (r *Repository) Deputy() {}

// Resolve returns the descriptor of a manifest, by tag or digest.
func (r *Repository) Resolve(ctx context.Context, reference string) (upstream.Resolved, error) {
	return asked(r, func() (upstream.Resolved, error) { return r.up.Resolve(ctx, reference) })
}

// Manifest returns a manifest's exact bytes too, checked against its digest.
func (r *Repository) Manifest(ctx context.Context, reference string) (upstream.Manifest, error) {
	return asked(r, func() (upstream.Manifest, error) { return r.up.Manifest(ctx, reference) })
}

// Stat returns the size of a blob in bytes, also by whether there is a map of it. One that is not what the manifests say is no answer: whose word
// is wrong the registry knows.
func (r *Repository) Stat(ctx context.Context, d digest.Digest) (int64, error) {
	return asked(r, func() (int64, error) {
		want, known := r.parents.size(r.name, d)
		if known && (source{Repository: r}).has(ctx, d, want) {
			return want, nil
		}
		size, err := r.up.Stat(ctx, d)
		if err == nil && known && want != size {
			err = &upstream.NoAnswerError{Subject: r.parent.origin, Err: fmt.Errorf("blob %s has %d bytes there, and %d by a manifest", d, size, want)}
		}
		return size, err
	})
}

// Get asks for any other path below the repository. The body of the answer to a closed range of a blob has as
// many bytes as were asked for, or ends with an error.
func (r *Repository) Get(ctx context.Context, path string, query url.Values, header http.Header) (*http.Response, error) {
	d, isBlob := strings.CutPrefix(path, "blobs/")
	if isBlob && r.parents.given.doubted(blob{r.name.Host, digest.Digest(d)}) {
		return nil, r.doubted(digest.Digest(d))
	}
	return asked(r, func() (*http.Response, error) {
		resp, err := r.up.Get(ctx, path, query, header)
		if err != nil {
			return nil, err
		}
		wanted := parseRange(header.Get("Range"))
		if !wanted.answeredBy(resp) {
			resp.Body.Close()
			return nil, &upstream.NoAnswerError{Subject: r.parent.origin, Err: fmt.Errorf("%s: %s was asked for, %q of %s and %d bytes are the answer",
				path, header.Get("Range"), resp.Header.Get("Content-Range"), resp.Status, resp.ContentLength)}
		}
		if isBlob && wanted != (byteRange{}) {
			resp.Body = r.held(resp.Body, digest.Digest(d), wanted)
		}
		return resp, nil
	})
}

// asked asks the parent if it is to be asked, and takes note of the answer.
func asked[T any](r *Repository, ask func() (T, error)) (v T, err error) {
	if err := r.parent.usable(); err != nil {
		return v, err
	}
	v, err = ask()
	return v, r.heed(err)
}

// heed takes note of an answer, and returns what its error is to who asked.
func (r *Repository) heed(err error) error {
	var corrupt *chunk.CorruptError
	if errors.As(err, &corrupt) {
		named := *corrupt
		named.Source = r.parent.origin
		if !errors.Is(err, upstream.ErrOtherSize) { // whose word on it is wrong is not known
			r.parents.fault(r.parent, &named)
		}
		return &named
	}
	err = r.atTheDoor(err)
	r.parent.heed(err)
	return err
}

// atTheDoor makes an error that no registry has given one of a parent that does not answer: it, or
// what is before it, does not let this site ask.
func (r *Repository) atTheDoor(err error) error {
	var said *upstream.StatusError
	if !errors.As(err, &said) || said.Header.Get("Docker-Distribution-Api-Version") != "" || upstream.Unreachable(err) {
		return err
	}
	return &upstream.NoAnswerError{Subject: r.parent.origin, Err: fmt.Errorf("this site may not ask: %w", quiet(err))}
}

// Blob returns a source of the chunks of blobs, checked as far as each can be alone.
func (r *Repository) Blob() chunk.Source { return source{r, r.up.Blob()} }

// Doubt has no parent asked for a blob for a while, which did not match its digest.
func (r *Repository) Doubt(d digest.Digest) { r.parents.Doubt(r.name.Host, d) }

// doubted says that a blob is not asked for.
func (r *Repository) doubted(d digest.Digest) error {
	return fmt.Errorf("%s: what it gave of %s was wrong, or somebody else's was: %w", r.parent.origin, d, chunk.ErrNotFound)
}

// Settled has parents held to what they gave of a blob, which has matched its digest.
func (r *Repository) Settled(d digest.Digest) { r.parents.Settled(r.name.Host, d) }

type source struct {
	*Repository
	ranges chunk.Source
}

// Get implements [chunk.Source].
func (s source) Get(ctx context.Context, ref chunk.Ref) ([]byte, error) {
	return chunk.GetOne(ctx, s, ref)
}

// askable says why the parent is not to be asked for a blob.
func (s source) askable(d digest.Digest) error {
	if err := s.parent.usable(); err != nil {
		return err
	}
	if s.parents.given.doubted(blob{s.name.Host, d}) {
		return s.doubted(d)
	}
	return nil
}

// GetRun implements [chunk.Runner].
func (s source) GetRun(ctx context.Context, refs []chunk.Ref, yield func(chunk.Ref, []byte) error) error {
	if len(refs) == 0 {
		return nil
	}
	if err := s.askable(refs[0].Blob); err != nil {
		return err
	}
	last := refs[len(refs)-1]
	leave, err := s.parent.queue.enter(ctx, last.Offset+last.Size-refs[0].Offset, s.Pace)
	if err != nil {
		return err
	}
	defer leave()
	if err := s.askable(refs[0].Blob); err != nil { // by now: it may have been long
		return err
	}
	defer s.parent.pace.begin()()
	var stop error // what yield returned is not the parent's
	give := func(ref chunk.Ref, p []byte) error {
		s.parent.pace.came(int64(len(p)))
		if s.parents.given.doubted(blob{s.name.Host, ref.Blob}) { // by now: it may be of the same lie
			stop = s.doubted(ref.Blob)
			return stop
		}
		s.parents.given.addChunk(blob{s.name.Host, ref.Blob}, ref, s.parent, p)
		stop = yield(ref, p)
		return stop
	}
	if s.parent.gateway && s.public {
		named, err := s.named(ctx, refs)
		if chunk.IsCorrupt(err) {
			return s.heed(err)
		}
		if err == nil {
			given, err := s.byCID(ctx, named, give)
			if stop != nil || given == len(refs) || chunk.IsCorrupt(err) || ctx.Err() != nil {
				return s.told(stop, err)
			}
			s.parent.known.of(s.mapOf(refs[0])).forget() // it has lost some of them, or has no gateway
			refs = refs[given:]
		}
	}
	err = chunk.GetRun(ctx, s.ranges, refs, give)
	return s.told(stop, err)
}

// told returns err, after the parent was held to it unless it is stop, which whoever reads has returned.
func (s source) told(stop, err error) error {
	if stop != nil {
		return err
	}
	return s.heed(err)
}

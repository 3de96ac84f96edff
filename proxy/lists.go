package proxy

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/granary-oci/granary/chunkstore/chunk"
	"github.com/granary-oci/granary/proxy/ref"
	"github.com/granary-oci/granary/proxy/upstream"
)

// Limits of a list that an upstream gives in pages.
const (
	maxPages     = 1000
	maxPageBytes = 4 << 20
	maxListBytes = 32 << 20  // of names or descriptors, all pages together
	itemBytes    = 64        // what an item takes beside its text
	allListBytes = 128 << 20 // of all lists that are being gathered
	parseAtOnce  = 2         // pages and manifests, which take many times their size
	upstreamPage = "1000"    // tags to ask for at a time; some registries refuse more

	listFor      = time.Minute // how long a client may take from one page of ours to the next
	maxLists     = 64
	maxListsSize = 16 << 20 // bytes, all lists together
)

// list is all of what a repository lists, in the order in which it is given out.
type list[T any] struct {
	items []T
	size  int // bytes
}

// Tags returns all tags of the repository, sorted. With fresh false they may be
// as old as [listFor]: for a client that goes on with a list it has begun.
func (p *Repository) Tags(ctx context.Context, fresh bool) ([]string, error) {
	all, err := p.list(ctx, "tags", fresh, func(ctx context.Context, up Upstream) (any, int, error) {
		tags, err := allPages(ctx, p.registry, up, "tags/list", url.Values{"n": {upstreamPage}}, func(page []byte) ([]string, error) {
			var body struct{ Tags []string }
			err := json.Unmarshal(page, &body)
			return slices.DeleteFunc(body.Tags, func(tag string) bool { return !ref.IsTag(tag) }), err
		}, func(tag string) int { return len(tag) })
		slices.Sort(tags.items)
		return slices.Compact(tags.items), tags.size, err
	})
	if hasNoSay(err) {
		if tags := p.importedTags(); len(tags) > 0 {
			return tags, nil
		}
	}
	if err != nil {
		return nil, fmt.Errorf("%s: tags: %w", p, err)
	}
	return all.([]string), nil
}

// Referrer is a descriptor as the upstream sent it, with all its fields.
type Referrer struct {
	Digest       digest.Digest
	ArtifactType string
	JSON         json.RawMessage
}

// Referrers returns the manifests of the repository that refer to d. Where the
// registry does not know the question, the index under d's fallback tag is the
// answer (distribution-spec, "Unavailable Referrers API"). fresh is that of
// [Repository.Tags].
func (p *Repository) Referrers(ctx context.Context, d digest.Digest, fresh bool) ([]Referrer, error) {
	all, err := p.list(ctx, "referrers "+string(d), fresh, func(ctx context.Context, up Upstream) (any, int, error) {
		found, err := allPages(ctx, p.registry, up, "referrers/"+string(d), nil, parseReferrers, func(r Referrer) int { return len(r.JSON) })
		if unsupported(err) {
			found, err = fallbackReferrers(ctx, up, d)
		}
		return unique(found.items), found.size, err
	})
	if hasNoSay(err) && p.imported(d) {
		return p.importedReferrers(ctx, d), nil
	}
	if err != nil {
		return nil, fmt.Errorf("%s: referrers of %s: %w", p, d, err)
	}
	return all.([]Referrer), nil
}

// unique leaves out what comes again: a page goes on after a digest.
func unique(all []Referrer) []Referrer {
	seen := make(map[digest.Digest]bool)
	return slices.DeleteFunc(all, func(r Referrer) bool {
		again := seen[r.Digest]
		seen[r.Digest] = true
		return again
	})
}

// parseReferrers reads an image index.
func parseReferrers(page []byte) ([]Referrer, error) {
	var index struct{ Manifests []json.RawMessage }
	if err := json.Unmarshal(page, &index); err != nil {
		return nil, err
	}
	found := make([]Referrer, 0, len(index.Manifests))
	for _, raw := range index.Manifests {
		var desc ocispec.Descriptor
		if err := json.Unmarshal(raw, &desc); err != nil {
			return nil, err
		}
		if desc.Digest.Validate() == nil || errors.Is(desc.Digest.Validate(), digest.ErrDigestUnsupported) {
			found = append(found, Referrer{desc.Digest, desc.ArtifactType, raw})
		}
	}
	return found, nil
}

// unsupported reports whether a registry does not know a question, or has no answer to it.
func unsupported(err error) bool {
	var said *upstream.StatusError
	return errors.Is(err, chunk.ErrNotFound) || errors.As(err, &said) && slices.Contains([]int{
		http.StatusMethodNotAllowed, http.StatusNotAcceptable, http.StatusNotImplemented,
	}, said.Code)
}

// fallbackReferrers reads the index that clients keep under a tag. What is not
// there, or is no index, names no referrers.
func fallbackReferrers(ctx context.Context, up Upstream, d digest.Digest) (found list[Referrer], err error) {
	m, err := up.Manifest(ctx, ref.FallbackTag(d))
	if errors.Is(err, chunk.ErrNotFound) {
		return found, nil
	}
	if err != nil || m.MediaType != ocispec.MediaTypeImageIndex {
		return found, err
	}
	items, notAnIndex := parseReferrers(m.Bytes)
	if notAnIndex != nil {
		return found, nil
	}
	return list[Referrer]{items, len(m.Bytes)}, nil
}

// allPages follows a list from page to page. Of the link to the next page only
// the query is heeded: the list is where it was asked for.
//
// Memory is taken as it is needed, and not waited for: a registry that is slow
// must not hold up the lists of others.
func allPages[T any](ctx context.Context, r *Registry, up Upstream, path string, query url.Values, parse func([]byte) ([]T, error), size func(T) int) (all list[T], err error) {
	taken := int64(0)
	defer func() { r.gathering.Release(taken) }()
	seen := make(map[string]bool)
	for range maxPages {
		page, next, err := onePage(ctx, up, path, query)
		if refusedPageSize(err) && query.Get("n") != "" && len(seen) == 0 {
			query = nil
			continue
		}
		if err != nil {
			return all, err
		}
		items, err := parsed(ctx, r, page, parse)
		if ctx.Err() != nil {
			return all, ctx.Err()
		}
		if err != nil {
			return all, fmt.Errorf("upstream: %s is not the JSON that was expected", path)
		}
		more := 0
		for _, item := range items {
			more += itemBytes + size(item)
		}
		if !r.gathering.TryAcquire(int64(more)) {
			return all, errOverloaded
		}
		taken += int64(more)
		all.size += more
		all.items = append(all.items, items...)
		switch {
		case all.size > maxListBytes:
			return all, fmt.Errorf("upstream: %s is longer than %d bytes", path, maxListBytes)
		case next == nil || seen[next.Encode()]:
			return all, nil
		}
		seen[next.Encode()] = true
		query = next
	}
	return all, fmt.Errorf("upstream: %s has more than %d pages", path, maxPages)
}

// parsed parses a page in its turn.
func parsed[T any](ctx context.Context, r *Registry, page []byte, parse func([]byte) ([]T, error)) ([]T, error) {
	if err := r.parsing.Acquire(ctx, 1); err != nil {
		return nil, err
	}
	defer r.parsing.Release(1)
	return parse(page)
}

// refusedPageSize reports whether a registry allows no pages of the size that
// was asked for.
func refusedPageSize(err error) bool {
	var said *upstream.StatusError
	return errors.As(err, &said) && said.Code == http.StatusBadRequest
}

// onePage returns the body of an answer, and the query of the page after it.
func onePage(ctx context.Context, up Upstream, path string, query url.Values) (page []byte, next url.Values, err error) {
	resp, err := up.Get(ctx, path, query, nil)
	if err != nil {
		return nil, nil, err
	}
	defer resp.Body.Close()
	page, err = io.ReadAll(io.LimitReader(resp.Body, maxPageBytes+1))
	if err == nil && len(page) > maxPageBytes {
		err = fmt.Errorf("upstream: a page of %s is larger than %d bytes", path, maxPageBytes)
	}
	return page, upstream.NextPage(resp.Header), err
}

// list returns a list that the upstream gives to the caller: the one that was
// asked for a moment ago, unless a fresh one is wanted.
func (p *Repository) list(ctx context.Context, what string, fresh bool, get func(context.Context, Upstream) (items any, size int, err error)) (any, error) {
	var items any
	err := chunk.ErrDenied
	for _, as := range p.identities() {
		key := strings.Join([]string{p.String(), what, as.Key()}, "\n")
		if kept, ok := p.registry.lists.get(key); ok && !fresh {
			return kept, nil
		}
		items, err = askAs(ctx, p, as, what, func(ctx context.Context, up Upstream) (any, error) {
			items, size, err := get(ctx, up)
			if err == nil {
				p.registry.lists.put(key, items, size)
			}
			return items, err
		})
		if !errors.Is(err, chunk.ErrDenied) {
			break
		}
	}
	return items, err
}

// lists keeps lists for as long as clients page through them. The zero value is
// ready to use.
type lists struct {
	mu    sync.Mutex
	kept  map[string]keptList
	bytes int
}

type keptList struct {
	items any
	size  int
	at    time.Time
}

func (l *lists) get(key string) (any, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	k, ok := l.kept[key]
	return k.items, ok && time.Since(k.at) < listFor
}

func (l *lists) put(key string, items any, size int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.kept == nil {
		l.kept = make(map[string]keptList)
	}
	l.remove(key)
	if size > maxListsSize {
		return
	}
	for len(l.kept) > 0 && (len(l.kept) >= maxLists || l.bytes+size > maxListsSize) {
		l.removeOldest()
	}
	l.kept[key] = keptList{items, size, time.Now()}
	l.bytes += size
}

// forget drops the lists of a repository.
func (l *lists) forget(repository string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for key := range l.kept {
		if strings.HasPrefix(key, repository+"\n") {
			l.remove(key)
		}
	}
}

func (l *lists) removeOldest() {
	oldest := ""
	for key, k := range l.kept {
		if oldest == "" || k.at.Before(l.kept[oldest].at) {
			oldest = key
		}
	}
	l.remove(oldest)
}

func (l *lists) remove(key string) {
	l.bytes -= l.kept[key].size
	delete(l.kept, key)
}

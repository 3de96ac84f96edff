package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/granary-oci/granary/chunkstore/chunk"
	"github.com/granary-oci/granary/proxy/graph"
	"github.com/granary-oci/granary/proxy/upstream"
)

// repository is one of a registry, or of a layout.
type repository interface {
	Manifest(ctx context.Context, reference string) (upstream.Manifest, error)
	Stat(ctx context.Context, d digest.Digest) (int64, error)
	Get(ctx context.Context, path string, query url.Values, header http.Header) (*http.Response, error)
}

// registrySource is a repository as what a graph is read from.
type registrySource struct{ repository repository }

// Manifest implements [graph.Source].
func (r registrySource) Manifest(ctx context.Context, desc ocispec.Descriptor) ([]byte, error) {
	m, err := r.repository.Manifest(ctx, string(desc.Digest))
	return m.Bytes, missing(err)
}

// Stat implements [graph.Source].
func (r registrySource) Stat(ctx context.Context, desc ocispec.Descriptor) (int64, error) {
	size, err := r.repository.Stat(ctx, desc.Digest)
	return size, missing(err)
}

// Resolve implements [graph.Finder].
func (r registrySource) Resolve(ctx context.Context, tag string) (ocispec.Descriptor, error) {
	m, err := r.repository.Manifest(ctx, tag)
	m.Data = m.Bytes
	return m.Descriptor, missing(err)
}

// Limits of a list of referrers.
const (
	maxReferrerPages = 1000
	maxReferrerPage  = 4 << 20 // bytes
	maxReferrers     = 32 << 10
)

// Referrers implements [graph.Finder].
func (r registrySource) Referrers(ctx context.Context, d digest.Digest) (all []ocispec.Descriptor, err error) {
	var query url.Values
	for range maxReferrerPages {
		page, header, err := r.page(ctx, "referrers/"+string(d), query)
		if err != nil {
			return nil, missing(err)
		}
		refs, err := graph.References(page)
		if err != nil {
			return nil, fmt.Errorf("page of a list: %w", err)
		}
		for _, ref := range refs {
			if ref.Role == graph.Manifest {
				all = append(all, ref.Descriptor)
			}
		}
		if query = upstream.NextPage(header); query == nil {
			return all, nil
		}
		if len(all) > maxReferrers {
			break
		}
	}
	return nil, fmt.Errorf("the list has more than %d pages or %d entries", maxReferrerPages, maxReferrers)
}

func (r registrySource) page(ctx context.Context, path string, query url.Values) ([]byte, http.Header, error) {
	resp, err := r.repository.Get(ctx, path, query, nil)
	if err != nil {
		return nil, nil, err
	}
	defer resp.Body.Close()
	page, err := io.ReadAll(io.LimitReader(resp.Body, maxReferrerPage+1))
	if err == nil && len(page) > maxReferrerPage {
		err = fmt.Errorf("a page of a list has more than %d bytes", maxReferrerPage)
	}
	return page, resp.Header, err
}

// missing says in a graph's words that something is not there.
func missing(err error) error {
	if errors.Is(err, chunk.ErrNotFound) {
		return fmt.Errorf("%w: %w", graph.ErrNotFound, err)
	}
	return err
}

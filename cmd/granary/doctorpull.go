package main

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/granary-oci/granary/chunkstore/chunk"
	"github.com/granary-oci/granary/cmd/granary/doctor"
	"github.com/granary-oci/granary/proxy"
	"github.com/granary-oci/granary/proxy/ref"
)

// maxTestPull bounds a test pull, in bytes.
const maxTestPull = 64 << 20

// pull reads the layers of an image through the node that runs, or one that lives as long
// as it takes: chunk by chunk, for the node to say where each comes from.
func (c *doctorCmd) pull(ctx context.Context, e *env, name string) (*doctor.Pull, error) {
	want, err := ref.Parse(name, c.DefaultUpstream)
	if err != nil {
		return nil, err
	}
	within := *e
	within.ctx = ctx
	url, done, err := registryFace(&within, c.DataConfig, c.nodeFlag)
	if err != nil {
		return nil, err
	}
	defer done()
	img := &image{want: want}
	if img.from, err = repositoryAt(url, c.DataConfig, want, 0); err != nil {
		return nil, err
	}
	platform, err := parsePlatform(defaultPlatform())
	if err != nil {
		return nil, err
	}
	begin := time.Now()
	if err := img.find(ctx, want, platform); err != nil {
		return nil, err
	}
	p := &doctor.Pull{Image: want.String(), Digest: img.top}
	for _, l := range img.layers {
		if p.Bytes+l.Size > maxTestPull {
			p.Cut = true
			continue
		}
		b, err := img.pullBlob(ctx, l)
		if err != nil {
			return nil, fmt.Errorf("blob %s: %w", l.Digest, err)
		}
		p.Blobs, p.Bytes = append(p.Blobs, b), p.Bytes+l.Size
	}
	p.Seconds = time.Since(begin).Seconds()
	return p, nil
}

// pullBlob reads a blob chunk by chunk, and checks it.
func (img *image) pullBlob(ctx context.Context, l ocispec.Descriptor) (doctor.PulledBlob, error) {
	b := doctor.PulledBlob{Digest: l.Digest, Size: l.Size, Chunks: make(map[string]int)}
	sum := l.Digest.Algorithm().Digester()
	for at := int64(0); at < l.Size; at += chunk.Size {
		last := min(at+chunk.Size, l.Size) - 1
		header := http.Header{"Range": {fmt.Sprintf("bytes=%d-%d", at, last)}}
		resp, err := img.from.Get(ctx, "blobs/"+string(l.Digest), nil, header)
		if err != nil {
			return b, err
		}
		n, err := io.Copy(sum.Hash(), io.LimitReader(resp.Body, last-at+2))
		resp.Body.Close()
		if err == nil && (resp.StatusCode != http.StatusPartialContent || n != last-at+1) {
			err = fmt.Errorf("%s with %d bytes came for %d", resp.Status, n, last-at+1)
		}
		if err != nil {
			return b, err
		}
		source := resp.Header.Get(proxy.SourceHeader)
		if source == "" {
			source = "unknown" // a node of an older version
		}
		b.Came(source)
	}
	if got := digest.NewDigest(l.Digest.Algorithm(), sum.Hash()); got != l.Digest {
		return b, fmt.Errorf("what came has the digest %s", got)
	}
	return b, nil
}

package main

import (
	"context"
	"crypto/sha256"
	"fmt"
	"strconv"

	"github.com/containerd/containerd/v2/pkg/reference"
	"github.com/containerd/stargz-snapshotter/cache"
	"github.com/containerd/stargz-snapshotter/fs/remote"
	"github.com/containerd/stargz-snapshotter/service/resolver"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// read reads pieces of a layer, and then all that is around them, which takes requests for
// many ranges. It prints the digest of what came.
func read(ctx context.Context, file, image, layer, size string) error {
	config, err := load(file)
	if err != nil {
		return err
	}
	spec, err := reference.Parse(image)
	if err != nil {
		return err
	}
	n, err := strconv.ParseInt(size, 10, 64)
	if err != nil {
		return err
	}
	hosts := resolver.RegistryHostsFromConfig(resolver.Config(config.ResolverConfig))
	desc := ocispec.Descriptor{Digest: digest.Digest(layer), Size: n}
	blob, err := remote.NewResolver(config.BlobConfig, nil).Resolve(ctx, hosts, spec, desc, cache.NewMemoryCache())
	if err != nil {
		return err
	}
	p := make([]byte, n)
	for at := n / 8; at < n; at += n / 4 {
		if _, err := blob.ReadAt(p[:1], at); err != nil {
			return err
		}
	}
	got, err := blob.ReadAt(p, 0)
	if err != nil {
		return err
	}
	fmt.Printf("sha256:%x\n", sha256.Sum256(p[:got]))
	return blob.Close()
}

package sites

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"net/http"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/granary-oci/granary/simtest/netns"
)

// Image is one that the registry has.
type Image struct {
	Name, Tag string
	Digest    digest.Digest
	Size      int64 // bytes of manifest, config and layers
}

// PutImage puts the manifest of an image into a repository that has its layers, and its config.
func (r *Registry) PutImage(name, tag string, config []byte, layers []ocispec.Descriptor) (*Image, error) {
	m := ocispec.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest, Layers: layers}
	m.Config = r.PutBlob(name, ocispec.MediaTypeImageConfig, config)
	p, err := json.Marshal(m)
	if err != nil {
		return nil, err
	}
	img := &Image{Name: name, Tag: tag, Digest: digest.FromBytes(p), Size: int64(len(p)) + m.Config.Size}
	for _, l := range layers {
		img.Size += l.Size
	}
	for _, reference := range []string{tag, string(img.Digest)} {
		r.put("/v2/"+name+"/manifests/"+reference, thing{mediaType: m.MediaType, digest: img.Digest, bytes: p})
	}
	return img, nil
}

// Pull has a client on a machine pull the image from a node, or from the registry, at a URL. It compares all digests.
func (i *Image) Pull(ctx context.Context, s *netns.Space, from string) error {
	c := &http.Client{Transport: &http.Transport{DialContext: s.Dial, TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}}
	defer c.CloseIdleConnections()
	n, err := netns.Pull(ctx, c, from+"/v2/"+i.Name, i.Tag, i.Digest)
	if err == nil && n != i.Size {
		err = fmt.Errorf("%d bytes, want %d", n, i.Size)
	}
	if err != nil {
		return fmt.Errorf("client on %s: %w", s.Address, err)
	}
	return nil
}

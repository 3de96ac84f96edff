package main

import (
	"fmt"
	"math/rand/v2"
	"strings"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/granary-oci/granary/simtest/sites"
)

// push makes an image of so many random bytes, of five layers, that shares none with one of another seed.
func push(r *sites.Registry, seed byte, size int64) (*sites.Image, error) {
	name := fmt.Sprint("app", seed)
	noise := rand.NewChaCha8([32]byte{seed})
	var layers []ocispec.Descriptor
	for _, share := range []int64{50, 25, 15, 8, 2} { // per cent
		p := make([]byte, size*share/100)
		_, _ = noise.Read(p)
		layers = append(layers, r.PutBlob(name, ocispec.MediaTypeImageLayer, p))
	}
	config := `{"architecture":"amd64","os":"linux","rootfs":{"type":"layers"}}` + strings.Repeat(" ", int(seed))
	return r.PutImage(name, "v1", []byte(config), layers)
}

package proxy

import (
	"encoding/json"
	"fmt"

	"github.com/opencontainers/go-digest"

	"github.com/granary-oci/granary/proxy/catalog"
)

// Limits of a manifest, beyond the size that proxy/upstream allows.
const (
	maxDescriptors = 16 << 10 // that a manifest may name
	maxMediaType   = 255      // bytes (RFC 6838, section 4.2)
	maxDepth       = 32       // of nested objects that are searched for descriptors
)

// descriptors returns every object in a manifest that has the fields of a
// descriptor (image-spec, descriptor.md): a digest, a size and a media type.
// They are looked for at any place, for descriptors are also found where the
// specification does not know them, such as within platform. A manifest that is
// not JSON names nothing.
func descriptors(manifest []byte) (map[digest.Digest]catalog.Member, error) {
	var root any
	found := make(map[digest.Digest]catalog.Member)
	if json.Unmarshal(manifest, &root) != nil {
		return found, nil
	}
	if err := collect(root, found, maxDepth); err != nil {
		return nil, err
	}
	return found, nil
}

func collect(v any, found map[digest.Digest]catalog.Member, depth int) error {
	if depth == 0 {
		return nil
	}
	switch v := v.(type) {
	case []any:
		for _, e := range v {
			if err := collect(e, found, depth-1); err != nil {
				return err
			}
		}
	case map[string]any:
		if d, m, ok := descriptor(v); ok {
			found[d] = m
		}
		if len(found) > maxDescriptors {
			return fmt.Errorf("manifest names more than %d descriptors", maxDescriptors)
		}
		for _, e := range v {
			if err := collect(e, found, depth-1); err != nil {
				return err
			}
		}
	}
	return nil
}

// descriptor reads an object as a descriptor. Sizes are JSON numbers; one that a
// float64 does not hold exactly is larger than any blob.
func descriptor(o map[string]any) (digest.Digest, catalog.Member, bool) {
	text, _ := o["digest"].(string)
	size, sized := o["size"].(float64)
	mediaType, typed := o["mediaType"].(string)
	d := digest.Digest(text)
	if !sized || !typed || len(mediaType) > maxMediaType || size < 0 || size > 1<<50 || size != float64(int64(size)) || d.Validate() != nil {
		return "", catalog.Member{}, false
	}
	return d, catalog.Member{MediaType: mediaType, Size: int64(size)}, true
}

package graph

import (
	"fmt"
	"slices"
	"strings"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// attests is the annotation by which BuildKit's index entries for provenance and SBOM name
// the image that they are about.
const attests = "vnd.docker.reference.digest"

// PlatformError says that no index has an image for a platform.
type PlatformError struct {
	Platform *ocispec.Platform
	There    []string // platforms that there are images for
}

func (e *PlatformError) Error() string {
	return fmt.Sprintf("no image for %s; there are %s", platformText(e.Platform), strings.Join(e.There, ", "))
}

// ParsePlatform reads OS/ARCH or OS/ARCH/VARIANT.
func ParsePlatform(s string) (*ocispec.Platform, error) {
	part := strings.Split(s, "/")
	if len(part) < 2 || len(part) > 3 || slices.Contains(part, "") {
		return nil, fmt.Errorf("platform %q: want OS/ARCH or OS/ARCH/VARIANT", s)
	}
	p := &ocispec.Platform{OS: part[0], Architecture: part[1]}
	if len(part) == 3 {
		p.Variant = part[2]
	}
	return p, nil
}

// Choose returns the entries of an index that are for a platform: the first that says so
// (image-spec, image-index.md), else those that say nothing of platforms, for a nested index
// may have it. A nil platform is for all. If there are none the error is a [*PlatformError].
func Choose(entries []ocispec.Descriptor, want *ocispec.Platform) (chosen []int, err error) {
	var silent []int
	var there []string
	for i, e := range entries {
		switch {
		case want == nil || e.Platform == nil:
			silent = append(silent, i)
		case matches(e.Platform, want):
			return []int{i}, nil
		default:
			there = append(there, platformText(e.Platform))
		}
	}
	if len(silent) == 0 {
		return nil, &PlatformError{want, there}
	}
	return silent, nil
}

func matches(p, want *ocispec.Platform) bool {
	same := func(have, want string) bool { return want == "" || have == want }
	return same(p.OS, want.OS) && same(p.Architecture, want.Architecture) && same(p.Variant, want.Variant) && same(p.OSVersion, want.OSVersion)
}

func platformText(p *ocispec.Platform) string {
	return strings.TrimSuffix(p.OS+"/"+p.Architecture+"/"+p.Variant, "/")
}

// platforms remembers whether the roots have an image for a platform. The zero value is
// ready to use.
type platforms struct {
	found bool
	there []string
}

func (p *platforms) err(want *ocispec.Platform) error {
	if p.found || len(p.there) == 0 {
		return nil
	}
	return &PlatformError{want, p.there}
}

// choose leaves out what stands in the entries of an index that are not for a platform. With
// attested, entries stay that are about a chosen one.
func (p *platforms) choose(want *ocispec.Platform, n *Node, refs []Reference, attested bool) []Reference {
	var entries []Reference
	for _, r := range refs {
		if r.Role == Manifest {
			entries = append(entries, r)
		}
	}
	if want == nil || len(entries) == 0 {
		p.found = p.found || n.image
		return refs
	}
	chosen := chosenOf(entries, want)
	if n.image {
		p.note(entries, chosen)
	}
	stays := make(map[int]bool) // by position in the index
	for _, r := range entries {
		stays[r.entry] = slices.ContainsFunc(chosen, func(c Reference) bool {
			return c.entry == r.entry || attested && r.Annotations[attests] == string(c.Digest)
		})
	}
	return slices.DeleteFunc(refs, func(r Reference) bool { return r.entry >= 0 && !stays[r.entry] })
}

func chosenOf(entries []Reference, want *ocispec.Platform) (chosen []Reference) {
	descs := make([]ocispec.Descriptor, len(entries))
	for i, r := range entries {
		descs[i] = r.Descriptor
	}
	which, _ := Choose(descs, want) // another index may have what this one lacks
	for _, i := range which {
		chosen = append(chosen, entries[i])
	}
	return chosen
}

// note takes note of what an index of the roots has. A nested index has to have it itself.
func (p *platforms) note(entries, chosen []Reference) {
	for _, r := range entries {
		if r.Platform != nil {
			p.there = append(p.there, platformText(r.Platform))
		}
	}
	for _, r := range chosen {
		p.found = p.found || !isIndexType(r.MediaType)
	}
}

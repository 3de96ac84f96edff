package graph

import (
	"fmt"
	"slices"
	"strings"

	"github.com/opencontainers/go-digest"
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
	return fmt.Sprintf("no image for %s; there are %s", PlatformText(e.Platform), strings.Join(e.There, ", "))
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
	return choose(entries, want, nil)
}

// Candidates returns the entries of an index that one for a platform may be chosen from: all
// that say that they are for it, else those that say nothing of platforms. A nil platform and
// the error are as for [Choose].
func Candidates(entries []ocispec.Descriptor, want *ocispec.Platform) (all []int, err error) {
	all, _, err = candidates(entries, want)
	return all, err
}

func candidates(entries []ocispec.Descriptor, want *ocispec.Platform) (all []int, said bool, err error) {
	var silent []int
	var there []string
	for i, e := range entries {
		switch {
		case want == nil || e.Platform == nil:
			silent = append(silent, i)
		case matches(e.Platform, want):
			all = append(all, i)
		default:
			there = append(there, PlatformText(e.Platform))
		}
	}
	switch {
	case len(all) > 0:
		return all, true, nil
	case len(silent) == 0:
		return nil, false, &PlatformError{want, there}
	}
	return silent, false, nil
}

// choose is Choose, but that of the candidates the first that is preferred is taken.
func choose(entries []ocispec.Descriptor, want *ocispec.Platform, prefer []digest.Digest) (chosen []int, err error) {
	all, said, err := candidates(entries, want)
	if err != nil {
		return nil, err
	}
	for _, i := range all {
		if slices.Contains(prefer, entries[i].Digest) {
			return []int{i}, nil
		}
	}
	if said {
		return all[:1], nil
	}
	return all, nil
}

func matches(p, want *ocispec.Platform) bool {
	same := func(have, want string) bool { return want == "" || have == want }
	return same(p.OS, want.OS) && same(p.Architecture, want.Architecture) && same(p.Variant, want.Variant) && same(p.OSVersion, want.OSVersion)
}

// PlatformText writes a platform as OS/ARCH or OS/ARCH/VARIANT.
func PlatformText(p *ocispec.Platform) string {
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
func (p *platforms) choose(opts Options, n *Node, refs []Reference) []Reference {
	want, attested := opts.Platform, opts.Referrers != nil
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
	chosen := chosenOf(entries, opts)
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

func chosenOf(entries []Reference, opts Options) (chosen []Reference) {
	descs := make([]ocispec.Descriptor, len(entries))
	for i, r := range entries {
		descs[i] = r.Descriptor
	}
	which, _ := choose(descs, opts.Platform, opts.Prefer) // another index may have what this one lacks
	for _, i := range which {
		chosen = append(chosen, entries[i])
	}
	return chosen
}

// note takes note of what an index of the roots has. A nested index has to have it itself.
func (p *platforms) note(entries, chosen []Reference) {
	for _, r := range entries {
		if r.Platform != nil {
			p.there = append(p.there, PlatformText(r.Platform))
		}
	}
	for _, r := range chosen {
		p.found = p.found || !IsIndex(r.MediaType)
	}
}

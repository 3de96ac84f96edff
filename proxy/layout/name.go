package layout

import (
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/granary-oci/granary/proxy/ref"
)

// containerdName is where containerd keeps the full name of an image, of which it gives
// the tag alone in the annotation that the specification has.
const containerdName = "io.containerd.image.name"

// name is what an image of the layout is called. The zero is no name.
type name struct {
	repository ref.Repository // the zero for a tag of any repository
	tag        string         // "" for none
}

// nameOf returns the name that the annotations of an entry of index.json give, in a layout
// that stands for the registry host.
func nameOf(annotations map[string]string, host string) name {
	full, given := fullName(annotations[containerdName], host), annotations[ocispec.AnnotationRefName]
	switch {
	case full.tag != "" || given == "":
		return full
	case ref.IsTag(given):
		return name{tag: given}
	}
	return fullName(given, host)
}

// fullName reads [HOST/]NAME:TAG. With a digest, by which the image is known anyway, only the
// repository counts: what a tag beside a digest names may be something else by now.
func fullName(s, host string) name {
	if s == "" {
		return name{}
	}
	r, err := ref.Parse(s, host)
	switch {
	case err != nil:
		return name{}
	case r.Digest != "":
		return name{repository: r.Repository}
	}
	return name{r.Repository, r.Tag}
}

// any reports whether it is a name in every repository.
func (n name) any() bool { return n.tag != "" && n.repository == ref.Repository{} }

// in reports whether it is a name in a repository.
func (n name) in(repo ref.Repository) bool {
	return n.tag != "" && (n.any() || n.repository == repo)
}

package layout

import (
	"strings"

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
	if n, ok := fullName(annotations[containerdName], host); ok {
		return n
	}
	given := annotations[ocispec.AnnotationRefName]
	if ref.IsTag(given) {
		return name{tag: given}
	}
	n, _ := fullName(given, host)
	return n
}

// fullName reads [HOST/]NAME:TAG.
func fullName(s, host string) (n name, ok bool) {
	if s == "" || strings.Contains(s, "@") {
		return n, false // a digest is no name: it is known anyway
	}
	r, err := ref.Parse(s, host)
	if err != nil {
		return n, false
	}
	return name{r.Repository, r.Tag}, true
}

// any reports whether it is a name in every repository.
func (n name) any() bool { return n.tag != "" && n.repository == ref.Repository{} }

// in reports whether it is a name in a repository.
func (n name) in(repo ref.Repository) bool {
	return n.tag != "" && (n.any() || n.repository == repo)
}

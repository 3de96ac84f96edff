package ref

import (
	"strings"

	"github.com/opencontainers/go-digest"
)

// Kind is what a path of the distribution specification asks for.
type Kind int

// The kinds of requests.
const (
	Base      Kind = iota // /v2/
	Manifest              // /v2/<name>/manifests/<tag or digest>
	Blob                  // /v2/<name>/blobs/<digest>
	Tags                  // /v2/<name>/tags/list
	Referrers             // /v2/<name>/referrers/<digest>
	Upload                // /v2/<name>/blobs/uploads/…
	TOC                   // /v2/<name>/_granary/toc/<digest>: of a layer
	File                  // /v2/<name>/_granary/file/<digest>?path=…: in a layer
	Mount                 // /v2/<name>/_granary/mount/<digest>: of an image's manifest, or of a layer
	Map                   // /v2/<name>/_granary/map/<digest>: of a blob, the digests of its chunks
	Recipe                // /v2/<name>/_granary/recipe/<digest>: of a layer, by what it is made again
	Contents              // /v2/<name>/_granary/contents/<digest>[?chunks=…]: of what a layer unpacks to
)

var kindNames = [...]string{"base", "manifest", "blob", "tags", "referrers", "upload", "toc", "file", "mount", "map", "recipe", "contents"}

// String returns the kind's name, as in blob.
func (k Kind) String() string { return kindNames[k] }

// Request is what a path asks for, and of whom.
type Request struct {
	Kind       Kind
	Repository Repository
	Name       string        // of the repository, as the path has it
	Tag        string        // of a manifest that is asked for by tag
	Digest     digest.Digest // of everything else
	Namespace  string        // the ns parameter as it was given, "" without one
}

// ParsePath reads a path, decoded, and the values of its ns parameter. The
// registry is that of ns, then the path is the repository's name; else a first
// element of the name that is a host, HOST__PORT if it has a port; else
// defaultHost. The error is an [*Error].
func ParsePath(path string, ns []string, defaultHost string) (Request, error) {
	var r Request
	switch {
	case len(ns) > 1:
		return Request{}, invalid("NAME_INVALID", "ns is given %d times", len(ns))
	case len(ns) == 1:
		if _, err := canonicalHost(ns[0]); err != nil {
			return Request{}, err
		}
		r.Namespace = ns[0]
	}
	rest, ok := strings.CutPrefix(path, "/v2")
	if ok && (rest == "" || rest == "/") {
		return r, nil
	}
	rest, ok2 := strings.CutPrefix(rest, "/")
	if !ok || !ok2 {
		return Request{}, invalid("NAME_UNKNOWN", "this is a registry: its paths begin with /v2/")
	}
	name, err := r.split(rest)
	if err != nil {
		return Request{}, err
	}
	r.Name = name
	r.Repository, err = repository(name, r.Namespace, defaultHost)
	return r, err
}

// split takes the end off a path that says what is asked for, and returns the
// name before it. Names may contain any of the words, so the last one counts.
func (r *Request) split(path string) (name string, err error) {
	if name, ok := strings.CutSuffix(path, "/tags/list"); ok {
		r.Kind = Tags
		return name, nil
	}
	if name, _, ok := cutLast(path, "/blobs/uploads"); ok {
		r.Kind = Upload
		return name, nil
	}
	i := strings.LastIndexByte(path, '/')
	if i < 0 {
		return "", invalid("NAME_UNKNOWN", "%q is no path of a registry", path)
	}
	before, last := path[:i], path[i+1:]
	j := strings.LastIndexByte(before, '/')
	if j < 0 {
		return "", invalid("NAME_UNKNOWN", "%q is no path of a registry", path)
	}
	name = before[:j]
	switch before[j+1:] {
	case "manifests":
		r.Kind = Manifest
		if strings.Contains(last, ":") {
			r.Digest, err = digest.Digest(last), checkDigest(last)
		} else if r.Tag = last; !tagGrammar.MatchString(last) {
			// The specification has no code for tags; to a client that asks
			// for a manifest, it is the manifest's name that is wrong.
			err = invalid("MANIFEST_INVALID", "%q is neither a tag nor a digest", last)
		}
	case "blobs":
		r.Kind = Blob
		r.Digest, err = digest.Digest(last), checkDigest(last)
	case "referrers":
		r.Kind = Referrers
		r.Digest, err = digest.Digest(last), checkDigest(last)
	case "toc", "file", "mount", "map", "recipe", "contents":
		r.Kind = map[string]Kind{"toc": TOC, "file": File, "mount": Mount, "map": Map, "recipe": Recipe, "contents": Contents}[before[j+1:]]
		before, ok := strings.CutSuffix(name, "/_granary")
		if !ok {
			return "", invalid("NAME_UNKNOWN", "%q is no path of a registry", path)
		}
		name, r.Digest, err = before, digest.Digest(last), checkDigest(last)
	default:
		err = invalid("NAME_UNKNOWN", "%q is no path of a registry", path)
	}
	return name, err
}

func cutLast(s, sep string) (before, after string, ok bool) {
	i := strings.LastIndex(s, sep)
	if i < 0 {
		return s, "", false
	}
	return s[:i], s[i+len(sep):], true
}

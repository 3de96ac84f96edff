// Package ref parses the names and paths by which images are asked for: what
// users type, and what clients put into the paths of the distribution
// specification. Names become values at the edge; past it nothing is parsed
// again.
package ref

import (
	"fmt"
	"net"
	"regexp"
	"strconv"
	"strings"

	"github.com/opencontainers/go-digest"

	_ "crypto/sha256" // the registered algorithms, for digests to be validated
	_ "crypto/sha512"
)

// Limits of names, in bytes.
const (
	maxName = 255 // of host and repository together, as other registries have it
	maxHost = 253 // of a DNS name (RFC 1035)
)

// Error says that a name from outside is malformed.
type Error struct {
	Code   string // of the distribution specification: NAME_INVALID, DIGEST_INVALID, …
	Reason string
}

func (e *Error) Error() string { return e.Reason }

func invalid(code, format string, args ...any) error {
	return &Error{code, fmt.Sprintf(format, args...)}
}

// Repository names a repository of a registry.
type Repository struct {
	Host string // of the registry, as in docker.io or [::1]:5000, in lower case
	Name string // in the registry, as in library/alpine
}

func (r Repository) String() string { return r.Host + "/" + r.Name }

// Reference names an image: by tag, by digest, or by both, when the digest
// decides.
type Reference struct {
	Repository
	Tag    string
	Digest digest.Digest
}

func (r Reference) String() string {
	s := r.Repository.String()
	if r.Tag != "" {
		s += ":" + r.Tag
	}
	if r.Digest != "" {
		s += "@" + string(r.Digest)
	}
	return s
}

// The grammar of the distribution specification, section "Pulling manifests".
var (
	nameGrammar = regexp.MustCompile(`^[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*(/[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*)*$`)
	tagGrammar  = regexp.MustCompile(`^[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}$`)
	hostGrammar = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]*[a-z0-9])?(\.[a-z0-9]([a-z0-9-]*[a-z0-9])?)*$`)
)

// Parse reads a reference as users type it: [HOST/]NAME[:TAG][@DIGEST]. A first
// element that is no host name belongs to the name, and the host is then
// defaultHost. The port of a host may be written HOST__PORT, too. Without tag and digest the tag is latest. The error is an
// [*Error].
func Parse(s, defaultHost string) (Reference, error) {
	var r Reference
	rest, d, byDigest := strings.Cut(s, "@")
	if byDigest {
		if err := checkDigest(d); err != nil {
			return Reference{}, err
		}
		r.Digest = digest.Digest(d)
	}
	if i := strings.LastIndexByte(rest, ':'); i > strings.LastIndexByte(rest, '/') && i > strings.LastIndexByte(rest, ']') {
		r.Tag = rest[i+1:]
		rest = rest[:i]
		if !tagGrammar.MatchString(r.Tag) {
			return Reference{}, invalid("MANIFEST_INVALID", "reference %q: %q is not a tag", s, r.Tag)
		}
	}
	if r.Tag == "" && !byDigest {
		r.Tag = "latest"
	}
	var err error
	r.Repository, err = repository(rest, "", defaultHost)
	return r, err
}

// IsTag reports whether s is a tag (distribution-spec, "Pulling manifests").
func IsTag(s string) bool { return tagGrammar.MatchString(s) }

// FallbackTag is the tag of the index of what refers to d (distribution-spec,
// "Referrers Tag Schema"), d being of any form.
func FallbackTag(d digest.Digest) string {
	algorithm, encoded, _ := strings.Cut(string(d), ":")
	return strings.Map(func(c rune) rune {
		if c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || strings.ContainsRune("._-", c) {
			return c
		}
		return '-'
	}, clip(algorithm, 32)+"-"+clip(encoded, 64))
}

func clip(s string, n int) string { return s[:min(len(s), n)] }

// repository finds the registry of a path: that of ns if there is one, else a
// first element that is a host name, else defaultHost.
func repository(path, ns, defaultHost string) (Repository, error) {
	r := Repository{Host: ns, Name: path}
	if ns == "" {
		r.Host = defaultHost
		if first, rest, ok := strings.Cut(path, "/"); ok && isHost(withPort(first)) {
			r.Host, r.Name = withPort(first), rest
		}
	}
	var err error
	if r.Host, err = canonicalHost(r.Host); err != nil {
		return Repository{}, err
	}
	if r.Host == dockerHub && !strings.Contains(r.Name, "/") {
		r.Name = "library/" + r.Name
	}
	if len(r.Host)+1+len(r.Name) > maxName {
		return Repository{}, invalid("NAME_INVALID", "repository name is longer than %d bytes", maxName)
	}
	if !nameGrammar.MatchString(r.Name) {
		return Repository{}, invalid("NAME_INVALID", "%q is not a repository name", r.Name)
	}
	return r, nil
}

// portSign stands for the colon before a port. Clients take no mirror whose location has a
// second colon: in a path there is none by the grammar. No host has underscores.
const portSign = "__"

// withPort returns a first element of a path with the port as others write it.
func withPort(element string) string {
	host, port, ok := strings.Cut(element, portSign)
	if ok && isHost(host) && port != "" && strings.Trim(port, "0123456789") == "" {
		return host + ":" + port
	}
	return element
}

// isHost tells a host name from the first element of a repository's name, as
// Docker does: it has a dot or a port, or is localhost.
func isHost(s string) bool { return strings.ContainsAny(s, ".:") || s == "localhost" }

// dockerHub is how the registry of Docker, Inc. is called; it answers to others.
const dockerHub = "docker.io"

var dockerHubNames = map[string]bool{"index.docker.io": true, "registry-1.docker.io": true, "registry.hub.docker.com": true}

// CanonicalHost checks a registry's host with an optional port, and returns the
// one name that it is known by here: in lower case, without the port of HTTPS,
// and docker.io for each name of that. The error is an [*Error].
func CanonicalHost(s string) (string, error) { return canonicalHost(s) }

func canonicalHost(s string) (string, error) {
	host := strings.ToLower(s)
	name, port := host, ""
	if i := strings.LastIndexByte(host, ':'); i > strings.LastIndexByte(host, ']') {
		name, port = host[:i], host[i+1:]
		if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 || port[0] == '0' {
			return "", invalid("NAME_INVALID", "%q is not the port of a registry", port)
		}
	}
	if port == "443" {
		host = name
	}
	if dockerHubNames[host] {
		return dockerHub, nil
	}
	if inner, ok := strings.CutPrefix(name, "["); ok {
		inner, ok = strings.CutSuffix(inner, "]")
		if ip := net.ParseIP(inner); ok && ip != nil && strings.Contains(inner, ":") {
			return host, nil
		}
	} else if len(name) <= maxHost && hostGrammar.MatchString(name) {
		return host, nil
	}
	return "", invalid("NAME_INVALID", "%q is not the name of a registry", s)
}

// checkDigest reports what is wrong with a digest: its form, or an algorithm
// that this program cannot compute and so not verify.
func checkDigest(s string) error {
	switch err := digest.Digest(s).Validate(); err {
	case nil:
		return nil
	case digest.ErrDigestUnsupported:
		return invalid("UNSUPPORTED", "digest %q: algorithm is not supported", s)
	default:
		return invalid("DIGEST_INVALID", "digest %q: %v", s, err)
	}
}

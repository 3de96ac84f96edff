// Package configure makes container runtimes pull through a node, by their own
// configuration files, and takes that back.
//
// A file is never encoded anew: what is ours is inserted into the text that is there,
// which so keeps its comments, its order and what nobody here knows, and the result is
// compared with what was there before it is written. Beside each file that is changed
// stands a record (FILE.granary) of its bytes before and of what was inserted. With it
// [Undo] restores the very bytes, also after several changes; from a file that
// somebody has edited since it takes out what was inserted, or leaves it alone if that
// cannot be found any more.
//
// Runtimes are never restarted: [Plan.After] says which has to be.
package configure

import (
	"cmp"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
)

// The runtimes that can be configured.
const (
	Containerd = "containerd"
	Podman     = "podman" // and all that use containers/image: Buildah, Skopeo
	CRIO       = "crio"
	Docker     = "docker"
	BuildKit   = "buildkit"
)

// Options say what is to be configured.
type Options struct {
	// Runtime is one of the constants above.
	Runtime string
	// Root is where the machine's file system is. Symlinks below it are followed as the
	// machine would. Empty is /.
	Root string
	// Mirror is the URL of the node's registry face, http or https, without a path.
	Mirror string
	// Registries are hosts, with a port if they have one. Empty is all for containerd,
	// docker.io for Docker, and for the others docker.io and the best known.
	Registries []string
	// Prepend puts the mirror before those that are configured already; else it comes
	// after them.
	Prepend bool
	// Config is the runtime's own file: containerd's config.toml, which is only read;
	// registries.conf, daemon.json, buildkitd.toml. Empty is where the runtime looks.
	Config string
	// Dir is the directory of hosts.toml files, or of drop-ins of registries.conf. Empty
	// is where the runtime looks.
	Dir string
}

// Problem is something that keeps a runtime from using the mirror, or may.
type Problem struct {
	Cause  string
	Remedy string
	Severe bool // what is configured is not read at all
}

// wellKnown are the registries that are configured where each has to be named.
var wellKnown = []string{"docker.io", "gcr.io", "ghcr.io", "mcr.microsoft.com", "public.ecr.aws", "quay.io", "registry.k8s.io"}

// defaults are the paths where a runtime looks.
var defaults = map[string]struct{ config, dir string }{
	Containerd: {"/etc/containerd/config.toml", "/etc/containerd/certs.d"},
	Podman:     {"/etc/containers/registries.conf", "/etc/containers/registries.conf.d"},
	CRIO:       {"/etc/containers/registries.conf", "/etc/containers/registries.conf.d"},
	Docker:     {"/etc/docker/daemon.json", ""},
	BuildKit:   {"/etc/buildkit/buildkitd.toml", ""},
}

var hostPattern = regexp.MustCompile(`^([a-z0-9]([a-z0-9.-]*[a-z0-9])?|\[[0-9a-f:.]+\])(:[0-9]{1,5})?$`)

const maxRegistries = 256

// setup is what Options amount to.
type setup struct {
	Options
	host   host
	mirror *url.URL
}

func newSetup(o Options) (*setup, error) {
	paths, known := defaults[o.Runtime]
	if !known {
		return nil, fmt.Errorf("there is no runtime %q here", o.Runtime)
	}
	if o.Config == "" {
		o.Config = paths.config
	}
	if o.Dir == "" {
		o.Dir = paths.dir
	}
	root, err := filepath.Abs(cmp.Or(o.Root, "/"))
	if err != nil {
		return nil, err
	}
	if info, err := os.Stat(root); err != nil || !info.IsDir() {
		return nil, fmt.Errorf("root %s: there is no such directory", o.Root)
	}
	s := &setup{Options: o, host: host{root}}
	if s.mirror, err = parseMirror(o.Mirror); err != nil {
		return nil, fmt.Errorf("mirror %q: %w", o.Mirror, err)
	}
	s.Registries = nil
	for _, r := range o.Registries {
		r = strings.ToLower(r)
		if !hostPattern.MatchString(r) {
			return nil, fmt.Errorf("registry %q: it is not HOST or HOST:PORT", r)
		}
		s.Registries = append(s.Registries, r)
	}
	slices.Sort(s.Registries)
	s.Registries = slices.Compact(s.Registries)
	if len(s.Registries) > maxRegistries {
		return nil, fmt.Errorf("there are more than %d registries", maxRegistries)
	}
	return s, nil
}

func parseMirror(s string) (*url.URL, error) {
	u, err := url.Parse(s)
	switch {
	case err != nil:
		return nil, errors.Unwrap(err)
	case u.Scheme != "http" && u.Scheme != "https" || !hostPattern.MatchString(strings.ToLower(u.Host)):
		return nil, errors.New("want http://HOST:PORT or https://HOST:PORT")
	case u.User != nil || strings.Trim(u.Path, "/") != "" || u.RawQuery != "" || u.Fragment != "":
		return nil, errors.New("want a scheme, a host and a port, and nothing more")
	}
	return &url.URL{Scheme: u.Scheme, Host: strings.ToLower(u.Host)}, nil
}

// target is a file in which something of ours is to be.
type target struct {
	path   string
	format format
}

// format knows how a runtime writes down a mirror.
type format interface {
	// insert returns what is to be inserted into a text; nothing if the mirror is there.
	insert(text []byte) ([]insertion, error)
	// decode reads a text.
	decode(text []byte) (map[string]any, error)
	// without removes the mirror from what decode has returned.
	without(doc map[string]any)
}

// targets returns the files to change, and what is to be known of them.
func (s *setup) targets() ([]target, []Problem, error) {
	switch s.Runtime {
	case Containerd:
		return s.containerdTargets()
	case Docker:
		return s.dockerTargets()
	case BuildKit:
		return []target{{s.Config, buildkitFile{s.mirror, s.named(), s.Prepend}}}, nil, nil
	}
	return s.registriesTargets()
}

// decode reads a file of the runtime.
func (s *setup) decode(text []byte) (map[string]any, error) {
	if s.Runtime == Docker {
		return daemonJSON{}.decode(text)
	}
	return decodeTOML(text)
}

// named returns the registries to configure where each has to be named.
func (s *setup) named() []string {
	if len(s.Registries) > 0 {
		return s.Registries
	}
	return wellKnown
}

// recordPlaces returns the directories and the names of all files that may have a
// record, as a pattern of [host.glob].
func (s *setup) recordPlaces() []string {
	switch s.Runtime {
	case Containerd:
		return []string{s.Dir + "/*/hosts.toml" + recordSuffix}
	case Docker, BuildKit:
		return []string{s.Config + recordSuffix}
	}
	return []string{s.Config + recordSuffix, s.Dir + "/*.conf" + recordSuffix}
}

// after says what makes the runtime take the change up.
func (s *setup) after() string {
	switch s.Runtime {
	case Containerd:
		return "containerd reads hosts.toml at each pull: nothing has to be restarted"
	case CRIO:
		return "CRI-O reads registries.conf at its start and when it is told to: systemctl reload crio"
	case Docker:
		return "Docker reads daemon.json at its start and when it is told to: systemctl reload docker"
	case BuildKit:
		return "BuildKit reads buildkitd.toml at its start: restart buildkitd"
	}
	return "podman reads registries.conf at each start: nothing has to be restarted"
}

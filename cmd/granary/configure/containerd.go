package configure

import (
	"fmt"
	"path"
	"slices"
	"strings"
)

const (
	defaultHosts = "_default" // the directory for registries that have none of their own
	hostsFile    = "hosts.toml"
)

// hostsTOML is a hosts.toml of containerd: mirrors are tables below host, and are tried
// in the order in which these stand in the file.
type hostsTOML struct {
	url     string
	prepend bool
}

func (f hostsTOML) decode(text []byte) (map[string]any, error) { return decodeTOML(text) }

// mirrors returns the hosts in the order in which they are tried. As containerd does, it
// looks at headers of tables alone.
func (f hostsTOML) mirrors(all []expression) (urls []string) {
	for _, e := range all {
		if e.header() && e.below("host") && len(e.path) > 1 && !slices.Contains(urls, e.path[1]) {
			urls = append(urls, e.path[1])
		}
	}
	return urls
}

func (f hostsTOML) insert(text []byte) ([]insertion, error) {
	_, all, err := parseTOML(text)
	if err != nil {
		return nil, err
	}
	if slices.ContainsFunc(f.mirrors(all), f.same) {
		return nil, nil
	}
	at := len(text)
	for _, e := range all {
		if f.prepend && e.header() {
			at = blockAt(text, e.at)
			break
		}
	}
	return []insertion{block(text, at, fmt.Sprintf("[host.%s]\n  capabilities = [\"pull\", \"resolve\"]\n  dial_timeout = \"1s\"\n", quoted(f.url)))}, nil
}

// same reports whether a host is the mirror.
func (f hostsTOML) same(url string) bool { return strings.TrimSuffix(url, "/") == f.url }

func (f hostsTOML) without(doc map[string]any) {
	for url := range sub(doc, "host") {
		if f.same(url) {
			delete(sub(doc, "host"), url)
		}
	}
}

// containerdTargets returns a hosts.toml for each registry, or the one for all. A
// registry that has a directory of its own gets nothing from that one.
func (s *setup) containerdTargets() (all []target, problems []Problem, err error) {
	names, err := s.host.list(s.Dir)
	if err != nil {
		return nil, nil, err
	}
	format := hostsTOML{s.mirror.String(), s.Prepend}
	for _, r := range s.Registries {
		dir := r
		if other := underscored(r); slices.Contains(names, other) {
			dir = other
		}
		all = append(all, target{path.Join(s.Dir, dir, hostsFile), format})
	}
	if len(all) > 0 {
		return all, nil, nil
	}
	for _, name := range names {
		if name == defaultHosts || strings.HasPrefix(name, ".") {
			continue
		}
		if info, err := s.host.stat(path.Join(s.Dir, name)); err != nil || info == nil || !info.IsDir() {
			continue
		}
		ours, err := s.has(target{path.Join(s.Dir, name, hostsFile), format})
		if err != nil {
			return nil, nil, err
		}
		was, _, err := s.host.record(path.Join(s.Dir, name, hostsFile))
		if err != nil {
			return nil, nil, err
		}
		if !ours || was != nil && was.Existed { // what was configured for it alone is undone
			problems = append(problems, Problem{
				fmt.Sprintf("%s has a directory of its own in %s, so what holds for all registries does not hold for it", name, s.Dir),
				fmt.Sprintf("name it, and each other registry that is to be mirrored, with --registry %s", registryOf(name)), false,
			})
		}
	}
	return []target{{path.Join(s.Dir, defaultHosts, hostsFile), format}}, problems, nil
}

// has reports whether the mirror is in a file.
func (s *setup) has(t target) (bool, error) {
	f, err := s.host.read(t.path)
	if err != nil || !f.there {
		return false, err
	}
	if _, err := t.format.decode(f.text); err != nil {
		return false, fmt.Errorf("%s: %w", t.path, err)
	}
	left, err := t.format.insert(f.text)
	return err == nil && len(left) == 0, err
}

// underscored is the other name that the directory of a registry with a port may have.
func underscored(registry string) string {
	if host, port, found := cutLast(registry, ":"); found {
		return host + "_" + port + "_"
	}
	return registry
}

// registryOf is the registry that a directory is for.
func registryOf(dir string) string {
	if host, port, found := cutLast(strings.TrimSuffix(dir, "_"), "_"); found && strings.HasSuffix(dir, "_") {
		return host + ":" + port
	}
	return dir
}

func cutLast(s, sep string) (before, after string, found bool) {
	if i := strings.LastIndex(s, sep); i > 0 {
		return s[:i], s[i+len(sep):], true
	}
	return s, "", false
}

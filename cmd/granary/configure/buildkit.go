package configure

import (
	"fmt"
	"net/url"
	"slices"
	"strings"
)

// buildkitFile is a buildkitd.toml.
type buildkitFile struct {
	mirror     *url.URL
	registries []string
	prepend    bool
}

func (f buildkitFile) decode(text []byte) (map[string]any, error) { return decodeTOML(text) }

func (f buildkitFile) mirrors(doc map[string]any, registry string) []any {
	list, _ := sub(doc, "registry", registry)["mirrors"].([]any)
	return list
}

func (f buildkitFile) insert(text []byte) ([]insertion, error) {
	doc, all, err := parseTOML(text)
	if err != nil {
		return nil, err
	}
	var insertions []insertion
	var lines strings.Builder
	for _, r := range f.registries {
		if !slices.Contains(f.mirrors(doc, r), any(f.mirror.Host)) {
			if i, ok := f.into(text, all, "mirrors", r); ok {
				insertions = append(insertions, i)
				continue
			}
			fmt.Fprintf(&lines, "[registry.%s]\n  mirrors = [%s]\n", quoted(r), quoted(f.mirror.Host))
		}
	}
	own := sub(doc, "registry", f.mirror.Host)
	if f.mirror.Scheme == "http" && own["http"] != true {
		if own != nil {
			return nil, fmt.Errorf("it has a section for the registry %s that does not say http = true: add that by hand", f.mirror.Host)
		}
		fmt.Fprintf(&lines, "[registry.%s]\n  http = true\n", quoted(f.mirror.Host))
	}
	if lines.Len() > 0 {
		insertions = append(insertions, block(text, len(text), lines.String()))
	}
	return insertions, nil
}

// into returns how to insert the mirror into the section of a registry, if it has one.
func (f buildkitFile) into(text []byte, all []expression, key, registry string) (insertion, bool) {
	element := quoted(f.mirror.Host)
	for _, e := range all {
		if !e.header() && len(e.path) == 3 && e.below("registry", registry, key) && e.list {
			open := e.end + strings.IndexByte(string(text[e.end:]), '[') + 1
			if e.first == e.last {
				return insertion{open, element}, true
			}
			return intoList(text, open, e.first, e.last, element, f.prepend), true
		}
	}
	for _, e := range all {
		if e.header() && len(e.path) == 2 && e.below("registry", registry) {
			at := afterLine(text, e.end)
			return block(text, at, fmt.Sprintf("  %s = [%s]\n", key, element)), true
		}
	}
	return insertion{}, false
}

func (f buildkitFile) without(doc map[string]any) {
	for _, r := range f.registries {
		if section := sub(doc, "registry", r); section != nil {
			section["mirrors"] = withoutString(f.mirrors(doc, r), f.mirror.Host)
		}
	}
	if f.mirror.Scheme == "http" {
		delete(sub(doc, "registry", f.mirror.Host), "http")
	}
}

package configure

import (
	"fmt"
	"path"
	"slices"
	"strings"
)

// dropIn is the file for registries that no other file speaks of.
const dropIn = "granary.conf"

// registriesConf is a registries.conf of containers/image. There a mirror has no way to
// know which registry is meant but by its location, so that names it.
type registriesConf struct {
	address  string // of the mirror
	insecure bool
	prepend  bool
	prefixes []string // of the entries that are to have it
	add      bool     // entries that are not there are made
}

func (f registriesConf) decode(text []byte) (map[string]any, error) { return decodeTOML(text) }

// prefixOf is what an entry is for.
func prefixOf(entry map[string]any) string {
	if p := text(entry, "prefix"); p != "" {
		return p
	}
	return text(entry, "location")
}

// location is where the mirror has what an entry is for: images of one that is at
// another location come from there.
func (f registriesConf) location(entry map[string]any) string {
	at := text(entry, "location")
	if at == "" {
		at = prefixOf(entry)
	}
	return f.inPath(at)
}

// inPath is where the mirror has what is at a place. The node reads HOST__PORT: with the
// colon of a port in its path, a location is none to those who read the file, who then pull
// nothing at all from the registry.
func (f registriesConf) inPath(place string) string {
	host, rest, _ := strings.Cut(place+"/", "/")
	if i := strings.LastIndexByte(host, ':'); i >= 0 {
		host = host[:i] + "__" + host[i+1:]
	}
	return strings.TrimSuffix(f.address+"/"+host+"/"+rest, "/")
}

// inName reports whether the name of a repository cannot begin with a place.
func inName(place string) error {
	if strings.HasPrefix(place, "[") {
		return fmt.Errorf("%s: a mirror's location cannot have this address in it: give the registry a name", place)
	}
	return nil
}

// mirrored reports whether an entry has the mirror.
func (f registriesConf) mirrored(entry map[string]any) bool {
	return slices.ContainsFunc(tables(entry, "mirror"), func(m map[string]any) bool { return text(m, "location") == f.location(entry) })
}

// mirrorLines are those of a mirror at a location.
func (f registriesConf) mirrorLines(location string) string {
	lines := fmt.Sprintf("[[registry.mirror]]\nlocation = %s\n", quoted(location))
	if f.insecure {
		lines += "insecure = true\n"
	}
	return lines
}

func (f registriesConf) insert(text []byte) ([]insertion, error) {
	doc, all, err := parseTOML(text)
	if err != nil {
		return nil, err
	}
	entries := tables(doc, "registry")
	spans := registrySpans(text, all)
	if len(spans) != len(entries) {
		return nil, ErrForm // they do not stand below [[registry]]
	}
	var insertions []insertion
	found := make(map[string]bool)
	for i, e := range entries {
		prefix := prefixOf(e)
		found[prefix] = true
		if !slices.Contains(f.prefixes, prefix) || f.mirrored(e) {
			continue
		}
		at := spans[i].end
		if f.prepend {
			at = spans[i].mirrors
		}
		insertions = append(insertions, block(text, at, f.mirrorLines(f.location(e))))
	}
	var lines strings.Builder
	for _, prefix := range f.prefixes {
		if f.add && !found[prefix] {
			fmt.Fprintf(&lines, "[[registry]]\nprefix = %[1]s\nlocation = %[1]s\n%[2]s", quoted(prefix), f.mirrorLines(f.inPath(prefix)))
		}
	}
	if lines.Len() > 0 {
		insertions = append(insertions, block(text, len(text), lines.String()))
	}
	return insertions, nil
}

// span is where an entry's mirrors begin, and where the entry ends.
type span struct{ mirrors, end int }

// registrySpans returns the spans of the entries of a text.
func registrySpans(text []byte, all []expression) (spans []span) {
	in := -1 // the entry that the expression belongs to
	for _, e := range all {
		if !e.header() {
			continue
		}
		at := blockAt(text, e.at)
		switch {
		case len(e.path) == 1 && e.path[0] == "registry":
			if in >= 0 {
				spans[in].close(at)
			}
			in = len(spans)
			spans = append(spans, span{-1, -1})
		case in >= 0 && e.below("registry"):
			if spans[in].mirrors < 0 {
				spans[in].mirrors = at
			}
		case in >= 0:
			spans[in].close(at)
			in = -1
		}
	}
	if in >= 0 {
		spans[in].close(len(text))
	}
	return spans
}

func (s *span) close(at int) {
	s.end = at
	if s.mirrors < 0 {
		s.mirrors = at
	}
}

func (f registriesConf) without(doc map[string]any) {
	var left []any
	for _, e := range tables(doc, "registry") {
		prefix := prefixOf(e)
		if !slices.Contains(f.prefixes, prefix) {
			left = append(left, e)
			continue
		}
		mirrors := slices.DeleteFunc(tables(e, "mirror"), func(m map[string]any) bool { return text(m, "location") == f.location(e) })
		e["mirror"] = nil
		for _, m := range mirrors {
			list, _ := e["mirror"].([]any)
			e["mirror"] = append(list, m)
		}
		bare := len(mirrors) == 0 && len(e) == 3 && text(e, "prefix") == prefix && text(e, "location") == prefix
		if !bare || !f.add { // an entry that says nothing is as good as none
			left = append(left, e)
		}
	}
	doc["registry"] = left
}

// registriesTargets returns the files that speak of the registries, and the one for
// those that none speaks of. Of several entries for one prefix the last one holds, all
// of it, so the mirror goes into that.
func (s *setup) registriesTargets() (all []target, problems []Problem, err error) {
	files, err := s.registriesFiles()
	if err != nil {
		return nil, nil, err
	}
	own := path.Join(s.Dir, dropIn)
	format := registriesConf{address: s.mirror.Host, insecure: s.mirror.Scheme == "http", prepend: s.Prepend}
	byFile := make(map[string][]string)
	for _, registry := range s.named() {
		in := own
		if err := inName(registry); err != nil {
			return nil, nil, err
		}
		for _, f := range files {
			for _, e := range f.entries {
				if err := inName(text(e, "location")); err != nil && prefixOf(e) == registry {
					return nil, nil, fmt.Errorf("%s: %s: %w", f.name, registry, err)
				}
				switch prefix := prefixOf(e); {
				case prefix == registry && e["blocked"] == true:
					problems = append(problems, Problem{fmt.Sprintf("%s blocks %s", f.name, registry), "remove blocked = true there, if images are to come from it", false})
				case prefix == registry:
					in = f.name
				case strings.HasPrefix(prefix, registry+"/"):
					problems = append(problems, Problem{fmt.Sprintf("%s has an entry of its own for %s, in which the mirror is not", f.name, prefix), "add a [[registry.mirror]] to it, with location = " + quoted(format.location(e)), false})
				}
			}
		}
		byFile[in] = append(byFile[in], registry)
	}
	for name, prefixes := range byFile {
		f := format
		f.prefixes, f.add = prefixes, name == own
		all = append(all, target{name, f})
	}
	slices.SortFunc(all, func(a, b target) int { return strings.Compare(a.path, b.path) })
	return all, problems, nil
}

// registriesFile is a file of registries as it is without what was inserted.
type registriesFile struct {
	name    string
	entries []map[string]any
}

// registriesFiles returns the files that are read, in that order.
func (s *setup) registriesFiles() ([]registriesFile, error) {
	dropIns, err := s.host.glob(s.Dir + "/*.conf")
	if err != nil {
		return nil, err
	}
	var all []registriesFile
	for _, name := range append([]string{s.Config}, dropIns...) {
		f, err := s.host.read(name)
		if err != nil {
			return nil, err
		}
		was, _, err := s.host.record(name)
		if err != nil {
			return nil, err
		}
		text := f.text
		if was != nil {
			if before, _, err := was.base(f, s.decode); err == nil {
				text = before
			}
		}
		doc, err := decodeTOML(text)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		all = append(all, registriesFile{name, tables(doc, "registry")})
	}
	return all, nil
}

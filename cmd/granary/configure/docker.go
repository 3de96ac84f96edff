package configure

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
)

const dockerMirrors = "registry-mirrors"

// daemonJSON is Docker's daemon.json.
type daemonJSON struct {
	url     string
	prepend bool
}

// member is a key of a JSON object, with where its value stands.
type member struct {
	key        string
	begin, end int
}

// object returns the members of the object that a JSON text is, where it was opened and
// where its first key begins.
func object(text []byte) (members []member, open, first int, err error) {
	d := json.NewDecoder(bytes.NewReader(text))
	t, err := d.Token()
	if err != nil {
		return nil, 0, 0, err
	}
	if t != json.Delim('{') {
		return nil, 0, 0, errors.New("it is no JSON object")
	}
	open = int(d.InputOffset())
	for d.More() {
		key, err := d.Token()
		if err != nil {
			return nil, 0, 0, err
		}
		if len(members) == 0 {
			first = open + bytes.IndexByte(text[open:], '"')
		}
		var value json.RawMessage
		if err := d.Decode(&value); err != nil {
			return nil, 0, 0, err
		}
		end := int(d.InputOffset())
		members = append(members, member{fmt.Sprint(key), end - len(value), end})
	}
	if _, err = d.Token(); err == nil {
		if _, more := d.Token(); !errors.Is(more, io.EOF) {
			err = errors.New("there is something after the object")
		}
	}
	return members, open, first, err
}

func (f daemonJSON) decode(text []byte) (map[string]any, error) {
	doc := make(map[string]any)
	if len(bytes.TrimSpace(text)) == 0 {
		return doc, nil
	}
	members, _, _, err := object(text)
	if err != nil {
		return nil, err
	}
	seen := make(map[string]bool)
	for _, m := range members {
		if seen[m.key] {
			return nil, fmt.Errorf("it has the key %q twice", m.key)
		}
		seen[m.key] = true
		d := json.NewDecoder(bytes.NewReader(text[m.begin:m.end]))
		d.UseNumber()
		var value any
		if err := d.Decode(&value); err != nil {
			return nil, err
		}
		doc[m.key] = value
	}
	return doc, nil
}

func (f daemonJSON) insert(text []byte) ([]insertion, error) {
	doc, err := f.decode(text)
	if err != nil {
		return nil, err
	}
	list, _ := doc[dockerMirrors].([]any)
	if slices.ContainsFunc(list, f.same) {
		return nil, nil
	}
	value := quoted(f.url)
	entry := fmt.Sprintf("%q: [%s]", dockerMirrors, value)
	if len(bytes.TrimSpace(text)) == 0 {
		return []insertion{{len(text), "{\n  " + entry + "\n}\n"}}, nil
	}
	members, open, first, err := object(text)
	if err != nil {
		return nil, err
	}
	for _, m := range members {
		if m.key != dockerMirrors {
			continue
		}
		if text[m.begin] != '[' {
			return nil, fmt.Errorf("%q is not a list", dockerMirrors)
		}
		from, to := trimmed(text, m.begin+1, m.end-1)
		return []insertion{intoList(text, m.begin+1, from, to, value, f.prepend)}, nil
	}
	if len(members) == 0 {
		return []insertion{{open, "\n  " + entry + "\n"}}, nil
	}
	return []insertion{{members[len(members)-1].end, "," + string(text[open:first]) + entry}}, nil
}

// trimmed returns where what stands in a part of a text begins and ends.
func trimmed(text []byte, from, to int) (int, int) {
	inner := text[from:to]
	from += len(inner) - len(bytes.TrimLeft(inner, " \t\r\n"))
	return from, from + len(bytes.TrimSpace(inner))
}

// same reports whether an element of the list is the mirror.
func (f daemonJSON) same(e any) bool {
	s, ok := e.(string)
	return ok && strings.TrimSuffix(s, "/") == f.url
}

func (f daemonJSON) without(doc map[string]any) {
	if list, ok := doc[dockerMirrors].([]any); ok {
		doc[dockerMirrors] = slices.DeleteFunc(slices.Clone(list), f.same)
	}
}

func (s *setup) dockerTargets() ([]target, []Problem, error) {
	for _, r := range s.Registries {
		if r != "docker.io" {
			return nil, nil, fmt.Errorf("registry %s: Docker uses mirrors for docker.io only; pull %s/%s/NAME for others", r, s.mirror.Host, r)
		}
	}
	return []target{{s.Config, daemonJSON{s.mirror.String(), s.Prepend}}}, nil, nil
}

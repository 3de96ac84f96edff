package configure

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/pelletier/go-toml/v2"
	"github.com/pelletier/go-toml/v2/unstable"
)

// decodeTOML reads a TOML text, as containerd does.
func decodeTOML(text []byte) (map[string]any, error) {
	doc := make(map[string]any)
	err := toml.Unmarshal(text, &doc)
	var at *toml.DecodeError
	if errors.As(err, &at) {
		row, _ := at.Position()
		return nil, lineError{row, at}
	}
	return doc, err
}

// lineError is what is wrong with a line of a file.
type lineError struct {
	line int
	err  error
}

func (e lineError) Error() string { return fmt.Sprintf("line %d: %v", e.line, e.err) }
func (e lineError) Unwrap() error { return e.err }

// expression is a table's header, or a key with its value, in a TOML text.
type expression struct {
	path []string // of the table; for a key all of its path
	kind unstable.Kind
	at   int // where its key begins
	end  int // of a header's last key, or of a value

	list        bool // of a key: the value is one
	first, last int  // where a list's elements are; equal for none
}

// parseTOML returns what a TOML text says, and where it says it.
func parseTOML(text []byte) (doc map[string]any, all []expression, err error) {
	if doc, err = decodeTOML(text); err == nil {
		all, err = expressions(text)
	}
	return doc, all, err
}

// expressions returns what a TOML text has, in order.
func expressions(text []byte) ([]expression, error) {
	var p unstable.Parser
	p.Reset(text)
	var all []expression
	var table []string
	for p.NextExpression() {
		n := p.Expression()
		e := expression{kind: n.Kind, at: -1}
		if n.Kind != unstable.Table && n.Kind != unstable.ArrayTable && n.Kind != unstable.KeyValue {
			continue
		}
		var keys []string
		for it := n.Key(); it.Next(); {
			k := it.Node()
			keys = append(keys, string(k.Data))
			if e.at < 0 {
				e.at = int(k.Raw.Offset)
			}
			e.end = int(k.Raw.Offset + k.Raw.Length)
		}
		e.path = keys
		if n.Kind == unstable.KeyValue {
			e.path = append(slices.Clone(table), keys...)
			e.value(n.Value())
		} else {
			table = keys
		}
		all = append(all, e)
	}
	return all, p.Error()
}

// value notes where the elements of a list of strings are.
func (e *expression) value(v *unstable.Node) {
	e.list = v.Kind == unstable.Array
	if !e.list {
		return
	}
	for it := v.Children(); it.Next(); {
		if raw := it.Node().Raw; raw.Length > 0 {
			if e.first == e.last {
				e.first = int(raw.Offset)
			}
			e.last = int(raw.Offset + raw.Length)
		}
	}
}

// header reports whether the expression begins a table.
func (e expression) header() bool { return e.kind != unstable.KeyValue }

// below reports whether the expression's path begins with others.
func (e expression) below(path ...string) bool {
	return len(e.path) >= len(path) && slices.Equal(e.path[:len(path)], path)
}

// afterLine returns where the line after the one begins that an offset is in.
func afterLine(text []byte, at int) int {
	if n := bytes.IndexByte(text[at:], '\n'); n >= 0 {
		return at + n + 1
	}
	return len(text)
}

// sub returns a table in a table; nil if there is none.
func sub(doc map[string]any, path ...string) map[string]any {
	for _, key := range path {
		doc, _ = doc[key].(map[string]any)
	}
	return doc
}

// text returns a string in a table; "" if there is none.
func text(doc map[string]any, key string) string {
	s, _ := doc[key].(string)
	return s
}

// tables returns the tables of an array in a table.
func tables(doc map[string]any, key string) (all []map[string]any) {
	list, _ := doc[key].([]any)
	for _, e := range list {
		if t, ok := e.(map[string]any); ok {
			all = append(all, t)
		}
	}
	return all
}

// withoutString returns a list without the strings that are s.
func withoutString(list []any, s string) []any {
	return slices.DeleteFunc(slices.Clone(list), func(e any) bool { return e == s })
}

// quoted returns a string that needs no escapes as TOML and JSON have it. Hosts and
// their URLs need none.
func quoted(s string) string { return `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`).Replace(s) + `"` }

package configure

import (
	"bytes"
	"errors"
	"maps"
	"reflect"
	"slices"
	"strings"
)

// insertion is a text of ours, and where it goes in what is there.
type insertion struct {
	at   int
	text string
}

// edit returns a text with what is to be in it, and checks that nothing else has
// changed for who reads it.
func edit(f format, text []byte) (edited []byte, pieces []string, err error) {
	before, err := f.decode(text)
	if err != nil {
		return nil, nil, err
	}
	insertions, err := f.insert(text)
	if err != nil || len(insertions) == 0 {
		return text, nil, err
	}
	slices.SortStableFunc(insertions, func(a, b insertion) int { return a.at - b.at })
	at := 0
	for _, i := range insertions {
		edited = append(append(edited, text[at:i.at]...), i.text...)
		pieces, at = append(pieces, i.text), i.at
	}
	edited = append(edited, text[at:]...)
	return edited, pieces, check(f, before, edited)
}

// ErrForm says that a file is not changed, though a runtime may understand it.
var ErrForm = errors.New("it is written in a form that this program does not change: add the mirror by hand")

// check returns an error if a text says anything else than before and the mirror.
func check(f format, before map[string]any, edited []byte) error {
	after, err := f.decode(edited)
	if err != nil {
		return ErrForm
	}
	left, err := f.insert(edited)
	if err != nil || len(left) > 0 {
		return ErrForm // the mirror did not get where it was to be
	}
	f.without(before)
	f.without(after)
	if !reflect.DeepEqual(prune(after), prune(before)) {
		return ErrForm
	}
	return nil
}

// prune returns a document without what is empty.
func prune(v any) any {
	switch v := v.(type) {
	case map[string]any:
		pruned := maps.Clone(v)
		for key, value := range v {
			if pruned[key] = prune(value); pruned[key] == nil {
				delete(pruned, key)
			}
		}
		if len(pruned) > 0 {
			return pruned
		}
		return nil
	case []any:
		var pruned []any
		for _, e := range v {
			pruned = append(pruned, prune(e))
		}
		if len(pruned) > 0 {
			return pruned
		}
		return nil
	}
	return v
}

var errEdited = errors.New("it has been edited since, and what was added cannot be told apart any more")

// cut takes pieces out of a text that has changed since they were inserted. The error
// is that one of them is not there, or more than once, or belongs to something now.
func cut(text []byte, pieces []string, decode func([]byte) (map[string]any, error)) ([]byte, error) {
	text = bytes.Clone(text)
	for _, p := range pieces {
		if bytes.Count(text, []byte(p)) != 1 || owns(p, text[bytes.Index(text, []byte(p))+len(p):]) {
			return nil, errEdited
		}
		text = bytes.Replace(text, []byte(p), nil, 1)
	}
	if _, err := decode(text); err != nil {
		return nil, errEdited
	}
	return text, nil
}

// owns reports whether what follows a block that was inserted belongs to the table that the block
// ends with: keys of TOML do, up to the next table.
func owns(piece string, rest []byte) bool {
	if !strings.Contains(piece, endMark) || !strings.Contains(piece, "\n[") {
		return false
	}
	for line := range bytes.Lines(rest) {
		if line = bytes.TrimSpace(line); len(line) > 0 && line[0] != '#' {
			return line[0] != '['
		}
	}
	return false
}

// lineAt returns where the line begins that an offset is in.
func lineAt(text []byte, at int) int { return bytes.LastIndexByte(text[:at], '\n') + 1 }

// blockAt returns where to insert a block of lines so that it comes before the line that
// an offset is in, and before the comments right above that line.
func blockAt(text []byte, at int) int {
	at = lineAt(text, at)
	for at > 0 {
		above := lineAt(text, at-1)
		line := bytes.TrimSpace(text[above:at])
		if len(line) == 0 || line[0] != '#' || bytes.HasPrefix(line, []byte(endMark)) {
			break
		}
		at = above
	}
	return at
}

// Marks around what is inserted into files that have comments.
const (
	beginMark = "# Added by 'granary configure', which takes it out again with --undo."
	endMark   = "# End of what 'granary configure' added."
)

// block returns lines with marks around them, to be inserted into a text at the
// beginning of a line or at its end.
func block(text []byte, at int, lines string) insertion {
	marked := beginMark + "\n" + lines + endMark + "\n"
	if at > 0 && text[at-1] != '\n' {
		marked = "\n" + marked
	}
	return insertion{at, marked}
}

// intoList returns how to insert an element into a list of a JSON or TOML text. The
// elements there stand from first to last, which are equal for an empty list whose
// bracket has been opened before.
func intoList(text []byte, open, first, last int, element string, prepend bool) insertion {
	if first == last {
		return insertion{open, element}
	}
	between := string(text[open:first])
	if len(bytes.TrimSpace(text[open:first])) > 0 { // a comment
		between = "\n"
	}
	if prepend {
		if between == "" {
			between = " "
		}
		return insertion{first, element + "," + between}
	}
	if between == "" || open == first {
		between = " "
	}
	return insertion{last, "," + between + element}
}

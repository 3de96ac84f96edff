package ref

import "strings"

// Pattern matches names: * stands for any characters, none and slashes included.
type Pattern string

// Match reports whether s is a name that the pattern means.
func (p Pattern) Match(s string) bool {
	parts := strings.Split(string(p), "*")
	if len(parts) == 1 {
		return s == string(p)
	}
	s, ok := strings.CutPrefix(s, parts[0])
	if !ok {
		return false
	}
	last := len(parts) - 1
	for _, part := range parts[1:last] { // the first place is as good as any later
		if _, s, ok = strings.Cut(s, part); !ok {
			return false
		}
	}
	return strings.HasSuffix(s, parts[last])
}

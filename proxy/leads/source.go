package leads

import (
	"regexp"
	"strings"
)

// importLine is a statement that imports, as far as its first line (The Python Language
// Reference, section 7.11).
var importLine = regexp.MustCompile(`^(?:from\s+(\.*)([\w.]*)\s+)?import\s+(.*)`)

// maxList bounds what is imported by one statement, in bytes.
const maxList = 16 << 10

// importsOf returns the names of modules that a module imports as it is read, and of what
// it imports from them, which may be modules too. What functions and classes import when
// they are used is left out.
func importsOf(source []byte) (names []string) {
	inside := -1 // how far the function or class is indented that lines are in; -1 is none
	lines := strings.Split(string(source), "\n")
	for i := 0; i < len(lines) && len(names) < maxNames; i++ {
		line := strings.TrimLeft(lines[i], " \t")
		indent := len(lines[i]) - len(line)
		if line == "" || line[0] == '#' || inside >= 0 && indent > inside {
			continue
		}
		inside = -1
		if strings.HasPrefix(line, "def ") || strings.HasPrefix(line, "class ") || strings.HasPrefix(line, "async def ") {
			inside = indent
			continue
		}
		m := importLine.FindStringSubmatch(line)
		if m == nil {
			continue
		}
		list := m[3]
		for len(list) < maxList && strings.Contains(list, "(") && !strings.Contains(list, ")") && i+1 < len(lines) {
			i++
			before, _, _ := strings.Cut(lines[i], "#")
			list += " " + strings.TrimSpace(before)
		}
		names = append(names, imported(m[2], list)...)
	}
	return names
}

// imported returns the names in the list of a statement: "a.b as c, d", or what is
// imported from a module.
func imported(from, list string) (names []string) {
	if len(from) > maxName {
		return nil
	}
	if from != "" {
		names, from = append(names, from), from+"."
	}
	list, _, _ = strings.Cut(list, "#")
	list, _, _ = strings.Cut(list, ";") // what is behind it is rare
	for _, one := range strings.Split(strings.Trim(strings.NewReplacer("(", " ", ")", " ", "\\", " ").Replace(list), " "), ",") {
		if fields := strings.Fields(one); len(fields) > 0 && fields[0] != "*" && len(fields[0]) <= maxName && len(names) < maxNames {
			names = append(names, from+fields[0])
		}
	}
	return names
}

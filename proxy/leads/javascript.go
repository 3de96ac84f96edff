package leads

import (
	"encoding/json"
	"path"
	"regexp"
	"strings"
)

const (
	modulesDir  = "node_modules"
	packageFile = "package.json"
	indexModule = "index"
)

// scriptSuffixes are those of modules of JavaScript, in the order in which a name without
// one is tried (Node.js, "CommonJS modules", "All together").
var scriptSuffixes = []string{".js", ".json", ".node", ".mjs", ".cjs"}

// isScript reports whether a file of a name is a module of JavaScript that may import others.
func isScript(base string) bool {
	switch path.Ext(base) {
	case ".js", ".mjs", ".cjs":
		return true
	}
	return false
}

// required is a name that a module imports: require("x"), import … from "x", import "x".
var required = regexp.MustCompile(`(?:\brequire\(|\bfrom |\bimport )\s*["']([^"'\s]{1,256})["']`)

// later is in lines of which what is imported may never be: that of a function, which is
// when it is called.
var later = regexp.MustCompile(`\bfunction\b|=>|\breturn\b`)

// requiredBy returns the names of modules that a module imports as it is read, as far as
// single lines tell.
func requiredBy(source []byte) (names []string) {
	for line := range strings.Lines(string(source)) {
		if len(line) > maxLineOfScript || later.MatchString(line) {
			continue
		}
		for _, m := range required.FindAllStringSubmatch(line, maxNames) {
			if len(names) == maxNames {
				return names
			}
			names = append(names, m[1])
		}
	}
	return names
}

// maxLineOfScript is the length of the longest line that is looked at, in bytes: those of
// programs that were made into one file are longer, and import nothing that is elsewhere.
const maxLineOfScript = 1 << 16

// javascript finds the modules that a module of JavaScript imports.
func (s *search) javascript(p []byte) {
	for _, name := range requiredBy(p) {
		switch {
		case strings.HasPrefix(name, "node:"):
		case strings.HasPrefix(name, "./"), strings.HasPrefix(name, "../"), name == ".", name == "..":
			s.scriptAt(path.Join(s.dir, name))
		case path.IsAbs(name):
			s.scriptAt(name)
		default:
			s.scriptOf(name)
		}
	}
}

// scriptOf adds a module of a package, from the nearest directory of packages that has it.
func (s *search) scriptOf(name string) {
	elements := 1
	if strings.HasPrefix(name, "@") {
		elements = 2
	}
	parts := strings.SplitN(name, "/", elements+1)
	if len(parts) < elements {
		return
	}
	inside := strings.Join(parts[elements:], "/")
	for dir, depth := s.dir, 0; depth < maxModulePath; dir, depth = path.Dir(dir), depth+1 {
		if path.Base(dir) != modulesDir {
			root := path.Join(dir, modulesDir, strings.Join(parts[:elements], "/"))
			if _, err := s.image.Resolve(root, true); err == nil {
				s.add(path.Join(root, packageFile))
				s.scriptAt(path.Join(root, inside))
				return
			}
		}
		if dir == "/" {
			return
		}
	}
}

// scriptAt adds the module that a path stands for: a file, one with a suffix, or what a
// directory says it is, or its index. What a directory says is in a file that has to be
// read first: see packageOf.
func (s *search) scriptAt(name string) bool {
	if _, ok := s.add(name); ok {
		return true
	}
	for _, suffix := range scriptSuffixes {
		if _, ok := s.add(name + suffix); ok {
			return true
		}
	}
	if _, ok := s.add(path.Join(name, packageFile)); ok {
		return true
	}
	return s.indexOf(name)
}

func (s *search) indexOf(dir string) bool {
	for _, suffix := range scriptSuffixes {
		if _, ok := s.add(path.Join(dir, indexModule+suffix)); ok {
			return true
		}
	}
	return false
}

// packageOf finds the module that a package is, by what its package.json says.
func (s *search) packageOf(p []byte) {
	var says struct {
		Main any `json:"main"`
	}
	if json.Unmarshal(p, &says) != nil {
		return
	}
	main, _ := says.Main.(string)
	if main == "" || len(main) > 256 || !s.scriptAt(path.Join(s.dir, main)) {
		s.indexOf(s.dir)
	}
}

package leads

import (
	"bytes"
	"io"
	"path"
	"slices"
	"strconv"
	"strings"

	"github.com/granary-oci/granary/toc"
)

const (
	sourceSuffix    = ".py"
	compiledSuffix  = ".pyc"
	extensionSuffix = ".so"
	compiledDir     = "__pycache__" // PEP 3147
	packageModule   = "__init__"    // what of a package is read when it is imported
	extensionsDir   = "lib-dynload" // of the standard library's extensions, beside its modules
	maxModulePath   = 32            // elements of a module's name
	maxModuleName   = 64            // bytes of one that an extension has as a constant
)

// folder returns the name of the directory that a name is in: "" is the root.
func folder(name string) string { return name[:max(0, strings.LastIndexByte(name, '/'))] }

// startModules are read by Python before any program, unless they are frozen: see there.
var startModules = []string{
	"encodings", "encodings.aliases", "encodings.utf_8", "sitecustomize", "codecs", "io", "abc", "site", "os", "stat",
	"posixpath", "genericpath", "_collections_abc", "_sitebuiltins",
}

// startFiles are read then, and startConversions in the directory of the libraries, because
// Python takes the locale C.UTF-8 for C (PEP 538), and wants to know the time.
var startFiles = []string{"/usr/lib/locale/C.utf8/LC_CTYPE", "/etc/localtime"}

const startConversions = "/gconv/gconv-modules.cache"

// python finds what Python reads at its start, if the file is called that:
// "bin/python3.11" reads "lib/python3.11/encodings" first.
func (s *search) python() {
	minor, ok := strings.CutPrefix(s.base, "python3.")
	version, err := strconv.Atoi(minor)
	if !ok || err != nil {
		return
	}
	modules := slices.Clone(startModules)
	if version >= 11 {
		modules = slices.DeleteFunc(modules, isFrozen)
	}
	s.imports(toc.Clean(path.Join(s.dir, "../lib", s.base)), modules)
	for _, name := range startFiles {
		s.add(name)
	}
	for _, dir := range s.learned(&s.libraries) {
		s.add(dir + startConversions)
	}
}

// module is what a directory has by the name of a module: files, of which one is read,
// or a directory that is a package.
type module struct {
	compiled, source string
	extensions       []string
	folder           bool
}

// modulesIn returns the modules of a directory, by name. It looks once.
func (f *Finder) modulesIn(dir string) map[string]module {
	f.mu.Lock()
	defer f.mu.Unlock()
	if found, ok := f.modules[dir]; ok {
		return found
	}
	if len(f.modules) > 1<<12 {
		clear(f.modules)
	}
	found := make(map[string]module)
	for i := range f.image.Positions(dir, 0) {
		file := f.image.At(i)
		base := path.Base(file.Name)
		name, rest, _ := strings.Cut(base, ".")
		m := found[name]
		switch {
		case file.Type == toc.Directory && base == compiledDir:
			f.compiledIn(file.Name, found)
			continue
		case file.Type == toc.Directory:
			m.folder = true
		case rest == "py":
			m.source = file.Name
		case strings.HasSuffix(base, extensionSuffix):
			m.extensions = append(m.extensions, file.Name)
		default:
			continue
		}
		found[name] = m
	}
	f.modules[dir] = found
	return found
}

// compiledIn adds the compiled modules of a directory, those that are read without
// options: "os.cpython-311.pyc", and not "os.cpython-311.opt-1.pyc".
func (f *Finder) compiledIn(dir string, found map[string]module) {
	for i := range f.image.Positions(dir, 0) {
		base := path.Base(f.image.At(i).Name)
		name, rest, _ := strings.Cut(base, ".")
		if strings.Count(rest, ".") == 1 && strings.HasSuffix(rest, compiledSuffix) {
			m := found[name]
			m.compiled = dir + "/" + base
			found[name] = m
		}
	}
}

// compiled finds the modules that a compiled module imports, and its source, if that is
// read to see whether it has changed.
func (s *search) compiled(name string, p []byte) {
	c, ok := readCompiled(p)
	if !ok {
		return
	}
	home := folder(name)
	if path.Base(home) == compiledDir {
		home = folder(home)
	}
	if c.checked {
		s.checked.Store(true) // as all are that were compiled with it
		module, _, _ := strings.Cut(path.Base(name), ".")
		s.add(home + "/" + module + sourceSuffix)
	}
	s.imports(home, c.names)
}

// source finds the modules that a module imports, and its interpreter if it may be run
// as a program, unless it is compiled: then that is read, and its source only compared.
func (s *search) source(name string, p []byte) {
	home, module := folder(name), strings.TrimSuffix(s.base, sourceSuffix)
	if s.modulesIn(home)[module].compiled != "" {
		return
	}
	if strings.HasPrefix(string(p), "#!") {
		s.script(name, p)
		return
	}
	s.imports(home, importsOf(p))
}

// extension finds the modules that an extension imports: it has their names as constants,
// which are all but never the name of a module otherwise.
func (s *search) extension(r io.ReaderAt, constants []segment) {
	home, name := folder(strings.TrimPrefix(s.dir, "/")+"/"), s.base
	module, _, _ := strings.Cut(name, ".")
	if len(s.modulesIn(home)[module].extensions) == 0 {
		return
	}
	var names []string
	left := int64(maxText)
	for _, c := range constants {
		size := min(c.size, left)
		left -= size
		for text := range bytes.SplitSeq(read(r, c.offset, size), []byte{0}) {
			if isModuleName(text) && len(names) < maxNames {
				names = append(names, string(text))
			}
		}
	}
	s.imports(home, slices.DeleteFunc(names, isFrozen))
}

// isModuleName reports whether a text may be the name of a module.
func isModuleName(text []byte) bool {
	if len(text) < 3 || len(text) > maxModuleName {
		return false
	}
	for _, c := range text {
		if c != '_' && c != '.' && (c < '0' || c > '9') && (c|0x20 < 'a' || c|0x20 > 'z') {
			return false
		}
	}
	return text[0] > '9'
}

// imports adds the modules of some names that a module in a directory may mean: those
// in its package and in the packages around, and those where names begin.
func (s *search) imports(home string, names []string) {
	root := home
	bases := []string{home}
	for root != "" && len(bases) < maxModulePath {
		if _, ok := s.modulesIn(root)[packageModule]; !ok {
			break
		}
		root = folder(root)
		bases = append(bases, root)
	}
	s.learn(&s.roots, root)
	for _, known := range s.learned(&s.roots) {
		if !slices.Contains(bases, known) {
			bases = append(bases, known)
		}
	}
	for _, dir := range slices.Clone(bases) {
		if s.modulesIn(dir)[extensionsDir].folder {
			bases = append(bases, dir+"/"+extensionsDir)
		}
	}
	for _, name := range names {
		for _, dir := range bases {
			s.module(dir, strings.Split(name, "."))
		}
	}
}

// module adds what is read of the module that a name stands for, seen from a directory,
// and of the packages that it is in.
func (s *search) module(dir string, name []string) {
	for _, element := range name[:min(len(name), maxModulePath)] {
		m, ok := s.modulesIn(dir)[element]
		if !ok {
			return
		}
		if m.folder {
			dir = toc.Clean(dir + "/" + element)
			if inside, ok := s.modulesIn(dir)[packageModule]; ok {
				s.addModule(inside)
				continue
			}
		}
		s.addModule(m)
	}
}

func (s *search) addModule(m module) {
	switch {
	case len(m.extensions) > 0:
		for _, name := range m.extensions {
			s.add(name)
		}
	case m.compiled != "":
		s.add(m.compiled)
		if s.checked.Load() {
			s.add(m.source)
		}
	case m.source != "":
		s.add(m.source)
	}
}

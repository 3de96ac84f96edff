package leads

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"os"
	"reflect"
	"slices"
	"strings"
	"testing"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/granary-oci/granary/toc"
)

// files are an image: names, and what they have. A content that begins with "-> " makes
// a symlink.
type files map[string]string

// tree returns the image's tree.
func (f files) tree(t testing.TB) *toc.Tree {
	t.Helper()
	var b toc.Builder
	for _, name := range slices.Sorted(maps.Keys(f)) {
		e := toc.Entry{Name: name, Type: toc.Regular, Size: int64(len(f[name]))}
		if target, ok := strings.CutPrefix(f[name], "-> "); ok {
			e = toc.Entry{Name: name, Type: toc.Symlink, Link: target}
		}
		if err := b.Add(e); err != nil {
			t.Fatal(err)
		}
	}
	table, err := b.Done()
	if err != nil {
		t.Fatal(err)
	}
	tree, err := toc.Overlay([]*toc.Layer{{TOC: table}})
	if err != nil {
		t.Fatal(err)
	}
	return tree
}

// from returns where one of the files leads, as the finder knows it after what it was
// asked before.
func (f files) from(t testing.TB, finder *Finder, name string) (names []string) {
	t.Helper()
	file, ok := finder.image.Lookup(name)
	if !ok {
		t.Fatalf("there is no %s", name)
	}
	return namesOf(finder.From(&file, strings.NewReader(f[name])))
}

func namesOf(found []toc.File) (names []string) {
	for _, to := range found {
		names = append(names, to.Name)
	}
	return names
}

func check(t *testing.T, what string, got []string, want ...string) {
	t.Helper()
	if !reflect.DeepEqual(got, want) {
		t.Errorf("%s leads to\n%q, want\n%q", what, got, want)
	}
}

func compiledFile(t testing.TB, name string) string {
	t.Helper()
	p, err := os.ReadFile("testdata/" + name)
	if err != nil {
		t.Fatal(err)
	}
	return string(p)
}

func TestWhatAnExecutableNeeds(t *testing.T) {
	f := files{
		"bin":                            "-> usr/bin",
		"lib64":                          "-> usr/lib64",
		"usr/lib64/ld-linux-x86-64.so.2": "-> ../lib/x86_64-linux-gnu/ld-linux-x86-64.so.2",
		"usr/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2": "loader",
		"etc/ld.so.cache":                               "cache",
		"usr/lib/x86_64-linux-gnu/libc.so.6":            object64{}.String(),
		"usr/lib/x86_64-linux-gnu/libblas.so.3":         "-> /etc/alternatives/libblas",
		"etc/alternatives/libblas":                      "-> /usr/lib/x86_64-linux-gnu/blas/libblas.so.3.11",
		"usr/lib/x86_64-linux-gnu/blas/libblas.so.3.11": object64{needed: []string{"libc.so.6", "libgone.so.1"}}.String(),
		"opt/app/private/libown.so":                     object64{}.String(),
		"opt/app/bin/app": object64{
			interp: "/lib64/ld-linux-x86-64.so.2", needed: []string{"libown.so", "libblas.so.3", "libc.so.6"}, runpath: "/nothing:$ORIGIN/../private",
		}.String(),
	}
	finder := New(f.tree(t))
	check(t, "the executable", f.from(t, finder, "opt/app/bin/app"), "usr/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2", "etc/ld.so.cache",
		"opt/app/private/libown.so", "usr/lib/x86_64-linux-gnu/blas/libblas.so.3.11", "usr/lib/x86_64-linux-gnu/libc.so.6")
	check(t, "a library", f.from(t, finder, "usr/lib/x86_64-linux-gnu/blas/libblas.so.3.11"), "usr/lib/x86_64-linux-gnu/libc.so.6")
	check(t, "one that needs none", f.from(t, finder, "usr/lib/x86_64-linux-gnu/libc.so.6"))
}

func TestWhatAScriptNeeds(t *testing.T) {
	f := files{
		"bin/sh": "shell", "usr/bin/env": "env", "usr/local/bin/python3": "python",
		"usr/lib/python3.11/json/__init__.py": "", "app/helper.py": "",
		"app/sh":  "#!/bin/sh -e\nexit\n",
		"app/run": "#! /usr/bin/env -S X=1 python3 -u\nimport helper\nimport gone\n",
		"none":    "#!sh\n", "empty": "", "bang": "#!",
	}
	finder := New(f.tree(t))
	check(t, "a script", f.from(t, finder, "app/sh"), "bin/sh")
	check(t, "one in Python", f.from(t, finder, "app/run"), "usr/bin/env", "usr/local/bin/python3", "app/helper.py")
	for _, name := range []string{"none", "empty", "bang"} {
		check(t, name, f.from(t, finder, name))
	}
}

// pythonFiles is an image with a standard library and a package, compiled or not.
func pythonFiles(t testing.TB) files {
	t.Helper()
	f := files{}
	for _, module := range []string{"json", "re", "xml", "xml/dom", "collections"} {
		f["usr/lib/python3.11/"+module+"/__init__.py"] = ""
		f["usr/lib/python3.11/"+module+"/__pycache__/__init__.cpython-311.pyc"] = "compiled"
		f["usr/lib/python3.11/"+module+"/__pycache__/__init__.cpython-311.opt-1.pyc"] = "without assertions"
	}
	for _, module := range []string{"os", "random", "never", "collections/abc", "xml/dom/minidom", "this"} {
		dir, base, _ := strings.Cut(module, "/")
		if base == "" {
			dir, base = "", dir
		}
		if i := strings.LastIndexByte(base, '/'); i >= 0 {
			dir, base = dir+"/"+base[:i], base[i+1:]
		}
		f[toc.Clean("usr/lib/python3.11/"+module+".py")] = ""
		f[toc.Clean("usr/lib/python3.11/"+dir+"/__pycache__/"+base+".cpython-311.pyc")] = "compiled"
	}
	f["usr/lib/python3.11/lib-dynload/fast.cpython-311-x86_64-linux-gnu.so"] = "extension"
	f["srv/app/__init__.py"] = ""
	f["srv/app/sibling.py"] = ""
	f["srv/app/package/__init__.py"] = "import sibling\n"
	f["srv/app/package/part.py"] = ""
	return f
}

var wantOfExample = []string{
	"usr/lib/python3.11/json/__pycache__/__init__.cpython-311.pyc",
	"usr/lib/python3.11/re/__pycache__/__init__.cpython-311.pyc",
	"usr/lib/python3.11/xml/__pycache__/__init__.cpython-311.pyc",
	"usr/lib/python3.11/xml/dom/__pycache__/__init__.cpython-311.pyc",
	"usr/lib/python3.11/xml/dom/__pycache__/minidom.cpython-311.pyc",
	"srv/app/sibling.py",
	"srv/app/package/__init__.py",
	"srv/app/package/part.py",
	"usr/lib/python3.11/collections/__pycache__/__init__.cpython-311.pyc",
	"usr/lib/python3.11/collections/__pycache__/abc.cpython-311.pyc",
	"usr/lib/python3.11/lib-dynload/fast.cpython-311-x86_64-linux-gnu.so",
}

// known has a finder know where the standard library is, as whoever starts Python tells it.
func (f files) known(t testing.TB) *Finder {
	finder := New(f.tree(t))
	f.from(t, finder, "usr/lib/python3.11/os.py")
	return finder
}

func TestWhatACompiledModuleImports(t *testing.T) {
	f := pythonFiles(t)
	f["usr/lib/python3.11/os.py"] = "" // which is read by itself
	f["srv/app/__pycache__/example.cpython-311.pyc"] = compiledFile(t, "example.cpython-311.pyc")
	f["srv/app/example.py"] = "import never\n"
	delete(f, "usr/lib/python3.11/__pycache__/os.cpython-311.pyc")
	finder := f.known(t)
	check(t, "the module", f.from(t, finder, "srv/app/__pycache__/example.cpython-311.pyc"), wantOfExample...)
	check(t, "its source", f.from(t, finder, "srv/app/example.py"))
}

// TestModulesThatAreComparedWithTheirSources are read together with these.
func TestModulesThatAreComparedWithTheirSources(t *testing.T) {
	f := pythonFiles(t)
	f["srv/app/__pycache__/example.cpython-311.pyc"] = compiledFile(t, "checked.cpython-311.pyc")
	f["srv/app/example.py"] = "import never\n"
	got := f.from(t, New(f.tree(t)), "srv/app/__pycache__/example.cpython-311.pyc")
	check(t, "the module", got, "srv/app/example.py", "srv/app/sibling.py", "srv/app/package/__init__.py", "srv/app/package/part.py")
	delete(f, "usr/lib/python3.11/__pycache__/os.cpython-311.pyc")
	finder := f.known(t)
	got = f.from(t, finder, "srv/app/__pycache__/example.cpython-311.pyc")
	if !slices.Contains(got, "usr/lib/python3.11/json/__init__.py") || got[0] != "srv/app/example.py" {
		t.Errorf("%q", got)
	}
}

func TestWhatAModuleImports(t *testing.T) {
	f := pythonFiles(t)
	f["srv/app/example.py"] = compiledFile(t, "example.py.txt")
	delete(f, "usr/lib/python3.11/__pycache__/os.cpython-311.pyc")
	finder := f.known(t)
	want := append(slices.Clone(wantOfExample[:10]), "usr/lib/python3.11/os.py", wantOfExample[10])
	check(t, "the module", f.from(t, finder, "srv/app/example.py"), want...)
	check(t, "one of a package", f.from(t, finder, "srv/app/package/__init__.py"), "srv/app/sibling.py")
}

func TestImportsOf(t *testing.T) {
	for source, want := range map[string]string{
		"import a, b.c as d # e\nimport f":                                "a b.c f",
		"from a import b as c, d":                                         "a a.b a.d",
		"from . import b":                                                 "b",
		"from ..a.b import *":                                             "a.b",
		"from a import (b,\n  c, # no\n  d)\nimport e":                    "a a.b a.c a.d e",
		"if x:\n  import a\ndef f():\n  import b\n\n  import c\nimport d": "a d",
		"class A:\n\timport b\nasync def f():\n import c\nimport\td":      "d",
		"importlib = 1\nfrom_ = 2\n# import a\n'import b'":                "",
		"from a import (b,":                                               "a a.b",
		"import a; import b":                                              "a",
	} {
		if got := strings.Join(importsOf([]byte(source)), " "); got != want {
			t.Errorf("%q: %q, want %q", source, got, want)
		}
	}
}

// TestVersionsOfCompiledModules: code objects have begun in two ways, and instructions are
// known of some versions.
func TestVersionsOfCompiledModules(t *testing.T) {
	for version, want := range map[int]string{
		3413: "json os", 3439: "json os", 3495: "json", 3531: "json",
		3571: "json used", 3700: "json used", // of which instructions are not known: all names
	} {
		numbers := numbersSince311
		if version < 3495 {
			numbers = numbersBefore
		}
		c, ok := readCompiled(compiledModule(version, numbers, "json", "used", "os"))
		if got := strings.Join(c.names, " "); !ok || got != want || c.checked {
			t.Errorf("%d: %q, %v, want %q", version, got, ok, want)
		}
	}
}

// compiledModule writes a module that imports the first name and the last, and uses those
// between, with constants of all kinds before.
func compiledModule(version, numbers int, names ...string) []byte {
	p := []byte{byte(version), byte(version >> 8), '\r', '\n'}
	p = append(p, make([]byte, 12)...)
	code := func(kind byte, instructions, constants, names []byte, behind int) []byte {
		b := append([]byte{kind}, make([]byte, 4*numbers)...)
		b = append(b, 's', byte(len(instructions)), 0, 0, 0)
		b = append(append(append(b, instructions...), constants...), names...)
		for i := range behind {
			if i == 5 {
				b = append(b, 0, 0, 0, 0)
				continue
			}
			b = append(b, 'N')
		}
		return b
	}
	behind := 8
	if numbers == numbersBefore {
		behind = 7
	}
	text := func(s string) []byte { return append([]byte{mShortInterned | mRemembered, byte(len(s))}, s...) }
	inner := code(mCode, []byte{1, 0}, []byte{mSmallTuple, 0}, append([]byte{mSmallTuple, 1}, text("late")...), behind)
	constants := slices.Concat(
		[]byte{mSmallTuple, 16}, inner,
		[]byte{mNone, mTrue, mFalse, mEllipsis, mStop},
		append([]byte{mInt}, 1, 2, 3, 4), append([]byte{mInt64}, make([]byte, 8)...), append([]byte{mFloat}, make([]byte, 8)...),
		append([]byte{mComplex}, make([]byte, 16)...), []byte{mFloatText, 1, '0', mComplexText, 1, '0', 1, '0'},
		[]byte{mLong, 0xfe, 0xff, 0xff, 0xff, 1, 0, 2, 0},
		[]byte{mDict, mNone, mTrue, mNull, mFrozenSet, 1, 0, 0, 0, mNone},
		text("os"), // to which the names refer
	)
	use := []byte{opImportName, 0, 101, 1, opExtended, 0, opImportName, byte(len(names) - 1)}
	list := []byte{mTuple, byte(len(names)), 0, 0, 0}
	for _, name := range names {
		if name == "os" {
			list = append(list, mRef, 1, 0, 0, 0)
			continue
		}
		list = append(list, text(name)...)
	}
	return append(p, code(mCode, use, constants, list, 0)...)
}

func TestWhatAnExtensionImports(t *testing.T) {
	f := pythonFiles(t)
	extension := object64{constants: "\x00json\x00xml.dom.minidom\x00no module\x00os\x00nothing\x00random!\x00"}.String()
	f["srv/app/_speed.cpython-311-x86_64-linux-gnu.so"] = extension
	f["usr/lib/libplain.so"] = extension
	delete(f, "usr/lib/python3.11/__pycache__/os.cpython-311.pyc")
	finder := f.known(t)
	check(t, "the extension", f.from(t, finder, "srv/app/_speed.cpython-311-x86_64-linux-gnu.so"), slices.Delete(slices.Clone(wantOfExample[:5]), 1, 2)...)
}

func TestWhatAnImageStartsWith(t *testing.T) {
	f := files{
		"usr/local/bin/node": "", "usr/bin/python3": "-> python3.11", "usr/bin/python3.11": "", "app/main.py": "", "bin/tool": "",
		"lib/ld-musl-aarch64.so.1": "", "lib64/ld-linux-x86-64.so.2": "-> /usr/lib/x/ld.so", "usr/lib/x/ld.so": "", "usr/lib/x/libc.so.6": "", "etc/ld.so.cache": "",
	}
	loaded := []string{"usr/lib/x/ld.so", "etc/ld.so.cache", "usr/lib/x/libc.so.6"}
	for name, c := range map[string]struct {
		config ocispec.ImageConfig
		want   []string
	}{
		"nothing":         {ocispec.ImageConfig{}, nil},
		"a program":       {ocispec.ImageConfig{Cmd: []string{"python3"}}, []string{"usr/bin/python3.11"}},
		"in a directory":  {ocispec.ImageConfig{Entrypoint: []string{"tool"}, Env: []string{"A=b", "PATH=/nothing:/bin"}}, []string{"bin/tool"}},
		"with arguments":  {ocispec.ImageConfig{Entrypoint: []string{"/usr/bin/python3", "-u"}, Cmd: []string{"main.py", "--fast", "gone.py", ""}, WorkingDir: "/app"}, []string{"usr/bin/python3.11", "app/main.py"}},
		"by a path":       {ocispec.ImageConfig{Cmd: []string{"./main.py"}, WorkingDir: "/app"}, []string{"app/main.py"}},
		"no such program": {ocispec.ImageConfig{Cmd: []string{"gone"}}, nil},
	} {
		check(t, name, namesOf(New(f.tree(t)).Start(c.config)), append(c.want, loaded...)...)
	}
	check(t, "musl", namesOf(New(files{"lib/ld-musl-aarch64.so.1": ""}.tree(t)).Start(ocispec.ImageConfig{})), "lib/ld-musl-aarch64.so.1")
}

// broken fails where it is read at.
type broken struct{}

func (broken) ReadAt([]byte, int64) (int, error) { return 0, errors.New("broken") }

func TestWhatCannotBeReadLeadsNowhere(t *testing.T) {
	f := files{"a.pyc": "xx", "a": "xx", "b.py": "", "c.so": ""}
	finder := New(f.tree(t))
	for name := range f {
		file, _ := finder.image.Lookup(name)
		if found := finder.From(&file, broken{}); found != nil {
			t.Errorf("%s leads to %q", name, namesOf(found))
		}
	}
}

// TestLimits has files that lead to more than is believed.
func TestLimits(t *testing.T) {
	f, source := files{}, "import x\n"
	for i := range 2 * maxLeads {
		f[fmt.Sprintf("m%d.py", i)] = ""
		source += fmt.Sprintf("import m%d\n", i)
	}
	f["all.py"] = source
	if found := f.from(t, New(f.tree(t)), "all.py"); len(found) != maxLeads {
		t.Errorf("it leads to %d files", len(found))
	}
	deep := append(bytes.Repeat([]byte{mSmallTuple, 1}, 1<<20), mNone)
	m := marshal{p: deep, numbers: numbersSince311}
	if m.object(); m.err == nil {
		t.Error("tuples in tuples in tuples are read")
	}
}

func FuzzFrom(f *testing.F) {
	image := pythonFiles(f)
	names := []string{"srv/app/__pycache__/fuzz.cpython-311.pyc", "srv/app/fuzz.py", "srv/app/fuzz.so", "srv/app/fuzz", "srv/app/fuzz.js", "srv/app/package.json"}
	for _, name := range names {
		image[name] = strings.Repeat("x", 1<<16)
	}
	finder := New(image.tree(f))
	f.Add(uint8(0), []byte(compiledFile(f, "example.cpython-311.pyc")))
	f.Add(uint8(0), compiledModule(3439, numbersBefore, "json", "used", "os"))
	f.Add(uint8(1), []byte(compiledFile(f, "example.py.txt")))
	f.Add(uint8(2), []byte(object64{interp: "/bin/sh", needed: []string{"libc.so.6"}, runpath: "$ORIGIN", constants: "\x00json\x00"}.String()))
	f.Add(uint8(3), []byte("#!/usr/bin/env -S python3\nimport json\n"))
	f.Add(uint8(4), []byte("const a = require('./sibling'), b = require('b/c')\nimport '../app'\n"))
	f.Add(uint8(5), []byte(`{"main": "fuzz"}`))
	f.Fuzz(func(t *testing.T, which uint8, p []byte) {
		file, _ := finder.image.Lookup(names[int(which)%len(names)])
		file.Size = int64(len(p))
		if found := finder.From(&file, bytes.NewReader(p)); len(found) > maxLeads {
			t.Errorf("it leads to %d files", len(found))
		}
	})
}

func BenchmarkFrom(b *testing.B) {
	f := pythonFiles(b)
	f["srv/app/__pycache__/example.cpython-311.pyc"] = compiledFile(b, "example.cpython-311.pyc")
	finder := New(f.tree(b))
	for b.Loop() {
		f.from(b, finder, "srv/app/__pycache__/example.cpython-311.pyc")
	}
}

// TestWhatIsMeantToTakeLong has files that would take much memory, or time, if they were
// believed.
func TestWhatIsMeantToTakeLong(t *testing.T) {
	long := strings.Repeat("a.", 1<<18)
	for name, source := range map[string]string{
		"a long module": "from " + long + " import " + strings.Repeat("b,", 1<<16), "long names": "import " + long + "," + long,
		"a list without end": "import (" + strings.Repeat("\n", 1<<20), "a list of much": "import (\n" + strings.Repeat("a,\n", 1<<18),
	} {
		size := 0
		for _, name := range importsOf([]byte(source)) {
			size += len(name)
		}
		if size > maxNames*maxName {
			t.Errorf("%s: names of %d bytes", name, size)
		}
	}
	c, _ := readCompiled(compiledModule(3495, numbersSince311, strings.Repeat("x", 200), "used", "os"))
	if len(c.names) != 1 {
		t.Errorf("%d names", len(c.names))
	}
	f := files{"bin/app": object64{needed: slices.Repeat([]string{"libc.so.6"}, 2*maxNeeded), runpath: strings.Repeat("$ORIGIN:", 400)}.String()}
	o, _ := readObject(strings.NewReader(f["bin/app"]), int64(len(f["bin/app"])))
	if len(o.needed) > maxNeeded {
		t.Errorf("%d libraries are needed", len(o.needed))
	}
}

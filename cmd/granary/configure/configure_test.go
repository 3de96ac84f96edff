package configure

import (
	"bytes"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

const mirror = "http://127.0.0.1:5050"

// machine is a file system with some files, by name.
func machine(t testing.TB, files map[string]string) string {
	t.Helper()
	root := t.TempDir()
	for name, text := range files {
		put(t, root, name, text)
	}
	return root
}

func put(t testing.TB, root, name, text string) {
	t.Helper()
	path := filepath.Join(root, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

func read(t testing.TB, root, name string) string {
	t.Helper()
	p, err := os.ReadFile(filepath.Join(root, name))
	if err != nil {
		t.Fatal(err)
	}
	return string(p)
}

// snapshot is all that is below a directory: names, modes and contents.
func snapshot(t testing.TB, root string) map[string]string {
	t.Helper()
	all := make(map[string]string)
	err := filepath.WalkDir(root, func(path string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := e.Info()
		if err != nil {
			return err
		}
		text := info.Mode().String()
		if info.Mode().IsRegular() {
			p, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			text += " " + string(p)
		}
		all[path] = text
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

func same(a, b map[string]string) string {
	for name, text := range a {
		if b[name] != text {
			return name + " was " + text + " and is " + b[name]
		}
	}
	for name := range b {
		if _, there := a[name]; !there {
			return name + " is new"
		}
	}
	return ""
}

// apply makes and applies a plan.
func apply(t testing.TB, plan func(Options) (*Plan, error), o Options) *Plan {
	t.Helper()
	if o.Mirror == "" {
		o.Mirror = mirror
	}
	p, err := plan(o)
	if err == nil {
		err = p.Apply()
	}
	if err != nil {
		t.Fatal(err)
	}
	return p
}

const ours = beginMark + "\n[host.\"http://127.0.0.1:5050\"]\n  capabilities = [\"pull\", \"resolve\"]\n  dial_timeout = \"1s\"\n" + endMark + "\n"

const mirrorEntry = beginMark + "\n[[registry.mirror]]\nlocation = \"127.0.0.1:5050/docker.io\"\ninsecure = true\n" + endMark + "\n"

// cases are files of each runtime as they are before and after.
var cases = []struct {
	name, runtime string
	prepend       bool
	registries    []string
	file          string
	before, after string // "" before is no file
}{
	{"nothing", Containerd, false, nil, "/etc/containerd/certs.d/_default/hosts.toml", "", ours},
	{"a registry alone", Containerd, false, []string{"ghcr.io"}, "/etc/containerd/certs.d/ghcr.io/hosts.toml", "", ours},
	{"after another mirror", Containerd, false, nil, "/etc/containerd/certs.d/_default/hosts.toml",
		"# a comment\nserver = \"https://a.test\"\n[host.\"https://m.test\"]\n  ca = \"x\" # here\n",
		"# a comment\nserver = \"https://a.test\"\n[host.\"https://m.test\"]\n  ca = \"x\" # here\n" + ours},
	{"before another mirror, and its comment", Containerd, true, nil, "/etc/containerd/certs.d/_default/hosts.toml",
		"server = \"https://a.test\"\n\n# the other\n[host.\"https://m.test\"]\n  capabilities = [\"pull\"]\n",
		"server = \"https://a.test\"\n\n" + ours + "# the other\n[host.\"https://m.test\"]\n  capabilities = [\"pull\"]\n"},
	{"no newline at the end", Containerd, false, nil, "/etc/containerd/certs.d/_default/hosts.toml", `server = "https://a.test"`, "server = \"https://a.test\"\n" + ours},
	{"there by hand", Containerd, true, nil, "/etc/containerd/certs.d/_default/hosts.toml", "[host.\"http://127.0.0.1:5050/\"]\n", "[host.\"http://127.0.0.1:5050/\"]\n"},

	{"nothing", Podman, false, []string{"docker.io"}, "/etc/containers/registries.conf.d/granary.conf", "",
		beginMark + "\n[[registry]]\nprefix = \"docker.io\"\nlocation = \"docker.io\"\n[[registry.mirror]]\nlocation = \"127.0.0.1:5050/docker.io\"\ninsecure = true\n" + endMark + "\n"},
	{"an entry without mirrors", Podman, false, []string{"docker.io"}, "/etc/containers/registries.conf",
		"unqualified-search-registries = [\"docker.io\"]\n[[registry]]\nlocation = \"docker.io\"\n\n# another\n[[registry]]\nprefix = \"b.test\"\n",
		"unqualified-search-registries = [\"docker.io\"]\n[[registry]]\nlocation = \"docker.io\"\n\n" + mirrorEntry + "# another\n[[registry]]\nprefix = \"b.test\"\n"},
	{"an entry with a mirror", CRIO, true, []string{"docker.io"}, "/etc/containers/registries.conf.d/10-corp.conf",
		"[[registry]]\nprefix = \"docker.io\"\nlocation = \"docker.io\"\n[[registry.mirror]]\nlocation = \"m.test\"\n",
		"[[registry]]\nprefix = \"docker.io\"\nlocation = \"docker.io\"\n" + mirrorEntry + "[[registry.mirror]]\nlocation = \"m.test\"\n"},
	{"after it", CRIO, false, []string{"docker.io"}, "/etc/containers/registries.conf.d/10-corp.conf",
		"[[registry]]\nprefix = \"docker.io\"\nlocation = \"docker.io\"\n[[registry.mirror]]\nlocation = \"m.test\"\n[aliases]\nx = \"y\"\n",
		"[[registry]]\nprefix = \"docker.io\"\nlocation = \"docker.io\"\n[[registry.mirror]]\nlocation = \"m.test\"\n" + mirrorEntry + "[aliases]\nx = \"y\"\n"},
	{"an entry at another location", Podman, false, []string{"docker.io"}, "/etc/containers/registries.conf",
		"[[registry]]\nprefix = \"docker.io\"\nlocation = \"harbor.test/hub\"\n",
		"[[registry]]\nprefix = \"docker.io\"\nlocation = \"harbor.test/hub\"\n" + strings.Replace(mirrorEntry, "/docker.io", "/harbor.test/hub", 1)},
	{"a registry with a port", Podman, false, []string{"r.test:5000"}, "/etc/containers/registries.conf.d/granary.conf", "",
		beginMark + "\n[[registry]]\nprefix = \"r.test:5000\"\nlocation = \"r.test:5000\"\n[[registry.mirror]]\nlocation = \"127.0.0.1:5050/r.test__5000\"\ninsecure = true\n" + endMark + "\n"},
	{"an entry at a location with a port", CRIO, false, []string{"docker.io"}, "/etc/containers/registries.conf",
		"[[registry]]\nprefix = \"docker.io\"\nlocation = \"harbor.test:8443/hub\"\n",
		"[[registry]]\nprefix = \"docker.io\"\nlocation = \"harbor.test:8443/hub\"\n" + strings.Replace(mirrorEntry, "/docker.io", "/harbor.test__8443/hub", 1)},

	{"nothing", Docker, false, nil, "/etc/docker/daemon.json", "", "{\n  \"registry-mirrors\": [\"http://127.0.0.1:5050\"]\n}\n"},
	{"an empty object", Docker, false, nil, "/etc/docker/daemon.json", "{}", "{\n  \"registry-mirrors\": [\"http://127.0.0.1:5050\"]\n}"},
	{"other keys", Docker, false, nil, "/etc/docker/daemon.json", "{\n\t\"z\": 1e400,\n\t\"a\": {\"b\": null}\n}\n", "{\n\t\"z\": 1e400,\n\t\"a\": {\"b\": null},\n\t\"registry-mirrors\": [\"http://127.0.0.1:5050\"]\n}\n"},
	{"after another mirror", Docker, false, nil, "/etc/docker/daemon.json",
		"{\"registry-mirrors\": [\n    \"https://m.test\"\n  ], \"a\": 1}", "{\"registry-mirrors\": [\n    \"https://m.test\",\n    \"http://127.0.0.1:5050\"\n  ], \"a\": 1}"},
	{"before another mirror", Docker, true, nil, "/etc/docker/daemon.json",
		"{\"registry-mirrors\":[\"https://m.test\"]}", "{\"registry-mirrors\":[\"http://127.0.0.1:5050\", \"https://m.test\"]}"},
	{"an empty list", Docker, true, nil, "/etc/docker/daemon.json", "{\"registry-mirrors\":[ ]}", "{\"registry-mirrors\":[\"http://127.0.0.1:5050\" ]}"},

	{"nothing", BuildKit, false, []string{"docker.io"}, "/etc/buildkit/buildkitd.toml", "",
		beginMark + "\n[registry.\"docker.io\"]\n  mirrors = [\"127.0.0.1:5050\"]\n[registry.\"127.0.0.1:5050\"]\n  http = true\n" + endMark + "\n"},
	{"another mirror", BuildKit, true, []string{"docker.io"}, "/etc/buildkit/buildkitd.toml",
		"debug = true\n[registry.\"docker.io\"]\n  mirrors = [ # ours\n    \"m.test\",\n  ]\n[registry.\"127.0.0.1:5050\"]\n  http = true\n",
		"debug = true\n[registry.\"docker.io\"]\n  mirrors = [ # ours\n    \"127.0.0.1:5050\",\n\"m.test\",\n  ]\n[registry.\"127.0.0.1:5050\"]\n  http = true\n"},
	{"a section without mirrors", BuildKit, false, []string{"docker.io"}, "/etc/buildkit/buildkitd.toml",
		"[registry.\"docker.io\"]\n  http = false\n[registry.\"127.0.0.1:5050\"]\n  http = true\n",
		"[registry.\"docker.io\"]\n" + beginMark + "\n  mirrors = [\"127.0.0.1:5050\"]\n" + endMark + "\n  http = false\n[registry.\"127.0.0.1:5050\"]\n  http = true\n"},
}

func TestWhatIsThereStays(t *testing.T) {
	for _, c := range cases {
		t.Run(c.runtime+", "+c.name, func(t *testing.T) {
			root := machine(t, nil)
			if c.before != "" {
				put(t, root, c.file, c.before)
				if err := os.Chmod(filepath.Join(root, c.file), 0o640); err != nil {
					t.Fatal(err)
				}
			}
			o := Options{Runtime: c.runtime, Root: root, Mirror: mirror, Registries: c.registries, Prepend: c.prepend}
			before := snapshot(t, root)
			p, err := New(o)
			if err != nil {
				t.Fatal(err)
			}
			if diff := same(before, snapshot(t, root)); diff != "" {
				t.Fatalf("a plan has changed something: %s", diff)
			}
			if err := p.Apply(); err != nil {
				t.Fatal(err)
			}
			if got := read(t, root, c.file); got != c.after {
				t.Errorf("got\n%s\nwant\n%s", got, c.after)
			}
			once := snapshot(t, root)
			if p := apply(t, New, o); p.Diff() != "" || p.Changes[0].Action != Keep {
				t.Errorf("the second time it changes\n%s", p.Diff())
			}
			if diff := same(once, snapshot(t, root)); diff != "" {
				t.Errorf("the second time something changed: %s", diff)
			}
			if state, err := Inspect(o); err != nil || len(state.Mirrored) != 1 {
				t.Errorf("it is not seen to be configured: %+v, %v", state, err)
			}
			o.Mirror, o.Prepend = "http://10.0.0.1:5050", !o.Prepend
			apply(t, New, o)
			apply(t, Undo, o)
			if diff := same(before, snapshot(t, root)); diff != "" {
				t.Errorf("undone, %s", diff)
			}
			if p := apply(t, Undo, o); len(p.Changes) > 0 {
				t.Errorf("undone twice: %+v", p.Changes)
			}
		})
	}
}

// edits are what somebody does to a file after it was configured.
var edits = []struct {
	runtime, file, before string
	edit                  func(string) string
	want                  string // after the undo
	refused               bool
}{
	{Containerd, "/etc/containerd/certs.d/_default/hosts.toml", "", func(s string) string { return s + "[host.\"https://m.test\"]\n" }, "[host.\"https://m.test\"]\n", false},
	{Containerd, "/etc/containerd/certs.d/_default/hosts.toml", "server = \"https://a.test\"\n", func(s string) string { return "# mine\n" + s }, "# mine\nserver = \"https://a.test\"\n", false},
	{Containerd, "/etc/containerd/certs.d/_default/hosts.toml", "", func(s string) string { return strings.Replace(s, "1s", "5s", 1) }, strings.Replace(ours, "1s", "5s", 1), true},
	{Containerd, "/etc/containerd/certs.d/_default/hosts.toml", "", func(s string) string { return s + "\n\n" }, "", false},
	{Docker, "/etc/docker/daemon.json", "{\"a\": 1}", func(s string) string { return strings.Replace(s, "1", "2", 1) }, "{\"a\": 2}", false},
	{Docker, "/etc/docker/daemon.json", "{\"registry-mirrors\": []}", func(s string) string { return strings.Replace(s, "]", `,"https://m.test"]`, 1) }, "{\"registry-mirrors\": [\"http://127.0.0.1:5050\",\"https://m.test\"]}", true},
	{Podman, "/etc/containers/registries.conf", "[[registry]]\nprefix = \"docker.io\"\n", func(s string) string { return "short-name-mode = \"permissive\"\n" + s }, "short-name-mode = \"permissive\"\n[[registry]]\nprefix = \"docker.io\"\n", false},
}

func TestUndoAfterAnEdit(t *testing.T) {
	for _, c := range edits {
		root := machine(t, nil)
		if c.before != "" {
			put(t, root, c.file, c.before)
		}
		o := Options{Runtime: c.runtime, Root: root, Mirror: mirror}
		if c.runtime == Podman {
			o.Registries = []string{"docker.io"}
		}
		apply(t, New, o)
		put(t, root, c.file, c.edit(read(t, root, c.file)))
		edited := snapshot(t, root)
		if p := apply(t, New, o); p.Diff() != "" && !c.refused && c.want != "" && !strings.Contains(read(t, root, c.file), "127.0.0.1:5050") {
			t.Errorf("configured again: %s", p.Diff())
		}
		p := apply(t, Undo, o)
		if p.Refused() != c.refused {
			t.Errorf("%s: %+v", c.file, p.Changes)
		}
		if c.refused {
			if diff := same(edited, snapshot(t, root)); diff != "" {
				t.Errorf("refused, and changed: %s", diff)
			}
			continue
		}
		got, err := os.ReadFile(filepath.Join(root, c.file))
		if string(got) != c.want || c.want == "" && err == nil {
			t.Errorf("%s: got %q, %v; want %q", c.file, got, err, c.want)
		}
		if _, err := os.Stat(filepath.Join(root, c.file+recordSuffix)); err == nil {
			t.Errorf("%s: the record is still there", c.file)
		}
	}
}

// TestWhatWasTakenOutAgainStaysOut: an edit that was there when the file was configured again, and
// that its author has taken back since, does not come back.
func TestWhatWasTakenOutAgainStaysOut(t *testing.T) {
	const name, before = "/etc/containerd/certs.d/_default/hosts.toml", "# by hand\n[host.\"https://a.test\"]\n"
	root := machine(t, map[string]string{name: before})
	o := Options{Runtime: Containerd, Root: root, Mirror: mirror, Prepend: true}
	apply(t, New, o)
	once := read(t, root, name)
	put(t, root, name, once+"[host.\"https://x.test\"]\n")
	apply(t, New, o)
	put(t, root, name, once)
	apply(t, New, o)
	if now := read(t, root, name); now != once {
		t.Errorf("configured again: %s", now)
	}
	apply(t, Undo, o)
	if now := read(t, root, name); now != before {
		t.Errorf("after the undo: %s", now)
	}
}

// TestARegistryThatNoLocationCanName is refused: what could be written would end all pulls
// from it.
func TestARegistryThatNoLocationCanName(t *testing.T) {
	root := machine(t, map[string]string{"/etc/containers/registries.conf": "[[registry]]\nprefix = \"r.test\"\nlocation = \"[::1]:5000/a\"\n"})
	for _, registry := range []string{"[::1]:5000", "r.test"} {
		if p, err := New(Options{Runtime: CRIO, Root: root, Mirror: mirror, Registries: []string{registry}}); err == nil || !strings.Contains(err.Error(), "[::1]:5000") {
			t.Errorf("%s: %v, %v", registry, p, err)
		}
	}
	apply(t, New, Options{Runtime: CRIO, Root: root, Registries: []string{"docker.io"}})
}

// TestAKeyOfOurTable that somebody has added does not become one of the table before it.
func TestAKeyOfOurTable(t *testing.T) {
	const name = "/etc/containerd/certs.d/_default/hosts.toml"
	root := machine(t, map[string]string{name: "[host.\"https://a.test\"]\n"})
	o := Options{Runtime: Containerd, Root: root, Mirror: mirror}
	apply(t, New, o)
	edited := read(t, root, name) + "  skip_verify = true\n"
	put(t, root, name, edited)
	if p := apply(t, Undo, o); !p.Refused() || read(t, root, name) != edited {
		t.Errorf("it is now %s", read(t, root, name))
	}
}

// TestACrashBetweenTheWrites holds that there is an undo also when the record was
// written and the file was not.
func TestACrashBetweenTheWrites(t *testing.T) {
	const name = "/etc/docker/daemon.json"
	root := machine(t, map[string]string{name: "{}"})
	before := snapshot(t, root)
	for i, mirror := range []string{"http://a.test", "http://b.test", "http://c.test", "http://d.test"} {
		o := Options{Runtime: Docker, Root: root, Mirror: mirror}
		p, err := New(o)
		if err != nil {
			t.Fatal(err)
		}
		if err := p.writes[0].apply(); err != nil { // and no more
			t.Fatal(err)
		}
		if undo, err := Undo(o); err != nil || undo.Refused() || string(undo.Changes[0].new) != "{}" {
			t.Errorf("crash %d: %v, %+v", i, err, undo)
		}
		apply(t, New, o)
	}
	apply(t, Undo, Options{Runtime: Docker, Root: root})
	if diff := same(before, snapshot(t, root)); diff != "" {
		t.Error(diff)
	}
}

func TestAFileThatSomebodyHasRemovedStaysAway(t *testing.T) {
	root := machine(t, map[string]string{"/etc/docker/daemon.json": "{}"})
	o := Options{Runtime: Docker, Root: root}
	apply(t, New, o)
	if err := os.Remove(filepath.Join(root, "/etc/docker/daemon.json")); err != nil {
		t.Fatal(err)
	}
	apply(t, Undo, o)
	if all := snapshot(t, filepath.Join(root, "etc/docker")); len(all) != 1 {
		t.Errorf("there is %v", all)
	}
}

func TestRegistriesThatAreNotNamedAnyMoreAreUndone(t *testing.T) {
	root := machine(t, map[string]string{"/etc/containerd/certs.d/quay.io/hosts.toml": "server = \"https://quay.io\"\n"})
	before := snapshot(t, root)
	apply(t, New, Options{Runtime: Containerd, Root: root, Registries: []string{"quay.io", "r.test:5000"}})
	p := apply(t, New, Options{Runtime: Containerd, Root: root})
	if got := read(t, root, "/etc/containerd/certs.d/quay.io/hosts.toml"); got != "server = \"https://quay.io\"\n" {
		t.Errorf("quay.io has %q", got)
	}
	if _, err := os.Stat(filepath.Join(root, "/etc/containerd/certs.d/r.test:5000")); err == nil {
		t.Error("r.test:5000 is still there")
	}
	if text := problems(p.Problems); !strings.Contains(text, "quay.io has a directory of its own") {
		t.Errorf("nobody says that quay.io is not mirrored: %s", text)
	}
	apply(t, Undo, Options{Runtime: Containerd, Root: root})
	if diff := same(before, snapshot(t, root)); diff != "" {
		t.Error(diff)
	}
}

func problems(all []Problem) string {
	var text []string
	for _, p := range all {
		text = append(text, p.Cause+": "+p.Remedy)
	}
	return strings.Join(text, "\n")
}

func TestWhatCannotBeChangedIsLeftAlone(t *testing.T) {
	outside := filepath.Join(t.TempDir(), "outside")
	for name, c := range map[string]struct {
		runtime string
		prepare func(root string) error
		want    string
	}{
		"broken TOML":     {Containerd, func(r string) error { return os.WriteFile(r+"/hosts.toml", []byte("a = 1\nb ="), 0o600) }, "line 2"},
		"broken JSON":     {Docker, func(r string) error { return os.WriteFile(r+"/daemon.json", []byte(`{"a":1`), 0o600) }, "daemon.json"},
		"two objects":     {Docker, func(r string) error { return os.WriteFile(r+"/daemon.json", []byte(`{}{}`), 0o600) }, "after the object"},
		"a key twice":     {Docker, func(r string) error { return os.WriteFile(r+"/daemon.json", []byte(`{"a":1,"a":2}`), 0o600) }, "twice"},
		"no list":         {Docker, func(r string) error { return os.WriteFile(r+"/daemon.json", []byte(`{"registry-mirrors":"x"}`), 0o600) }, "not a list"},
		"an inline table": {Containerd, func(r string) error { return os.WriteFile(r+"/hosts.toml", []byte("host = {}\n"), 0o600) }, "by hand"},
		"inline registries": {Podman, func(r string) error {
			return os.WriteFile(r+"/registries.conf", []byte(`registry = [{location = "docker.io"}]`), 0o600)
		}, "by hand"},
		"too large": {Docker, func(r string) error {
			return os.WriteFile(r+"/daemon.json", bytes.Repeat([]byte(" "), maxFile+1), 0o600)
		}, "larger than"},
		"a directory":      {Docker, func(r string) error { return os.Mkdir(r+"/daemon.json", 0o700) }, "not a regular file"},
		"a loop":           {Docker, func(r string) error { return os.Symlink("daemon.json", r+"/daemon.json") }, "too many symlinks"},
		"no directory":     {Containerd, func(r string) error { return os.WriteFile(outside, nil, 0o600) }, "not a directory"},
		"a damaged record": {Docker, func(r string) error { return os.WriteFile(r+"/daemon.json.granary", []byte("{"), 0o600) }, "damaged"},
	} {
		root := t.TempDir()
		if err := c.prepare(root); err != nil {
			t.Fatal(err)
		}
		o := Options{Runtime: c.runtime, Root: root, Mirror: mirror, Registries: []string{"docker.io"}, Dir: "/new"}
		switch {
		case name == "no directory":
			o.Root, o.Dir = filepath.Dir(outside), "/outside/certs.d"
		case c.runtime == Containerd:
			if err := os.MkdirAll(root+"/certs.d/docker.io", 0o700); err != nil {
				t.Fatal(err)
			}
			if err := os.Rename(root+"/hosts.toml", root+"/certs.d/docker.io/hosts.toml"); err != nil {
				t.Fatal(err)
			}
			o.Dir = "/certs.d"
		case c.runtime == Docker:
			o.Config = "/daemon.json"
		default:
			o.Config = "/registries.conf"
		}
		before := snapshot(t, o.Root)
		p, err := New(o)
		if err == nil {
			err = p.Apply()
		}
		if err == nil || !strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), root) {
			t.Errorf("%s: %v; want %q", name, err, c.want)
		}
		if diff := same(before, snapshot(t, o.Root)); diff != "" {
			t.Errorf("%s: %s", name, diff)
		}
	}
}

func TestSymlinksAreThoseOfTheMachine(t *testing.T) {
	root := machine(t, map[string]string{"/data/docker/daemon.json": "{}"})
	for from, to := range map[string]string{"/etc/docker": "/data/docker", "/data/docker/other.json": "../../data/./docker/daemon.json"} {
		if err := os.MkdirAll(filepath.Dir(filepath.Join(root, from)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(to, filepath.Join(root, from)); err != nil {
			t.Fatal(err)
		}
	}
	apply(t, New, Options{Runtime: Docker, Root: root, Config: "/etc/docker/other.json"})
	if got := read(t, root, "/data/docker/daemon.json"); !strings.Contains(got, mirror) {
		t.Errorf("the file that the link is to has %q", got)
	}
	if info, err := os.Lstat(filepath.Join(root, "/data/docker/other.json")); err != nil || info.Mode()&fs.ModeSymlink == 0 {
		t.Errorf("the link is gone: %v", err)
	}
}

func TestWhatWasWrittenIsTakenBack(t *testing.T) {
	root := machine(t, map[string]string{"/etc/containerd/certs.d/a.test/hosts.toml": "server = \"https://a.test\"\n"})
	p, err := New(Options{Runtime: Containerd, Root: root, Mirror: mirror, Registries: []string{"a.test", "b.test"}})
	if err != nil {
		t.Fatal(err)
	}
	put(t, root, "/etc/containerd/certs.d/b.test", "a file where a directory is to be") // after it was planned
	before := snapshot(t, root)
	if err := p.Apply(); err == nil {
		t.Fatal("it was written into a file")
	}
	if diff := same(before, snapshot(t, root)); diff != "" {
		t.Error(diff)
	}
}

func TestWrongOptionsAreRefused(t *testing.T) {
	good := Options{Runtime: Docker, Root: t.TempDir(), Mirror: mirror}
	for name, change := range map[string]func(*Options){
		"no runtime":   func(o *Options) { o.Runtime = "rkt" },
		"no root":      func(o *Options) { o.Root = "/none/such" },
		"no URL":       func(o *Options) { o.Mirror = "127.0.0.1:5050" },
		"a path":       func(o *Options) { o.Mirror += "/v2" },
		"a password":   func(o *Options) { o.Mirror = "http://a:b@c" },
		"no registry":  func(o *Options) { o.Registries = []string{"../../etc"} },
		"not Docker's": func(o *Options) { o.Registries = []string{"ghcr.io"} },
		"quotes":       func(o *Options) { o.Mirror = `http://a"b` },
	} {
		o := good
		change(&o)
		if p, err := New(o); err == nil {
			t.Errorf("%s: %+v", name, p)
		}
	}
}

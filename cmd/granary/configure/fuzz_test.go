package configure

import (
	"bytes"
	"net/url"
	"strings"
	"testing"
)

// formats are all of them, by a number.
func formats(which uint8, prepend bool) (format, *setup) {
	at, _ := url.Parse(mirror)
	switch which % 5 {
	case 0:
		return hostsTOML{mirror, prepend}, &setup{}
	case 1:
		return registriesConf{at.Host, true, prepend, []string{"docker.io", "quay.io"}, true}, &setup{}
	case 2:
		return registriesConf{at.Host, false, prepend, []string{"docker.io"}, false}, &setup{}
	case 3:
		return buildkitFile{at, []string{"docker.io"}, prepend}, &setup{}
	}
	return daemonJSON{mirror, prepend}, &setup{Options: Options{Runtime: Docker}}
}

// FuzzUndo holds that what is inserted into whatever is there is found by who reads it,
// and that all is there again without it.
func FuzzUndo(f *testing.F) {
	for _, c := range cases {
		for which := range uint8(5) {
			f.Add(which, c.before, c.prepend)
		}
	}
	f.Add(uint8(0), "host = 1", true)
	f.Add(uint8(1), "x = \"\"\"\n# a\n[host]\n\"\"\"\n[host.a]", true)
	f.Add(uint8(4), "{\"registry-mirrors\":[{}, [],\"\\u005d\"]}", false)
	f.Fuzz(func(t *testing.T, which uint8, text string, prepend bool) {
		format, s := formats(which, prepend)
		edited, pieces, err := edit(format, []byte(text))
		if err != nil {
			return
		}
		if left, err := format.insert(edited); err != nil || len(left) > 0 {
			t.Fatalf("%q: %q does not have the mirror: %v", text, edited, err)
		}
		r := record{Existed: true, Before: []byte(text), After: []string{sum(edited)}, Pieces: pieces}
		before, there, err := r.base(&file{there: true, text: edited}, s.decode)
		if err != nil || !there || string(before) != text {
			t.Fatalf("%q: got %q, %v, %v", text, before, there, err)
		}
		if before, err = cut(edited, pieces, s.decode); err == nil && string(before) != text {
			t.Fatalf("%q: cut to %q", text, before)
		}
	})
}

// FuzzEdited holds that from a file that somebody has edited nothing is taken but what
// was inserted, and that it can be read then.
func FuzzEdited(f *testing.F) {
	for which, c := range cases {
		f.Add(uint8(which), c.before, uint16(7), "\n[a]\n")
	}
	f.Fuzz(func(t *testing.T, which uint8, text string, at uint16, more string) {
		format, s := formats(which, at%2 == 0)
		edited, pieces, err := edit(format, []byte(text))
		if err != nil {
			return
		}
		where := int(at) % (len(edited) + 1)
		changed := string(edited[:where]) + more + string(edited[where:])
		left, err := cut([]byte(changed), pieces, s.decode)
		if err != nil {
			return
		}
		if _, err := s.decode(left); err != nil {
			t.Fatalf("%q: left with %q: %v", changed, left, err)
		}
		if want := len(changed) - len(strings.Join(pieces, "")); len(left) != want {
			t.Fatalf("%q: left with %q", changed, left)
		}
	})
}

func FuzzContainerdConfig(f *testing.F) {
	f.Add("version = 3\nimports = [\"*\"]\n[plugins.cri.registry]\nconfig_path = \"a:b\"\n")
	f.Add("plugins = 1\nversion = \"3\"")
	f.Add("version = 2\n[plugins.'io.containerd.grpc.v1.cri'.registry]\nconfig_path = '/etc/containerd/certs.d'\n")
	f.Fuzz(func(t *testing.T, text string) {
		doc, err := decodeTOML([]byte(text))
		if err != nil {
			return
		}
		c := containerdConfig{paths: make(map[string]string)}
		c.main(doc)
		c.add(doc)
		s := &setup{Options: Options{Config: "/etc/containerd/config.toml", Dir: "/etc/containerd/certs.d"}}
		if s.pathProblem(c) == nil && !bytes.Contains([]byte(text), []byte("certs.d")) && !strings.Contains(text, `\`) {
			t.Errorf("%q: no directory is configured, and nobody says so", text)
		}
	})
}

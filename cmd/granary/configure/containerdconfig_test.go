package configure

import (
	"strings"
	"testing"
)

func TestConfigPath(t *testing.T) {
	const v3, v2 = `[plugins."io.containerd.cri.v1.images".registry]`, `[plugins."io.containerd.grpc.v1.cri".registry]`
	const good = "\n config_path = \"/etc/containerd/certs.d\"\n"
	for name, c := range map[string]struct {
		files map[string]string
		want  string // "" is that all is well
	}{
		"version 3":            {map[string]string{"config.toml": "version = 3\n" + v3 + good}, ""},
		"version 2":            {map[string]string{"config.toml": "version = 2\n" + v2 + good}, ""},
		"version 1":            {map[string]string{"config.toml": "[plugins.cri.registry]" + good}, ""},
		"imported":             {map[string]string{"config.toml": "version = 3\nimports = [\"conf.d/*.toml\"]\n", "conf.d/x.toml": "version = 3\n" + v3 + good}, ""},
		"a slash more":         {map[string]string{"config.toml": "version = 3\n" + v3 + "\nconfig_path = \"/etc/containerd/certs.d/\"\n"}, ""},
		"no file":              {nil, "there is no /etc/containerd/config.toml"},
		"missing":              {map[string]string{"config.toml": "version = 2\n"}, "sets no config_path"},
		"section of version 2": {map[string]string{"config.toml": "version = 3\n" + v2 + good}, "is not read: it stands below " + v2},
		"section of version 3": {map[string]string{"config.toml": "version = 2\n" + v3 + good}, "is not read: it stands below " + v3},
		"two directories":      {map[string]string{"config.toml": "version = 3\n" + v3 + "\nconfig_path = \"/etc/containerd/certs.d:/etc/docker/certs.d\"\n"}, "has 2 directories"},
		"another directory":    {map[string]string{"config.toml": "version = 3\n" + v3 + "\nconfig_path = \"/var/lib/certs.d\"\n"}, "reads hosts.toml files from /var/lib/certs.d, not from"},
		"older mirrors":        {map[string]string{"config.toml": "version = 2\n" + v2 + good + `[plugins."io.containerd.grpc.v1.cri".registry.mirrors."docker.io"]` + "\nendpoint = [\"https://m.test\"]\n"}, "mirrors of the older kind"},
		"a loop of imports":    {map[string]string{"config.toml": "version = 3\nimports = [\"config.toml\"]\n" + v3 + good}, ""},
	} {
		files := make(map[string]string)
		for file, text := range c.files {
			files["/etc/containerd/"+file] = text
		}
		p := apply(t, New, Options{Runtime: Containerd, Root: machine(t, files)})
		got := problems(p.Problems)
		if (got == "") != (c.want == "") || !strings.Contains(got, c.want) {
			t.Errorf("%s: %q; want %q", name, got, c.want)
		}
		for _, problem := range p.Problems {
			if problem.Remedy == "" {
				t.Errorf("%s: no remedy for %s", name, problem.Cause)
			}
		}
	}
}

func TestRegistriesThatStayAsTheyAreAreNamed(t *testing.T) {
	root := machine(t, map[string]string{
		"/etc/containers/registries.conf": "[[registry]]\nprefix = \"docker.io/library\"\nlocation = \"docker.io/library\"\n[[registry]]\nprefix = \"quay.io\"\nblocked = true\n",
	})
	p := apply(t, New, Options{Runtime: Podman, Root: root})
	got := problems(p.Problems)
	for _, want := range []string{"an entry of its own for docker.io/library", `location = "127.0.0.1:5050/docker.io/library"`, "blocks quay.io"} {
		if !strings.Contains(got, want) {
			t.Errorf("%q is not in %s", want, got)
		}
	}
}

package configure

import (
	"fmt"
	"path"
	"path/filepath"
	"slices"
	"strings"
)

const (
	maxImports = 64 // files that a config.toml imports

	criV3 = "io.containerd.cri.v1.images"
	criV2 = "io.containerd.grpc.v1.cri"
	criV1 = "cri"
)

// containerdConfig is what containerd's config.toml, with all that it imports, says of
// registries.
type containerdConfig struct {
	there   bool
	version int64             // 0: it does not say, which is 1
	paths   map[string]string // config_path, by plugin
	mirrors string            // the plugin with mirrors of the older kind, or ""
}

// readContainerd reads config.toml. What it imports overrules it, as in containerd.
func (s *setup) readContainerd() (c containerdConfig, err error) {
	c.paths = make(map[string]string)
	todo, done := []string{s.Config}, make(map[string]bool)
	for len(todo) > 0 && len(done) < maxImports {
		name := todo[0]
		todo = todo[1:]
		if done[name] {
			continue
		}
		done[name] = true
		imports, err := s.readContainerdFile(name, &c)
		if err != nil {
			return c, err
		}
		todo = append(todo, imports...)
	}
	return c, nil
}

func (s *setup) readContainerdFile(name string, c *containerdConfig) (imports []string, err error) {
	f, err := s.host.read(name)
	if err != nil || !f.there {
		return nil, err
	}
	doc, err := decodeTOML(f.text)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	if name == s.Config {
		c.main(doc)
	}
	c.add(doc)
	list, _ := doc["imports"].([]any)
	for _, i := range list {
		pattern, _ := i.(string)
		if pattern == "" {
			continue
		}
		if !path.IsAbs(pattern) {
			pattern = path.Join(path.Dir(name), pattern)
		}
		found, err := s.host.glob(path.Clean(pattern))
		if err != nil {
			return nil, err
		}
		imports = append(imports, found...)
	}
	return imports, nil
}

// main takes what config.toml itself says.
func (c *containerdConfig) main(doc map[string]any) {
	c.there = true
	c.version, _ = doc["version"].(int64)
}

// add takes what a file says of registries.
func (c *containerdConfig) add(doc map[string]any) {
	for plugin, settings := range sub(doc, "plugins") {
		settings, _ := settings.(map[string]any)
		registry := sub(settings, "registry")
		if at := text(registry, "config_path"); at != "" {
			c.paths[plugin] = at
		}
		if len(sub(registry, "mirrors")) > 0 {
			c.mirrors = plugin
		}
	}
}

// section is the plugin in which a config.toml of this version says where hosts.toml
// files are.
func (c containerdConfig) section() string {
	switch {
	case c.version >= 3:
		return criV3
	case c.version == 2:
		return criV2
	}
	return criV1
}

// header is a section as it is written.
func header(plugin string) string {
	if plugin == criV1 {
		return "[plugins.cri.registry]"
	}
	return fmt.Sprintf("[plugins.%q.registry]", plugin)
}

// remedy says what to write into config.toml for a directory to be read.
func (c containerdConfig) remedy(file, dir string) string {
	return fmt.Sprintf("in %s, below %s, set config_path = %q, and restart containerd", file, header(c.section()), dir)
}

// inspectContainerd says whether containerd reads the directory of hosts.toml files.
func (s *setup) inspectContainerd() ([]Problem, error) {
	c, err := s.readContainerd()
	if err != nil {
		return nil, err
	}
	if !c.there {
		return []Problem{{
			fmt.Sprintf("there is no %s, which says where hosts.toml files are; of itself containerd reads none, or in newer versions two directories, which not all of it splits", s.Config),
			fmt.Sprintf("make one: for containerd 2 with version = 3 and, below %s, config_path = %q, for containerd 1 with version = 2 and the same below %s; and restart containerd", header(criV3), s.Dir, header(criV2)), false,
		}}, nil
	}
	var problems []Problem
	if p := s.pathProblem(c); p != nil {
		problems = append(problems, *p)
	}
	if c.mirrors != "" {
		problems = append(problems, Problem{
			fmt.Sprintf("%s has mirrors of the older kind below %s: containerd refuses to start its CRI with these and config_path, and reads no hosts.toml without that", s.Config, header(c.mirrors)),
			"move them into hosts.toml files, remove them there, and restart containerd", true,
		})
	}
	return problems, nil
}

// pathProblem says what is wrong with config_path.
func (s *setup) pathProblem(c containerdConfig) *Problem {
	at, set := c.paths[c.section()]
	remedy := c.remedy(s.Config, s.Dir)
	if !set {
		for other, elsewhere := range c.paths {
			return &Problem{fmt.Sprintf("config_path = %q is not read: it stands below %s, but the file says version = %d", elsewhere, header(other), max(c.version, 1)), remedy, true}
		}
		return &Problem{fmt.Sprintf("%s sets no config_path, so containerd does not read %s, or in newer versions for some pulls alone", s.Config, s.Dir), remedy, true}
	}
	dirs := filepath.SplitList(at)
	for i := range dirs {
		dirs[i] = path.Clean(dirs[i])
	}
	switch here := path.Clean(s.Dir); {
	case len(dirs) == 1 && dirs[0] == here:
		return nil
	case len(dirs) == 1 || !slices.Contains(dirs, here):
		return &Problem{
			fmt.Sprintf("containerd reads hosts.toml files from %s, not from %s", strings.Join(dirs, " and "), s.Dir),
			fmt.Sprintf("configure that directory, with --runtime-dir %s; or %s", dirs[0], remedy), true,
		}
	}
	return &Problem{fmt.Sprintf("config_path = %q has %d directories: containerd from 2.1 on takes it for the name of one when Kubernetes pulls, and so finds none", at, len(dirs)), remedy, true}
}

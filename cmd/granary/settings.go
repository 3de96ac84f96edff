package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"reflect"
	"slices"
	"strings"

	"github.com/alecthomas/kong"
	"go.yaml.in/yaml/v3"

	"github.com/granary-oci/granary/cmd/granary/node"
)

// settings resolves flags that were not given from the environment and then from
// the configuration file, and remembers where each value came from. It is a
// kong.Resolver.
type settings struct {
	file   string
	keys   map[string]*yaml.Node // by flag name
	lookup func(string) (string, bool)
	asked  map[string]bool   // flag names that the commands have
	origin map[string]string // by flag name: where its value came from
}

// maxConfig bounds a configuration file, in bytes.
const maxConfig = 1 << 20

// newSettings reads the configuration file that args or the environment name.
func newSettings(args []string, lookup func(string) (string, bool)) (*settings, error) {
	s := &settings{lookup: lookup, keys: make(map[string]*yaml.Node), asked: make(map[string]bool), origin: make(map[string]string)}
	s.file = configFlag(args)
	if s.file == "" {
		s.file, _ = lookup("GRANARY_CONFIG")
	}
	if s.file == "" {
		return s, nil
	}
	f, err := os.Open(s.file)
	if err != nil {
		return nil, fmt.Errorf("configuration: %w", err)
	}
	defer f.Close()
	p, err := io.ReadAll(io.LimitReader(f, maxConfig+1))
	if err == nil && len(p) > maxConfig {
		err = errors.New("file is too large")
	}
	if err != nil {
		return nil, fmt.Errorf("configuration %s: %w", s.file, err)
	}
	return s, s.parse(p)
}

// configFlag finds --config before the command line is parsed.
func configFlag(args []string) string {
	for i, a := range args {
		if v, ok := strings.CutPrefix(a, "--config="); ok {
			return v
		}
		if a == "--config" && i+1 < len(args) {
			return args[i+1]
		}
		if a == "--" {
			break
		}
	}
	return ""
}

// parse reads the file's keys: one mapping from flag names to values.
func (s *settings) parse(p []byte) error {
	var doc yaml.Node
	if err := yaml.Unmarshal(p, &doc); err != nil {
		return fmt.Errorf("configuration %s: %w", s.file, err)
	}
	if len(doc.Content) == 0 {
		return nil // an empty file
	}
	root := doc.Content[0]
	if root.Kind != yaml.MappingNode {
		return s.errorAt(root, errors.New("want settings, one 'name: value' each"))
	}
	for i := 0; i+1 < len(root.Content); i += 2 {
		key := root.Content[i]
		if s.keys[key.Value] != nil {
			return s.errorAt(key, fmt.Errorf("%s is set twice", key.Value))
		}
		s.keys[key.Value] = root.Content[i+1]
	}
	return nil
}

func (s *settings) errorAt(n *yaml.Node, err error) error {
	return fmt.Errorf("configuration %s:%d: %w", s.file, n.Line, err)
}

// Validate implements kong.Resolver: it learns which settings there are, those
// of other commands included, for one file serves them all.
func (s *settings) Validate(app *kong.Application) error {
	return kong.Visit(app, func(n kong.Visitable, next kong.Next) error {
		if f, ok := n.(*kong.Flag); ok {
			s.asked[f.Name] = true
		}
		return next(nil)
	})
}

// unused reports a key of the file that is no setting.
func (s *settings) unused() error {
	for name, n := range s.keys {
		if !s.asked[name] || name == "config" || name == "help" {
			return s.errorAt(n, fmt.Errorf("there is no setting %q", name))
		}
	}
	return nil
}

// locate says where a setting that cannot be used has its value from.
func (s *settings) locate(bad *node.SettingError) error {
	if from := s.origin[bad.Name]; from != "" {
		return fmt.Errorf("%s: %w", from, bad)
	}
	return fmt.Errorf("--%w", bad)
}

// envName is the environment variable of a flag.
func envName(flag string) string {
	return "GRANARY_" + strings.ToUpper(strings.ReplaceAll(flag, "-", "_"))
}

// Resolve implements kong.Resolver. kong calls it for flags that were not given. A flag that is
// tagged local is no setting, but has the name of one.
func (s *settings) Resolve(_ *kong.Context, _ *kong.Path, flag *kong.Flag) (any, error) {
	if flag.Tag.Has("local") {
		return nil, nil
	}
	if v, ok := s.lookup(envName(flag.Name)); ok {
		s.origin[flag.Name] = "environment " + envName(flag.Name)
		return v, nil
	}
	n := s.keys[flag.Name]
	if n == nil {
		return nil, nil
	}
	s.origin[flag.Name] = fmt.Sprintf("%s:%d", s.file, n.Line)
	text, err := flagText(n, flag)
	if err != nil {
		return nil, s.errorAt(n, fmt.Errorf("%s: %w", flag.Name, err))
	}
	if err := tryValue(flag, text); err != nil {
		return nil, s.errorAt(n, fmt.Errorf("%s: %w", flag.Name, err))
	}
	return text, nil
}

// separator is what stands between the values of a flag that takes several.
func separator(flag *kong.Flag) string {
	if flag.IsMap() {
		return string(flag.Tag.MapSep)
	}
	return string(flag.Tag.Sep)
}

// flagText writes a YAML value as the flag would be written: lists and mappings
// with the flag's separator.
func flagText(n *yaml.Node, flag *kong.Flag) (string, error) {
	var items []string
	switch {
	case n.Kind == yaml.ScalarNode:
		return n.Value, nil
	case n.Kind == yaml.SequenceNode && flag.IsSlice():
		for _, e := range n.Content {
			items = append(items, e.Value)
		}
	case n.Kind == yaml.MappingNode && flag.IsMap():
		for i := 0; i+1 < len(n.Content); i += 2 {
			value := n.Content[i+1]
			var several []string // as a list may have them, instead of commas
			for _, e := range value.Content {
				several = append(several, e.Value)
			}
			items = append(items, n.Content[i].Value+"="+value.Value+strings.Join(several, ","))
		}
		slices.Sort(items)
	default:
		return "", errors.New("does not take a value of this kind")
	}
	sep := separator(flag)
	for _, e := range items {
		if strings.Contains(e, sep) {
			return "", fmt.Errorf("%q contains %q", e, sep)
		}
	}
	return strings.Join(items, sep), nil
}

// tryValue reports what is wrong with a value, while its line is still known.
func tryValue(flag *kong.Flag, text string) error {
	if flag.Enum != "" && !flag.EnumMap()[text] {
		return fmt.Errorf("must be one of %s, not %q", flag.Enum, text)
	}
	scratch := reflect.New(flag.Target.Type()).Elem()
	if scratch.Kind() == reflect.Map {
		scratch.Set(reflect.MakeMap(scratch.Type()))
	}
	return flag.Parse(kong.Scan().PushTyped(text, kong.FlagValueToken), scratch)
}

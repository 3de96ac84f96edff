package main

import (
	"encoding/json"
	"fmt"
	"reflect"
	"runtime/debug"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/alecthomas/kong"

	"github.com/granary-oci/granary/cmd/granary/node"
)

// serveCmd runs a node until it is told to stop.
type serveCmd struct {
	node.Config `embed:""`
}

func (c *serveCmd) Run(e *env, all *cli) error {
	setMemoryLimit()
	c.Mounter = []string{"mounter", "--log-level", all.LogLevel, "--log-format", all.LogFormat}
	n, err := node.New(c.Config, e.log)
	if err != nil {
		return err
	}
	// It listens: who asks from now on is answered.
	if err := notifyReady(); err != nil {
		e.log.Warn("the service manager was not told that the node is ready", "error", err)
	}
	return n.Run(e.ctx)
}

// setMemoryLimit makes the garbage collector work harder before the process
// grows past what a node should need. GOMEMLIMIT overrules it.
func setMemoryLimit() {
	const limit = 224 << 20
	if debug.SetMemoryLimit(-1) > 1<<60 {
		debug.SetMemoryLimit(limit)
	}
}

// configCmd shows what serve would do.
type configCmd struct {
	node.Config `embed:""`
	JSON        bool `name:"json" help:"Print JSON."`
}

type setting struct {
	Name   string `json:"name"`
	Value  string `json:"value"`
	Origin string `json:"origin"`
}

func (c *configCmd) Run(e *env, s *settings, k *kong.Context) error {
	var all []setting
	given := make(map[string]bool)
	for _, p := range k.Path {
		if p.Flag != nil && !p.Resolved {
			given[p.Flag.Name] = true
		}
	}
	for _, f := range k.Flags() {
		if f.Name == "help" || f.Name == "json" {
			continue
		}
		origin := "default"
		if given[f.Name] {
			origin = "flag"
		} else if o := s.origin[f.Name]; o != "" {
			origin = o
		}
		all = append(all, setting{f.Name, settingText(f.Target, separator(f)), origin})
	}
	if c.JSON {
		out := json.NewEncoder(e.stdout)
		out.SetIndent("", "  ")
		return out.Encode(all)
	}
	w := tabwriter.NewWriter(e.stdout, 0, 0, 2, ' ', 0)
	for _, x := range all {
		fmt.Fprintf(w, "%s\t%s\t# %s\n", x.Name, x.Value, x.Origin)
	}
	return w.Flush()
}

// settingText writes a value as its flag would be given.
func settingText(v reflect.Value, sep string) string {
	var items []string
	switch v.Kind() {
	case reflect.Slice:
		for i := range v.Len() {
			items = append(items, v.Index(i).String())
		}
	case reflect.Map:
		for _, k := range v.MapKeys() {
			items = append(items, k.String()+"="+v.MapIndex(k).String())
		}
		slices.Sort(items)
	default:
		return fmt.Sprint(v.Interface())
	}
	return strings.Join(items, sep)
}

// versionCmd shows the version.
type versionCmd struct{}

func (versionCmd) Run(e *env) error {
	_, err := fmt.Fprintln(e.stdout, "granary", node.Version)
	return err
}

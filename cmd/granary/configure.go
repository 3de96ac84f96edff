package main

import (
	"errors"
	"fmt"

	"github.com/granary-oci/granary/cmd/granary/configure"
)

// configureCmd makes a container runtime pull through a node.
type configureCmd struct {
	Runtime  string   `arg:"" name:"runtime" enum:"containerd,podman,crio,docker,buildkit" help:"Runtime to configure: containerd, podman, crio, docker or buildkit."`
	Root     string   `name:"root" default:"/" placeholder:"DIR" help:"Where the file system of the machine is mounted."`
	Mirror   string   `name:"mirror" default:"http://127.0.0.1:5050" placeholder:"URL" help:"Registry face of the node, as the runtime reaches it."`
	Registry []string `name:"registry" placeholder:"HOST" help:"Registry that is mirrored. May be repeated; what an earlier call has configured and this one does not name is undone. Default: all for containerd, docker.io for Docker, docker.io and other well-known ones for the rest."`
	Prepend  bool     `name:"prepend" help:"Put the mirror before those that are configured already, not after them."`
	Undo     bool     `name:"undo" local:"" help:"Restore what was there before. From a file that has been edited since only what was added is taken out."`
	DryRun   bool     `name:"dry-run" local:"" help:"Show what would change, as a unified diff, and write nothing."`

	RuntimeConfig string `name:"runtime-config" placeholder:"FILE" help:"The runtime's own file: containerd's config.toml, which is only read, registries.conf, daemon.json or buildkitd.toml. Default: where the runtime looks."`
	RuntimeDir    string `name:"runtime-dir" placeholder:"DIR" help:"The directory of containerd's hosts.toml files, or of drop-ins of registries.conf. Default: where the runtime looks."`
}

func (c *configureCmd) Run(e *env) error {
	plan := configure.New
	if c.Undo {
		plan = configure.Undo
	}
	p, err := plan(configure.Options{
		Runtime: c.Runtime, Root: c.Root, Mirror: c.Mirror, Registries: c.Registry, Prepend: c.Prepend,
		Config: c.RuntimeConfig, Dir: c.RuntimeDir,
	})
	if err != nil {
		return fmt.Errorf("configure %s: %w", c.Runtime, err)
	}
	if c.DryRun {
		fmt.Fprint(e.stdout, p.Diff())
	} else if err := p.Apply(); err != nil {
		return fmt.Errorf("configure %s: %w", c.Runtime, err)
	}
	return c.report(e, p)
}

// report says what was done, or with --dry-run would be, to people: the diff has the
// standard output to itself.
func (c *configureCmd) report(e *env, p *configure.Plan) error {
	out, wrote := e.stdout, false
	if c.DryRun {
		out = e.stderr
	}
	words := map[configure.Action]string{
		configure.Write: "written", configure.Keep: "unchanged", configure.Restore: "restored", configure.Remove: "removed", configure.Refuse: "not undone",
	}
	for _, change := range p.Changes {
		line := change.File + ": " + words[change.Action]
		if change.Detail != "" {
			line += ": " + change.Detail
		}
		fmt.Fprintln(out, line)
		wrote = wrote || change.Action != configure.Keep && change.Action != configure.Refuse
	}
	if len(p.Changes) == 0 {
		fmt.Fprintln(out, "nothing has been configured here")
	}
	if wrote {
		fmt.Fprintln(out, p.After)
	}
	for _, problem := range p.Problems {
		fmt.Fprintf(e.stderr, "warning: %s\n  remedy: %s\n", problem.Cause, problem.Remedy)
	}
	if p.Refused() {
		return errors.New("not everything could be undone")
	}
	return nil
}

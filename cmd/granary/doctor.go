package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/granary-oci/granary/cmd/granary/doctor"
	"github.com/granary-oci/granary/cmd/granary/node"
)

// doctorCmd finds out what is wrong. Its settings are those of a node that does not run.
type doctorCmd struct {
	node.DataConfig    `embed:""`
	node.ListenConfig  `embed:""`
	node.ClusterConfig `embed:""`
	nodeFlag           `embed:""`

	Root    string        `name:"root" default:"/" placeholder:"DIR" help:"Where the file system of the machine is mounted."`
	Mirror  string        `name:"mirror" local:"" placeholder:"URL" help:"Registry face of the node, as runtimes reach it. Default: what the node says."`
	Image   string        `name:"image" placeholder:"REF" help:"Small image to pull. Default: one that the node knows."`
	Timeout time.Duration `name:"timeout" default:"60s" placeholder:"DURATION" help:"How long all of it may take."`
	JSON    bool          `name:"json" help:"Print JSON."`
}

var errBroken = errors.New("something is broken")

func (c *doctorCmd) Run(e *env) error {
	if c.Timeout <= 0 {
		return &node.SettingError{Name: "timeout", Err: errors.New("it is not positive")}
	}
	r := doctor.Run(e.ctx, doctor.Config{
		Status:   c.status,
		Reach:    c.reach,
		Pull:     func(ctx context.Context, image string) (*doctor.Pull, error) { return c.pull(ctx, e, image) },
		Image:    c.Image,
		URL:      c.Node,
		Settings: node.Config{DataConfig: c.DataConfig, ListenConfig: c.ListenConfig, ClusterConfig: c.ClusterConfig},
		Root:     c.Root,
		Mirror:   c.Mirror,
		Timeout:  c.Timeout,
	})
	if err := c.print(e, r); err != nil {
		return err
	}
	if r.Severity == doctor.Error {
		return errBroken
	}
	return nil
}

// reach asks the node what it can reach.
func (c *doctorCmd) reach(ctx context.Context) (r node.Reach, err error) {
	err = c.ask(ctx, "/api/v1/reach", &r)
	return r, err
}

func (c *doctorCmd) print(e *env, r doctor.Report) error {
	if c.JSON {
		out := json.NewEncoder(e.stdout)
		out.SetIndent("", "  ")
		return out.Encode(r)
	}
	for _, f := range r.Findings {
		fmt.Fprintf(e.stdout, "%-8s %s: %s\n", f.Severity, printable(strings.TrimSpace(f.Check+" "+f.Subject)), printable(f.Cause))
		if f.Remedy != "" {
			fmt.Fprintf(e.stdout, "         remedy: %s\n", printable(f.Remedy))
		}
	}
	if r.Pull == nil {
		return nil
	}
	fmt.Fprintf(e.stdout, "\n%s@%s\n", printable(r.Pull.Image), r.Pull.Digest)
	for _, b := range r.Pull.Blobs {
		fmt.Fprintf(e.stdout, "  %s %s: %s\n", b.Digest, bytesText(b.Size), b.PathText())
	}
	if r.Pull.Cut {
		fmt.Fprintf(e.stdout, "  the rest was left out: a test pull has at most %s\n", bytesText(maxTestPull))
	}
	return nil
}

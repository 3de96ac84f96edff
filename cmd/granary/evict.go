package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"

	"github.com/granary-oci/granary/cmd/granary/node"
)

// evictCmd takes an image out of stores.
type evictCmd struct {
	nodeFlag `embed:""`
	Ref      string `arg:"" name:"ref" help:"Image to evict, as in alpine:3 or ghcr.io/org/app@sha256:…"`
	AllNodes bool   `name:"all-nodes" help:"Evict it on all members of the node's cluster."`
	Imported bool   `name:"imported" help:"Evict it although it was imported, and may be had nowhere else."`
}

func (c *evictCmd) Run(e *env) error {
	p, err := json.Marshal(node.EvictRequest{Ref: c.Ref, AllNodes: c.AllNodes, Imported: c.Imported})
	if err != nil {
		return err
	}
	body, err := c.send(e.ctx, http.MethodPost, "/api/v1/evict", bytes.NewReader(p), int64(len(p)))
	if err != nil {
		return err
	}
	defer body.Close()
	var done node.Evicted
	if err := json.NewDecoder(io.LimitReader(body, maxAnswer)).Decode(&done); err != nil {
		return fmt.Errorf("node %s: evict: %w", c.Node, err)
	}
	fmt.Fprintf(e.stdout, "%s: %s freed", c.Ref, bytesText(done.Freed))
	if done.Members > 0 {
		fmt.Fprintf(e.stdout, " on %s", plural(done.Members+1, "node"))
	}
	if done.Kept > 0 {
		fmt.Fprintf(e.stdout, "; %s stay, for somebody reads them", bytesText(done.Kept))
	}
	fmt.Fprintln(e.stdout)
	if len(done.Failed) > 0 {
		return fmt.Errorf("%d members did not:\n%s", len(done.Failed), printable(strings.Join(done.Failed, "; ")))
	}
	return nil
}

func (evictCmd) Help() string {
	return `Removes from the store what belongs to the image and to no other image that is there. Blobs that somebody reads stay. The tags that meant it are looked up anew when they are asked for.

The exit status is 0, 1 if it failed or a member did not do it, or 2 if the command line cannot be understood. That nothing of the image is stored is no failure.

Examples:

  granary evict ghcr.io/org/app:v1
  granary evict --all-nodes python:3.12`
}

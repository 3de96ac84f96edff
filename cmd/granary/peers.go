package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"text/tabwriter"
	"time"

	"github.com/granary-oci/granary/cmd/granary/node"
	"github.com/granary-oci/granary/p2p"
)

// peersCmd shows a node's cluster.
type peersCmd struct {
	nodeFlag `embed:""`
	JSON     bool `name:"json" help:"Print JSON."`
}

func (c *peersCmd) Run(e *env) error {
	ctx, cancel := context.WithTimeout(e.ctx, 30*time.Second)
	defer cancel()
	s, err := c.status(ctx)
	if err != nil {
		return err
	}
	if s.Cluster == nil {
		return errors.New("the node is no member of a cluster: it has neither --cluster-secret-file nor --insecure-cluster")
	}
	if c.JSON {
		out := json.NewEncoder(e.stdout)
		out.SetIndent("", "  ")
		return out.Encode(s.Cluster)
	}
	return writePeers(e, s.Cluster)
}

func writePeers(e *env, c *node.ClusterStatus) error {
	w := tabwriter.NewWriter(e.stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "NAME\tID\tZONE\tWEIGHT\tSTATE\tANSWERS WITHIN\tRECEIVED\tFAULTS\tLATEST FAULT")
	for _, p := range c.Members {
		fmt.Fprintf(w, "%s\t%s\t%s\t%d\t%s\t%s\t%s\t%d\t%s\n", p.Name, p.ID, p.Zone, p.Weight, stateText(p), latencyText(p.P95), bytesText(p.Received), p.Strikes, p.Fault)
	}
	return w.Flush()
}

func stateText(p p2p.PeerStatus) string {
	if p.State != "quarantined" {
		return p.State
	}
	return fmt.Sprintf("quarantined for %s", time.Until(p.Quarantined).Round(time.Second))
}

// latencyText is what 19 of 20 answers took to begin.
func latencyText(d time.Duration) string {
	if d == 0 {
		return "-"
	}
	return d.Round(10 * time.Microsecond).String()
}

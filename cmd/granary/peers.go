package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"strings"
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
	fmt.Fprintln(w, "NAME\tADDRESS\tID\tZONE\tWEIGHT\tSTATE\tANSWERS WITHIN\tRECEIVED\tFAULTS")
	for _, p := range c.Members {
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%d\t%s\t%s\t%s\t%d\n", p.Name, addressText(p.Addrs), p.ID, cmp.Or(p.Zone, "-"), p.Weight, stateText(p), latencyText(p.P95), bytesText(p.Received), p.Strikes)
	}
	if err := w.Flush(); err != nil {
		return err
	}
	for _, p := range c.Members {
		if p.Fault != "" {
			fmt.Fprintf(e.stdout, "\n%s (%s), at fault lately: %s\n", p.Name, p.ID, p.Fault)
		}
	}
	return nil
}

// addressText is the first of a member's addresses, as IP:PORT if it is one.
func addressText(addrs []string) string {
	if len(addrs) == 0 {
		return "-"
	}
	parts := strings.Split(addrs[0], "/") // "", ip4, IP, tcp, PORT
	if len(parts) != 5 {
		return addrs[0]
	}
	return net.JoinHostPort(parts[2], parts[4])
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

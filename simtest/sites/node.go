package sites

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/granary-oci/granary/simtest/netns"
)

// NodeURL and AdminURL are where a node is reached from its machine, and HubURL is the first of the hub.
const (
	NodeURL  = "http://127.0.0.1:5050"
	AdminURL = "http://127.0.0.1:5051"
	HubURL   = "https://127.0.0.1:5050"
)

// Node is a granary on its machine.
type Node struct {
	*netns.Process
	Space  *netns.Space
	client *http.Client
}

// Status is what is read of a node's.
type Status struct {
	Site    []string
	Cluster struct {
		Members []struct{ State string }
	}
	Links []struct {
		Link  string
		Today struct{ In, Out int64 }
	}
	Offers struct{ Made, Waiting int }
	WAN    struct{ Layers, Failed, Saved int64 }
}

// Status asks the node for it.
func (n *Node) Status(ctx context.Context) (s Status, err error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, AdminURL+"/api/v1/status", nil)
	if err != nil {
		return s, err
	}
	resp, err := n.client.Do(req)
	if err != nil {
		return s, err
	}
	defer resp.Body.Close()
	return s, json.NewDecoder(resp.Body).Decode(&s)
}

// siteAddress returns where children reach the node.
func (n *Node) siteAddress(ctx context.Context, by string) (string, error) {
	if by == "url" {
		return "https://" + hubAddress + ":5055", nil
	}
	s, err := n.Status(ctx)
	for _, a := range s.Site {
		if strings.Contains(a, "/"+by) {
			return a, err
		}
	}
	return "", errors.Join(err, fmt.Errorf("no address of the hub is by %s: %q", by, s.Site))
}

// knows returns how many other members are up to the node.
func (n *Node) knows(ctx context.Context) (count int) {
	s, _ := n.Status(ctx)
	for _, m := range s.Cluster.Members {
		if m.State == "up" {
			count++
		}
	}
	return count
}

// Settled waits until the node has looked at all layers that have come, for a second long.
func (n *Node) Settled(ctx context.Context) error {
	for looks := 0; looks < 4; looks++ {
		s, err := n.Status(ctx)
		if err != nil {
			return err
		}
		if s.Offers.Waiting > 0 {
			looks = -1
		}
		if err := pause(ctx, 250*time.Millisecond); err != nil {
			return err
		}
	}
	return nil
}

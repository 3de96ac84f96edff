package node

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/granary-oci/granary/proxy/parent"
	"github.com/granary-oci/granary/tracker"
	"github.com/granary-oci/granary/tracker/gossip"
)

const (
	reachFor     = 5 * time.Second // one place
	maxReach     = 64              // members, and upstreams
	maxReachBody = 4 << 10
)

// Reach is what a node can reach of what it depends on, at /api/v1/reach.
type Reach struct {
	Upstreams []UpstreamReach `json:"upstreams"`
	Members   []MemberReach   `json:"members,omitempty"`
	// Parents are what is made of them, after those that may be asked now were.
	Parents []parent.Status `json:"parents,omitempty"`
	// Image is one that the node has been asked for, as HOST/NAME:TAG; "" for none.
	Image string `json:"image,omitempty"`
}

// UpstreamReach is what came of asking one of the places of a registry.
type UpstreamReach struct {
	Registry string        `json:"registry"`
	Place    string        `json:"place"`
	Status   int           `json:"status,omitempty"` // of HTTP; 401 is usual, and all right
	Took     time.Duration `json:"took"`             // nanoseconds
	// Ahead is by how much its clock is ahead of the node's, in nanoseconds, to about a
	// second; nil if it did not say.
	Ahead *time.Duration `json:"ahead,omitempty"`
	Error string         `json:"error,omitempty"`
}

// MemberReach is by what another member is reached. Empty is all right, else it is what
// is wrong.
type MemberReach struct {
	ID       tracker.ID     `json:"id"`
	Name     string         `json:"name,omitempty"`
	P2P      string         `json:"p2p"` // HOST:PORT
	P2PError string         `json:"p2pError,omitempty"`
	Large    string         `json:"large,omitempty"` // whether segments of full size arrive
	Gossip   string         `json:"gossip"`          // HOST:PORT
	TCPError string         `json:"tcpError,omitempty"`
	UDPError string         `json:"udpError,omitempty"`
	Ahead    *time.Duration `json:"ahead,omitempty"` // its clock, nanoseconds; nil is not known yet
}

// Reach tries what the node depends on, for a few seconds.
func (n *Node) Reach(ctx context.Context) Reach {
	r := Reach{Image: n.catalog.SomeTag()}
	var all sync.WaitGroup
	all.Go(func() { r.Upstreams = n.upstreams.reach(ctx) })
	if n.cluster != nil {
		all.Go(func() { r.Members = n.cluster.reach(ctx) })
	}
	if n.parents != nil {
		all.Go(func() {
			ctx, cancel := context.WithTimeout(ctx, reachFor)
			defer cancel()
			n.parents.Try(ctx)
			r.Parents = n.parents.Status()
		})
	}
	all.Wait()
	return r
}

// ReachUpstreams tries the upstreams of a node that does not run.
func ReachUpstreams(ctx context.Context, cfg DataConfig) ([]UpstreamReach, error) {
	m := newMetrics()
	u, err := newUpstreams(cfg, nil, m, &faultLog{log: slog.New(slog.DiscardHandler), metrics: m, last: make(map[string]time.Time)})
	if err != nil {
		return nil, err
	}
	return u.reach(ctx), nil
}

// reach asks the places of the registries that settings name.
func (u *upstreams) reach(ctx context.Context) []UpstreamReach {
	var all []UpstreamReach
	hosts := []string{u.cfg.DefaultUpstream}
	for host := range u.cfg.Upstream {
		hosts = append(hosts, host)
	}
	slices.Sort(hosts)
	for _, host := range slices.Compact(hosts) {
		for _, at := range u.urls(host) {
			if host != "" && len(all) < maxReach {
				all = append(all, UpstreamReach{Registry: host, Place: at})
			}
		}
	}
	var asked sync.WaitGroup
	for i := range all {
		asked.Go(func() { u.ask(ctx, &all[i]) })
	}
	asked.Wait()
	return all
}

// ask asks one place.
func (u *upstreams) ask(ctx context.Context, r *UpstreamReach) {
	ctx, cancel := context.WithTimeout(ctx, reachFor)
	defer cancel()
	begin := time.Now()
	err := u.askPlace(ctx, r)
	r.Took = time.Since(begin)
	if err != nil {
		r.Error = err.Error()
	}
}

func (u *upstreams) askPlace(ctx context.Context, r *UpstreamReach) error {
	if isLocal(r.Place) {
		_, path, _ := strings.Cut(r.Place, ":")
		_, err := os.Stat(path)
		return err
	}
	url, layout := strings.CutPrefix(r.Place, onServer)
	path := "/v2/"
	if layout {
		path = "/oci-layout"
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, strings.TrimSuffix(url, "/")+path, nil)
	if err != nil {
		return err
	}
	req.Header.Set("User-Agent", "granary/"+Version)
	transport := &http.Transport{
		Proxy: http.ProxyFromEnvironment, DisableKeepAlives: true, ForceAttemptHTTP2: true,
		TLSClientConfig: &tls.Config{RootCAs: u.roots[r.Registry], InsecureSkipVerify: slices.Contains(u.cfg.UpstreamSkipVerify, r.Registry)},
	}
	client := &http.Client{Transport: transport, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	begin := time.Now()
	resp, err := client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	middle := begin.Add(time.Since(begin) / 2)
	_, _ = io.Copy(io.Discard, io.LimitReader(resp.Body, maxReachBody))
	r.Status = resp.StatusCode
	if date, err := http.ParseTime(resp.Header.Get("Date")); err == nil {
		ahead := date.Add(500 * time.Millisecond).Sub(middle) // it has no parts of seconds
		r.Ahead = &ahead
	}
	if resp.StatusCode >= 500 || layout && resp.StatusCode != http.StatusOK {
		return fmt.Errorf("it answered %s for %s", resp.Status, path)
	}
	return nil
}

// reach tries the ports of all other members.
func (c *cluster) reach(ctx context.Context) []MemberReach {
	ctx, cancel := context.WithTimeout(ctx, reachFor)
	defer cancel()
	view := c.gossip.View()
	var all []MemberReach
	for _, p := range view.Peers() {
		if p.ID != view.Self().ID && len(all) < maxReach {
			m := MemberReach{ID: p.ID, Name: p.Name}
			if len(p.Addrs) > 0 {
				m.P2P = HostPort(p.Addrs[0])
			}
			all = append(all, m)
		}
	}
	clocks := c.gossip.Clocks()
	var asked sync.WaitGroup
	for i := range all {
		m := &all[i]
		if ahead, known := clocks[m.ID]; known {
			m.Ahead = &ahead
		}
		asked.Go(func() { m.P2PError, m.Large = ReachTCP(ctx, m.P2P) })
		asked.Go(func() {
			r, err := c.gossip.Reach(ctx, m.ID)
			if err != nil {
				r = gossip.Reach{TCP: err.Error()}
			}
			m.Gossip, m.TCPError, m.UDPError = r.Address, r.TCP, r.UDP
		})
	}
	asked.Wait()
	return all
}

// HostPort is HOST:PORT of a multiaddr such as /ip4/192.0.2.1/tcp/5052; "" of another.
func HostPort(multiaddr string) string {
	parts := strings.Split(multiaddr, "/")
	if len(parts) != 5 || parts[3] != "tcp" {
		return ""
	}
	return net.JoinHostPort(parts[2], parts[4])
}

package node

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"slices"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/opencontainers/go-digest"

	"github.com/granary-oci/granary/chunkstore/chunk"
	"github.com/granary-oci/granary/proxy"
	"github.com/granary-oci/granary/proxy/gateway"
	"github.com/granary-oci/granary/proxy/parent"
	"github.com/granary-oci/granary/proxy/ref"
	"github.com/granary-oci/granary/proxy/upstream"
)

const (
	maxParents = 16
	// A line that is down for longer is found out about, and one that is only slow is not taken to be dead.
	parentDeadAfter = 4 * time.Second
)

// openParents makes what is asked before the registries, if there are settings for that.
func (n *Node) openParents() error {
	cfg := n.cfg.DataConfig
	if len(cfg.Parent) == 0 && cfg.ParentsOnly {
		return &SettingError{"parents-only", errors.New("there is no --parent")}
	}
	if len(cfg.Parent) == 0 && len(cfg.ParentLimit) > 0 {
		return &SettingError{"parent-limit", errors.New("there is no --parent")}
	}
	if len(cfg.Parent) == 0 && n.network.Load() == nil {
		return nil
	}
	if len(cfg.Parent) > maxParents {
		return &SettingError{"parent", fmt.Errorf("there are more than %d", maxParents)}
	}
	configs, err := n.parentConfigs()
	if err != nil {
		return &SettingError{"parent", err}
	}
	var names []string
	for _, c := range configs {
		names = append(names, c.Name)
	}
	limits, err := newLinkLimits(cfg.ParentLimit, names, n.ledger)
	if err != nil {
		return &SettingError{"parent-limit", err}
	}
	for i := range configs {
		name := configs[i].Name
		n.ledger.expect(chunk.OfParent(name))
		configs[i].Limit = func() int64 { return limits.pace(name) }
		configs[i].Allow = func() error { return limits.allow(name) }
		configs[i].Heard = n.hearing(name)
		n.counting(&configs[i], chunk.OfParent(name), func(k int64) { limits.pass(name, k) })
	}
	if n.parents, err = parent.New(configs, n.sizeOf, n.faults.report); err != nil {
		return &SettingError{"parent", err}
	}
	n.closers = append(n.closers, func() error { n.parents.Close(); return nil })
	if n.network.Load() != nil {
		ctx, cancel := context.WithCancel(context.Background())
		n.closers = append(n.closers, func() error { cancel(); return nil })
		n.parents.Find(ctx, n.find)
	}
	n.upstreams.parents = n.parents
	n.metrics.watchParents(n.parents.Status)
	return nil
}

// hearing logs that a parent does not answer, and that it answers again; of a line that comes and goes once a
// minute. What it does not give comes from elsewhere, over a line that may be dearer.
func (n *Node) hearing(name string) func(error) {
	var said time.Time // p.mu of the parent guards both
	var silent bool
	return func(err error) {
		switch {
		case err != nil && time.Since(said) > quiet:
			said, silent = time.Now(), true
			n.log.Warn("a parent does not answer", "parent", name, "error", err)
		case err == nil && silent:
			silent = false
			n.log.Info("a parent answers again", "parent", name)
		}
	}
}

// counting has what comes from a parent counted, and told to pass, if that is not nil.
func (n *Node) counting(c *parent.Config, link string, pass func(int64)) {
	c.Upstream.Received = func(k int64) {
		n.metrics.parents.Add(k)
		n.ledger.add(link, k, 0)
		if pass != nil {
			pass(k)
		}
	}
}

// parentConfigs says how the parents are connected to. Several multiaddrs of one ID are one parent.
func (n *Node) parentConfigs() (configs []parent.Config, err error) {
	byID := make(map[peer.ID]*peer.AddrInfo)
	for _, address := range n.cfg.Parent {
		c, err := n.parentConfig(address)
		if err != nil {
			return nil, err
		}
		if isMultiaddr(address) {
			info, err := peer.AddrInfoFromString(address)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", address, err)
			}
			if known := byID[info.ID]; known != nil {
				known.Addrs = append(known.Addrs, info.Addrs...)
				continue
			}
			byID[info.ID] = info
			n.overLibp2p(&c, info)
		}
		if slices.ContainsFunc(configs, func(other parent.Config) bool { return other.Name == c.Name }) {
			return nil, fmt.Errorf("%s is named twice", c.Name)
		}
		configs = append(configs, c)
	}
	for _, info := range byID {
		n.site.Keep(*info)
	}
	return configs, nil
}

// sizeOf returns the size of a blob by the manifests of a repository.
func (n *Node) sizeOf(repo ref.Repository, d digest.Digest) (int64, bool) {
	m, known := n.catalog.Member(repo.String(), d)
	return m.Size, known
}

// newParentConfig returns what is common to all parents.
func (n *Node) newParentConfig(url string) parent.Config {
	return parent.Config{Upstream: upstream.Config{
		URL:       url,
		UserAgent: "granary/" + Version,
		Pseudonym: n.upstreams.pseudonym,
		Header:    make(http.Header),
		DeadAfter: parentDeadAfter,
	}}
}

// parentConfig says how a parent is connected to.
func (n *Node) parentConfig(address string) (c parent.Config, err error) {
	c = n.newParentConfig(address)
	if isMultiaddr(address) { // it is dialled over libp2p, where nobody is sent a token
		return c, nil
	}
	if n.cfg.ParentTokenFile != "" {
		token, err := firstToken(n.cfg.ParentTokenFile)
		if err != nil {
			return c, err
		}
		c.Upstream.Header.Set(gateway.TokenHeader, token)
	}
	c.Gateway = true
	u, err := url.Parse(address)
	if err != nil || u.Host == "" {
		return c, fmt.Errorf("%q is neither a URL nor a multiaddr", address)
	}
	if c.Name = u.Host; u.Scheme != "https" && !loopbackAddress(upstream.Address(u)) {
		return c, fmt.Errorf("%s: a parent is sent clients' credentials, and is asked by https", address)
	}
	if n.cfg.ParentCAFile != "" {
		pem, err := os.ReadFile(n.cfg.ParentCAFile)
		if err != nil {
			return c, err
		}
		c.Upstream.RootCAs = x509.NewCertPool()
		if !c.Upstream.RootCAs.AppendCertsFromPEM(pem) {
			return c, fmt.Errorf("%s holds no PEM certificate", n.cfg.ParentCAFile)
		}
	}
	return c, nil
}

// firstToken returns the first token of a file that has one on each line.
func firstToken(name string) (string, error) {
	p, err := os.ReadFile(name)
	if err != nil {
		return "", err
	}
	all, err := parseSecrets(p, minToken, maxTokens)
	if err != nil {
		return "", fmt.Errorf("%s: %w", name, err)
	}
	if bytes.ContainsFunc(all[0], func(c rune) bool { return c <= ' ' || c >= 0x7f }) {
		return "", fmt.Errorf("%s: the token has characters that no header has", name)
	}
	return string(all[0]), nil
}

// throughParents returns the places of a repository, with the parents before the first that is
// not on this machine, or in the place of all such.
func (u *upstreams) throughParents(repo ref.Repository, authorization string, places []place, all proxy.Mirrors) (proxy.Mirrors, error) {
	if u.parents == nil || u.public(repo.Host) {
		return all, nil
	}
	nobodys := authorization == "" && !u.credentials.shared(repo.Host)
	if authorization == "" && !nobodys {
		var err error
		if authorization, err = u.basic(repo.Host); err != nil {
			u.faults.log.Warn("parents are asked without the node's credentials", "registry", repo.Host, "error", err)
		}
	}
	var through proxy.Mirrors
	for _, r := range u.parents.Repositories(repo, authorization) {
		through = append(through, r)
	}
	if found := u.parents.Found(repo); found != nil && nobodys && !u.ownRanges { // who are told no credentials, and no digests of what is private
		through = append(through, found)
	}
	first := slices.IndexFunc(places, func(p place) bool { return !p.local })
	if u.cfg.ParentsOnly {
		return append(slices.Clip(all[:first]), through...), nil
	}
	return slices.Insert(all, first, through...), nil
}

// basic returns the node's own credentials for a registry as a value of Authorization.
func (u *upstreams) basic(host string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	name, password, err := u.credentials.get(ctx, host)
	if err != nil || name == "" && password == "" {
		return "", err
	}
	return "Basic " + base64.StdEncoding.EncodeToString([]byte(name+":"+password)), nil
}

// comparing is a registry whose chunks are compared with what parents gave.
type comparing struct {
	proxy.Upstream
	parents *parent.Parents
	host    string
}

// Unwrap implements [proxy.Wrapper].
func (c comparing) Unwrap() proxy.Upstream { return c.Upstream }

// Doubt and Settled are told to what is wrapped.
func (c comparing) Doubt(d digest.Digest) {
	if up, ok := c.Upstream.(interface{ Doubt(digest.Digest) }); ok {
		up.Doubt(d)
	}
}

func (c comparing) Blob() chunk.Source { return c.parents.Compared(c.host, c.Upstream.Blob()) }

package node

import (
	"context"
	"crypto/rand"
	"crypto/x509"
	"fmt"
	"maps"
	"net/url"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/granary-oci/granary/p2p"
	"github.com/granary-oci/granary/proxy"
	"github.com/granary-oci/granary/proxy/parent"
	"github.com/granary-oci/granary/proxy/ref"
	"github.com/granary-oci/granary/proxy/upstream"
)

// maxUpstreams bounds how many registries a node remembers connections and
// tokens of, for clients name them.
const maxUpstreams = 256

// dockerHub is the one registry that is not found under its own name.
const dockerHub, dockerHubURL = "docker.io", "https://registry-1.docker.io"

// upstreams makes a client for each registry that is asked for.
type upstreams struct {
	limit       *p2p.Limiter // of bytes from all of them; nil for none
	cfg         DataConfig
	roots       map[string]*x509.CertPool // by host
	named       map[string]bool           // host:port of what settings name
	credentials *credentials
	pseudonym   string // of this process, in Via
	metrics     *metrics
	faults      *faultLog
	parents     *parent.Parents // nil for none
	ownRanges   bool            // sites that are found are not asked: what they give has no name, and would be taken for the registry's
	ledger      atomic.Pointer[ledger]

	mu     sync.Mutex
	byHost map[string][]place
}

// newUpstreams checks the settings of all configured registries, so that a wrong
// one is found at the start.
func newUpstreams(cfg DataConfig, limit *p2p.Limiter, m *metrics, faults *faultLog) (u *upstreams, err error) {
	if err := canonical(&cfg); err != nil {
		return nil, err
	}
	u = &upstreams{
		cfg: cfg, limit: limit, metrics: m, faults: faults, roots: make(map[string]*x509.CertPool), named: make(map[string]bool),
		pseudonym: "granary-" + strings.ToLower(rand.Text()), byHost: make(map[string][]place),
	}
	if u.credentials, err = newCredentials(cfg); err != nil {
		return nil, err
	}
	for host, file := range cfg.UpstreamCAFile {
		pem, err := os.ReadFile(file)
		if err != nil {
			return nil, &SettingError{"upstream-ca-file", fmt.Errorf("%s: %w", host, err)}
		}
		u.roots[host] = x509.NewCertPool()
		if !u.roots[host].AppendCertsFromPEM(pem) {
			return nil, &SettingError{"upstream-ca-file", fmt.Errorf("%s: %s holds no PEM certificate", host, file)}
		}
	}
	for _, host := range append(slices.Sorted(maps.Keys(cfg.Upstream)), cfg.DefaultUpstream) {
		for _, at := range u.urls(host) {
			if parsed, err := url.Parse(strings.TrimPrefix(at, onServer)); err == nil && !isLocal(at) {
				u.named[upstream.Address(parsed)] = true
			}
		}
	}
	for host := range cfg.Upstream {
		places, err := u.places(host)
		if err != nil {
			return nil, &SettingError{"upstream", err}
		}
		for _, p := range places {
			if err := p.check(); err != nil {
				return nil, &SettingError{"upstream", fmt.Errorf("%s: %w", host, err)}
			}
		}
	}
	return u, nil
}

// canonical gives registries in settings the names that requests have for them.
func canonical(cfg *DataConfig) error {
	name := func(setting, s string) (string, error) {
		host, err := ref.CanonicalHost(s)
		if err != nil {
			return "", &SettingError{setting, err}
		}
		return host, nil
	}
	for setting, m := range map[string]*map[string]string{"upstream": &cfg.Upstream, "upstream-ca-file": &cfg.UpstreamCAFile} {
		named := make(map[string]string)
		for s, v := range *m {
			host, err := name(setting, s)
			if err != nil {
				return err
			}
			named[host] = v
		}
		*m = named
	}
	cfg.UpstreamSkipVerify, cfg.Registries = slices.Clone(cfg.UpstreamSkipVerify), slices.Clone(cfg.Registries)
	var err error
	for i, s := range cfg.UpstreamSkipVerify {
		if cfg.UpstreamSkipVerify[i], err = name("upstream-skip-verify", s); err != nil {
			return err
		}
	}
	for i, s := range cfg.Registries {
		deny, pattern := "", strings.ToLower(s)
		if rest, ok := strings.CutPrefix(pattern, "!"); ok {
			deny, pattern = "!", rest
		}
		if !strings.Contains(pattern, "*") {
			if pattern, err = name("registries", pattern); err != nil {
				return err
			}
		}
		cfg.Registries[i] = deny + pattern
	}
	if cfg.DefaultUpstream != "" {
		cfg.DefaultUpstream, err = name("default-upstream", cfg.DefaultUpstream)
	}
	return err
}

// repository returns a repository as it is read with a value of Authorization.
func (u *upstreams) repository(repo ref.Repository, authorization string) (proxy.Upstream, error) {
	places, all, err := u.placesOf(repo, authorization)
	if err != nil {
		return nil, err
	}
	return u.throughParents(repo, authorization, places, all)
}

// direct is repository without what only stands before the registry. Where no registry is asked, the
// parents are it.
func (u *upstreams) direct(repo ref.Repository, authorization string) (proxy.Upstream, error) {
	if u.cfg.ParentsOnly {
		return u.repository(repo, authorization)
	}
	_, all, err := u.placesOf(repo, authorization)
	return all, err
}

// placesOf returns the places of a repository's registry, and it as each of them has it. Their chunks are
// compared with what parents gave.
func (u *upstreams) placesOf(repo ref.Repository, authorization string) ([]place, proxy.Mirrors, error) {
	if !u.serves(repo.Host) {
		return nil, nil, fmt.Errorf("%s: %w", repo.Host, proxy.ErrRefused)
	}
	places, err := u.places(repo.Host)
	if err != nil {
		return nil, nil, err
	}
	all := make(proxy.Mirrors, len(places))
	for i, p := range places {
		all[i] = p.repository(repo.Name, authorization)
		if u.parents != nil {
			all[i] = comparing{all[i], u.parents, repo.Host}
		}
	}
	return places, all, nil
}

// serves reports whether the settings let clients name host.
func (u *upstreams) serves(host string) bool {
	matches := func(p string) bool { return ref.Pattern(p).Match(host) }
	allowed := !slices.ContainsFunc(u.cfg.Registries, func(p string) bool { return !strings.HasPrefix(p, "!") })
	for _, p := range u.cfg.Registries {
		if deny, ok := strings.CutPrefix(p, "!"); ok && matches(deny) {
			return false
		}
		allowed = allowed || matches(p)
	}
	return allowed
}

// places returns where a registry is read, in order of preference.
func (u *upstreams) places(host string) ([]place, error) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if all := u.byHost[host]; all != nil {
		return all, nil
	}
	var all []place
	for _, at := range u.urls(host) {
		p, err := u.place(host, at)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", host, err)
		}
		all = append(all, p)
	}
	for other := range u.byHost {
		if len(u.byHost) < maxUpstreams {
			break
		}
		if !u.configured(other) {
			for _, p := range u.byHost[other] {
				p.close() // what is under way goes on
			}
			delete(u.byHost, other)
		}
	}
	u.byHost[host] = all
	return all, nil
}

// urls returns where a registry is reached, in order of preference.
func (u *upstreams) urls(host string) []string {
	switch at := u.cfg.Upstream[host]; {
	case at != "":
		return strings.Split(at, ",")
	case host == dockerHub:
		return []string{dockerHubURL}
	}
	return []string{"https://" + host}
}

func (u *upstreams) config(host, at string) upstream.Config {
	label := u.label(host)
	cfg := upstream.Config{
		URL:                at,
		RootCAs:            u.roots[host],
		InsecureSkipVerify: slices.Contains(u.cfg.UpstreamSkipVerify, host),
		UserAgent:          "granary/" + Version,
		Control:            upstream.PublicOnly,
		Named:              func(address string) bool { return u.named[address] },
		Pseudonym:          u.pseudonym,
		Observe:            func(method string, code int) { u.metrics.countRequest(label, method, code) },
		Received: func(n int64) {
			u.metrics.countReceived(label, n)
			if l := u.ledger.Load(); l != nil {
				l.add(registryLink+label, n, 0)
			}
			_ = u.limit.Wait(context.Background(), int(n)) // between two reads of a body
		},
	}
	if !u.configured(host) {
		cfg.Named = nil // a registry that a client names leads nowhere but to the public
	}
	if u.credentials.shared(host) {
		cfg.Credentials = func(ctx context.Context, mirror string) (username, password string, err error) {
			if u.itself(host) == at {
				mirror = host
			}
			return u.credentials.get(ctx, mirror)
		}
	}
	return cfg
}

// configured reports whether host is named by the settings, and so by metrics.
func (u *upstreams) configured(host string) bool {
	return u.cfg.Upstream[host] != "" || host == u.cfg.DefaultUpstream
}

// label is what metrics and links call a registry.
func (u *upstreams) label(host string) string {
	if u.configured(host) {
		return host
	}
	return "other"
}

// names returns the registries that have been used, in order.
func (u *upstreams) names() []string {
	u.mu.Lock()
	defer u.mu.Unlock()
	return slices.Sorted(maps.Keys(u.byHost))
}

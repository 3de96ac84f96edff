package node

import (
	"crypto/x509"
	"fmt"
	"maps"
	"os"
	"slices"
	"sync"

	"github.com/granary-oci/granary/proxy"
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
	cfg     DataConfig
	roots   map[string]*x509.CertPool // by host
	metrics *metrics

	mu     sync.Mutex
	byHost map[string]*upstream.Registry
}

// newUpstreams checks the settings of all configured registries, so that a wrong
// one is found at the start.
func newUpstreams(cfg DataConfig, m *metrics) (*upstreams, error) {
	u := &upstreams{cfg: cfg, metrics: m, roots: make(map[string]*x509.CertPool), byHost: make(map[string]*upstream.Registry)}
	for host, file := range cfg.UpstreamCAFile {
		pem, err := os.ReadFile(file)
		if err != nil {
			return nil, fmt.Errorf("upstream-ca-file for %s: %w", host, err)
		}
		u.roots[host] = x509.NewCertPool()
		if !u.roots[host].AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("upstream-ca-file for %s: %s holds no PEM certificate", host, file)
		}
	}
	for host := range cfg.Upstream {
		if _, err := u.registry(host); err != nil {
			return nil, err
		}
	}
	return u, nil
}

// repository returns the upstream of a repository.
func (u *upstreams) repository(repo ref.Repository) (proxy.Upstream, error) {
	r, err := u.registry(repo.Host)
	if err != nil {
		return nil, err
	}
	return r.Repository(repo.Name), nil
}

func (u *upstreams) registry(host string) (*upstream.Registry, error) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if r := u.byHost[host]; r != nil {
		return r, nil
	}
	r, err := upstream.New(u.config(host))
	if err != nil {
		return nil, fmt.Errorf("upstream %s: %w", host, err)
	}
	for other := range u.byHost {
		if len(u.byHost) < maxUpstreams {
			break
		}
		if !u.configured(other) {
			delete(u.byHost, other) // what is under way keeps its client
		}
	}
	u.byHost[host] = r
	return r, nil
}

func (u *upstreams) config(host string) upstream.Config {
	url := u.cfg.Upstream[host]
	switch {
	case url != "":
	case host == dockerHub:
		url = dockerHubURL
	default:
		url = "https://" + host
	}
	label := "other"
	if u.configured(host) {
		label = host
	}
	return upstream.Config{
		URL:                url,
		RootCAs:            u.roots[host],
		InsecureSkipVerify: slices.Contains(u.cfg.UpstreamSkipVerify, host),
		UserAgent:          "granary/" + Version,
		Observe:            func(method string, code int) { u.metrics.countRequest(label, method, code) },
		Received:           func(n int64) { u.metrics.countReceived(label, n) },
	}
}

// configured reports whether host is named by the settings, and so by metrics.
func (u *upstreams) configured(host string) bool {
	return u.cfg.Upstream[host] != "" || host == u.cfg.DefaultUpstream
}

// names returns the registries that have been used, in order.
func (u *upstreams) names() []string {
	u.mu.Lock()
	defer u.mu.Unlock()
	return slices.Sorted(maps.Keys(u.byHost))
}

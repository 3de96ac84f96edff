package upstream

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/opencontainers/go-digest"
)

// Limits of a connection and of what arrives on it.
const (
	dialTimeout    = 10 * time.Second
	dialAgain      = 3 * time.Second // of a registry that did not answer last: somebody has waited for it before
	tlsTimeout     = 10 * time.Second
	keepIdle       = 90 * time.Second
	maxHeaderBytes = 64 << 10

	defaultMaxConns      = 16
	defaultStallTimeout  = 30 * time.Second
	defaultAnswerTimeout = 30 * time.Second
)

// Config says which registry is read, and how.
type Config struct {
	// URL is the base of the registry, such as https://registry-1.docker.io or
	// http://127.0.0.1:5000. It may have a path, which precedes /v2/.
	URL string
	// RootCAs vouch for the registry and all it redirects to. nil is the
	// system's.
	RootCAs *x509.CertPool
	// InsecureSkipVerify accepts any certificate.
	InsecureSkipVerify bool
	// Credentials returns what the node has for a registry, host being that of
	// URL. nil, or empty answers, is anonymous. Its errors must hold no secret.
	Credentials func(ctx context.Context, host string) (username, password string, err error)
	// MaxConns is how many connections to one host may be open at once. 0 is 16;
	// fewer than 2 are 2, so that a question need not wait for a blob.
	MaxConns int
	// StallTimeout is how long a body may bring no byte. 0 is 30 s.
	StallTimeout time.Duration
	// AnswerTimeout is how long the registry may take from the end of a request to the
	// beginning of its answer. 0 is 30 s.
	AnswerTimeout time.Duration
	// DeadAfter is how long the other end of a TCP connection may give no sign of life, before an
	// answer is read on over another one. 0 is some minutes.
	DeadAfter time.Duration
	// Origin is what its answers and chunks are called (chunk.SetOrigin). Empty is [Origin].
	Origin string
	// Header is sent to the registry itself with each request.
	Header http.Header
	// Relay sends the authorization of whoever asks as it is, and meets no challenge: it is for a
	// server that relays those of another.
	Relay bool
	// Dial connects to the registry, at host:port of URL. nil is by TCP, as Control and Named
	// allow; with it nothing else is connected to, and redirects lead nowhere.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
	// UserAgent is sent with each request. Empty is "granary".
	UserAgent string
	// Control is called with the address of each connection before it is made,
	// as in [net.Dialer], and refuses it with an error: see [PublicOnly]. nil
	// refuses none.
	Control func(network, address string, c syscall.RawConn) error
	// Named reports whether settings name a host:port, in lower case and before
	// it is resolved; it is then connected to whatever Control says. nil is none.
	Named func(address string) bool
	// Pseudonym is how the node calls itself in Via, by which it knows requests
	// that come back to it. Empty sends none.
	Pseudonym string
	// Observe is told of each HTTP request made, those for tokens and those that
	// follow a redirect included. Code 0 means that no answer came. nil ignores.
	Observe func(method string, code int)
	// Received is told of bytes of bodies as they are read. nil ignores.
	Received func(n int64)
}

// withDefaults returns c with its zeros replaced.
func (c Config) withDefaults() Config {
	if c.MaxConns == 0 {
		c.MaxConns = defaultMaxConns
	}
	c.MaxConns = max(c.MaxConns, 2)
	if c.StallTimeout <= 0 {
		c.StallTimeout = defaultStallTimeout
	}
	if c.AnswerTimeout <= 0 {
		c.AnswerTimeout = defaultAnswerTimeout
	}
	if c.Origin == "" {
		c.Origin = Origin
	}
	if c.UserAgent == "" {
		c.UserAgent = "granary"
	}
	if c.Observe == nil {
		c.Observe = func(string, int) {}
	}
	if c.Received == nil {
		c.Received = func(int64) {}
	}
	return c
}

// Registry is a client of one registry. It is safe for concurrent use.
type Registry struct {
	cfg       Config
	base      *url.URL // without trailing slash
	transport *http.Transport
	auth      *authorizer
	bulk      chan struct{} // a place for each body of a blob that may be open
	streams   streams
	breakers  breakers
	ranges    atomic.Bool // the last answer to a range was a range
	wholes    atomic.Bool // it was the whole blob; with neither there was none
}

// New returns a client of the registry that cfg describes. It makes no request.
func New(cfg Config) (*Registry, error) {
	base, err := parseBase(cfg.URL)
	if err != nil {
		return nil, err
	}
	cfg = cfg.withDefaults()
	r := &Registry{
		cfg:       cfg,
		base:      base,
		transport: newTransport(cfg),
		// Bodies of blobs, the parked ones too, leave some connections to
		// questions, which would otherwise wait behind gigabytes.
		bulk: make(chan struct{}, cfg.MaxConns-max(1, cfg.MaxConns/8)),
	}
	r.transport.DialContext = r.briefly(r.transport.DialContext)
	r.auth = newAuthorizer(r)
	return r, nil
}

// briefly returns dial with less time for a registry that did not answer last.
func (r *Registry) briefly(dial dialFunc) dialFunc {
	return func(ctx context.Context, network, address string) (net.Conn, error) {
		if r.breakers.failing(r.base.Host) {
			var cancel context.CancelFunc
			ctx, cancel = context.WithTimeout(ctx, dialAgain)
			defer cancel()
		}
		return dial(ctx, network, address)
	}
}

type dialFunc = func(ctx context.Context, network, address string) (net.Conn, error)

// Close closes the connections that are not in use. What is under way goes on.
func (r *Registry) Close() {
	r.streams.closeParked(0)
	r.transport.CloseIdleConnections()
}

// Repository returns the repository of that name, with "library/" where Docker
// Hub has it. A name that is no path below the registry fails on first use.
func (r *Registry) Repository(name string) *Repository { return &Repository{registry: r, name: name} }

// Static returns what is below the URL of a server that knows nothing of registries, as
// a repository: blobs are where an image layout has them (image-spec,
// image-layout.md), and every other path is that of a file. It has no manifests.
func (r *Registry) Static() *Repository { return &Repository{registry: r, static: true} }

// Origin names what a registry has said or sent, see [chunk.SetOrigin], if [Config.Origin] says
// nothing else.
const Origin = "upstream"

// Repository is one repository of a registry. It is safe for concurrent use. Its
// answers and chunks have the name of [Config.Origin].
type Repository struct {
	registry *Registry
	name     string
	static   bool   // as in Static
	caller   string // as in As; "" for the node itself
}

// As returns the repository as it is read by a client that sent this value of
// Authorization, in place of the node and its credentials. A password (Basic) is
// used as the registry's challenges ask for it: as it is, or to get a token in
// the client's name. Everything else is sent as it is, and renewed by nobody.
// "" is the node itself.
func (p *Repository) As(authorization string) *Repository {
	q := *p
	q.caller = authorization
	return &q
}

// carriesToken reports whether the caller's authorization is to be sent as it is.
func (p *Repository) carriesToken() bool {
	if p.registry.cfg.Relay {
		return true
	}
	scheme, _, _ := strings.Cut(p.caller, " ")
	return p.caller != "" && !strings.EqualFold(scheme, "Basic")
}

// blob returns the path of a blob.
func (p *Repository) blob(d digest.Digest) string {
	if p.static {
		return "blobs/" + string(d.Algorithm()) + "/" + d.Encoded()
	}
	return "blobs/" + string(d)
}

// url returns the address of something in the repository.
func (p *Repository) url(path string, query url.Values) (*url.URL, error) {
	if p.static {
		path = "/" + path
	} else {
		path = "/v2/" + p.name + "/" + path
	}
	if err := checkPath(path); err != nil {
		return nil, err
	}
	u := *p.registry.base
	u.Path += path
	u.RawQuery = query.Encode()
	return &u, nil
}

// checkPath refuses a path that a server, or a proxy before it, might take for
// one outside of what it is appended to.
func checkPath(path string) error {
	const maxPath = 4096
	if len(path) > maxPath {
		return fmt.Errorf("path of %d bytes is too long", len(path))
	}
	for e := range strings.SplitSeq(path[1:], "/") {
		if e == "" || e == "." || e == ".." {
			return fmt.Errorf("path %q has the element %q", path, e)
		}
	}
	if strings.ContainsFunc(path, func(c rune) bool { return c <= ' ' || c >= 0x7f || strings.ContainsRune(`\%?#`, c) }) {
		return fmt.Errorf("path %q has characters that no name has", path)
	}
	return nil
}

// parseBase reads the URL of a registry. Its errors do not repeat a URL that
// could not be read, for it may hold a password.
func parseBase(s string) (*url.URL, error) {
	u, err := url.Parse(s)
	switch {
	case err != nil:
		return nil, errors.New("upstream URL: malformed")
	case u.Scheme != "http" && u.Scheme != "https":
		return nil, fmt.Errorf("upstream URL: scheme is %q, want http or https", u.Scheme)
	case u.User != nil:
		return nil, errors.New("upstream URL: it must not contain credentials")
	case u.Hostname() == "":
		return nil, errors.New("upstream URL: no host")
	case u.RawQuery != "" || u.ForceQuery || u.Fragment != "" || strings.HasSuffix(s, "#"):
		return nil, errors.New("upstream URL: it must not have a query or fragment")
	}
	u.Path = strings.TrimRight(u.Path, "/")
	if u.Path != "" {
		if err := checkPath(u.Path); err != nil || u.RawPath != "" {
			return nil, fmt.Errorf("upstream URL: %q is no path to have before /v2/", u.Path)
		}
	}
	return u, nil
}

// newTransport speaks HTTP/1.1 only: bulk data moves faster on several
// connections than in the streams of one.
func newTransport(cfg Config) *http.Transport {
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	proxy, dial := proxyFromEnvironment, cfg.dial()
	if cfg.Dial != nil {
		proxy, dial = nil, cfg.Dial
	}
	return &http.Transport{
		Proxy:       proxy,
		DialContext: dial,
		TLSClientConfig: &tls.Config{
			MinVersion:         tls.VersionTLS12,
			RootCAs:            cfg.RootCAs,
			InsecureSkipVerify: cfg.InsecureSkipVerify,
		},
		TLSHandshakeTimeout:    tlsTimeout,
		ResponseHeaderTimeout:  cfg.AnswerTimeout,
		MaxConnsPerHost:        cfg.MaxConns,
		MaxIdleConnsPerHost:    cfg.MaxConns,
		MaxIdleConns:           2 * cfg.MaxConns, // the registry's, and those of where it redirects to
		IdleConnTimeout:        keepIdle,
		MaxResponseHeaderBytes: maxHeaderBytes,
		DisableCompression:     true,
		Protocols:              protocols,
	}
}

// proxyFromEnvironment hides what is wrong with a proxy's URL, which often has a
// password in it.
func proxyFromEnvironment(req *http.Request) (*url.URL, error) {
	u, err := http.ProxyFromEnvironment(req)
	if err != nil {
		return nil, errors.New("the proxy that the environment names has a malformed URL")
	}
	return u, nil
}

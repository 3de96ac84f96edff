package node

import (
	"crypto/sha256"
	"crypto/subtle"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"time"
)

// What the admin listener answers to those who have shown nothing, see [ListenConfig.AdminOpen].
const (
	openProbes  = "probes"
	openMetrics = "metrics"
	openAll     = "all"
)

// adminGuard decides who may ask the admin listener. Whoever commands the node is known by a
// token or by a certificate. Without either, whoever connects from this machine is let in: that
// is not for a web page that is read there, hence the checks of Host and Origin.
type adminGuard struct {
	tokens  *tokens        // nil without a file
	clients *x509.CertPool // nil without a file
	open    string
}

// newAdminGuard returns a *SettingError for settings that would let in anybody unasked.
func newAdminGuard(cfg ListenConfig, log *slog.Logger) (*adminGuard, error) {
	g := &adminGuard{open: cfg.AdminOpen}
	var err error
	if cfg.AdminTokenFile != "" {
		if g.tokens, err = newTokens(cfg.AdminTokenFile, log); err != nil {
			return nil, &SettingError{"admin-token-file", err}
		}
	}
	if cfg.AdminClientCAFile != "" {
		if cfg.TLSCertFile == "" {
			return nil, &SettingError{"admin-client-ca-file", errors.New("it takes --tls-cert-file and --tls-key-file too")}
		}
		pem, err := os.ReadFile(cfg.AdminClientCAFile)
		if err != nil {
			return nil, &SettingError{"admin-client-ca-file", err}
		}
		if g.clients = x509.NewCertPool(); !g.clients.AppendCertsFromPEM(pem) {
			return nil, &SettingError{"admin-client-ca-file", fmt.Errorf("%s holds no PEM certificate", cfg.AdminClientCAFile)}
		}
	}
	if cfg.Admin != "" && !g.asks() && (g.open == "" || g.open == openProbes) && !loopbackAddress(cfg.Admin) {
		return nil, &SettingError{"admin", fmt.Errorf("%s can be reached from other machines: give --admin-token-file or --admin-client-ca-file, "+
			"or say with --admin-open=metrics that others are to get metrics and nothing else, or with --admin-open=all that anybody may command the node", cfg.Admin)}
	}
	return g, nil
}

// asks reports whether whoever commands the node has to show something.
func (g *adminGuard) asks() bool { return g.tokens != nil || g.clients != nil }

// loopbackAddress reports whether only this machine reaches an address.
func loopbackAddress(address string) bool {
	host, _, err := net.SplitHostPort(address)
	return err == nil && loopbackHost(host)
}

func loopbackHost(host string) bool {
	ip := net.ParseIP(strings.Trim(host, "[]"))
	return host == "localhost" || ip != nil && ip.IsLoopback()
}

// tls returns how the listener speaks TLS: with the certificate of the registry face, as soon
// as anything is to be shown; nil for not at all.
func (g *adminGuard) tls(c *certificate) *tls.Config {
	if c == nil || !g.asks() {
		return nil
	}
	cfg := c.config()
	if g.clients != nil {
		// Probes have no certificate: what needs one is decided for each request.
		cfg.ClientAuth, cfg.ClientCAs = tls.VerifyClientCertIfGiven, g.clients
	}
	return cfg
}

func (g *adminGuard) isOpen(path string) bool {
	_, page := pages[path] // the same for everybody, and silent about the node
	return page || path == "/healthz" || path == "/readyz" || path == "/metrics" && (g.open == openMetrics || g.open == openAll)
}

// wrap lets requests through that may be answered.
func (g *adminGuard) wrap(next http.Handler) http.Handler {
	// A web page that somebody reads on this machine must not command the node.
	next = http.NewCrossOriginProtection().Handler(next)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h := w.Header()
		h.Set("X-Content-Type-Options", "nosniff")
		h.Set("X-Frame-Options", "DENY")
		h.Set("Referrer-Policy", "no-referrer")
		h.Set("Cross-Origin-Resource-Policy", "same-origin")
		shown := g.shows(r)
		switch {
		case !shown && rebound(r):
			http.Error(w, "this address is another host's name for the node; use its own, or a token", http.StatusMisdirectedRequest)
		case r.Header.Get("Sec-Fetch-Site") == "cross-site" && r.Header.Get("Sec-Fetch-Mode") != "navigate":
			http.Error(w, "another site's page has asked for this", http.StatusForbidden)
		case shown || g.isOpen(r.URL.Path) || g.open == openAll:
			next.ServeHTTP(w, r)
		case g.asks():
			h.Set("WWW-Authenticate", `Bearer realm="granary"`)
			http.Error(w, "this takes the token of --admin-token-file, or a client certificate", http.StatusUnauthorized)
		case fromHere(r):
			next.ServeHTTP(w, r)
		default:
			http.Error(w, "only this machine may ask; other machines need a token or a client certificate, which the node has to be told of", http.StatusForbidden)
		}
	})
}

// shows reports whether a request shows that it comes from somebody who commands the node.
func (g *adminGuard) shows(r *http.Request) bool {
	if g.clients != nil && r.TLS != nil && len(r.TLS.VerifiedChains) > 0 {
		return true
	}
	scheme, token, _ := strings.Cut(r.Header.Get("Authorization"), " ")
	return g.tokens != nil && strings.EqualFold(scheme, "Bearer") && g.tokens.has(strings.TrimSpace(token))
}

// rebound reports whether a browser may have been led to this machine by somebody else's name
// for it (DNS rebinding), whose page it then takes for the node's own.
func rebound(r *http.Request) bool {
	local, _ := r.Context().Value(http.LocalAddrContextKey).(net.Addr)
	if local == nil || !loopbackAddress(local.String()) {
		return false
	}
	host := r.Host
	if name, _, err := net.SplitHostPort(r.Host); err == nil {
		host = name
	}
	return !loopbackHost(host)
}

func fromHere(r *http.Request) bool { return loopbackAddress(r.RemoteAddr) }

const (
	maxTokenFile = 64 << 10 // bytes
	minToken     = 16       // characters
	maxTokens    = 16
	tokensFor    = time.Second // the file is not looked at anew
)

// tokens are those of a file that may change while it is used.
type tokens struct {
	file string
	log  *slog.Logger

	mu     sync.Mutex
	sums   [][sha256.Size]byte // of the tokens, so that comparing takes the same time for all
	info   os.FileInfo         // of the file when it was read
	fault  string              // why it cannot be read now, as that was logged
	looked time.Time
}

func newTokens(file string, log *slog.Logger) (*tokens, error) {
	t := &tokens{file: file, log: log}
	return t, t.read()
}

// read reads the file, unless it is the same as before: tokens, one a line, each of which is good.
func (t *tokens) read() error {
	info, err := os.Stat(t.file)
	if err != nil {
		return err
	}
	if was := t.info; was != nil && os.SameFile(was, info) && was.ModTime().Equal(info.ModTime()) && was.Size() == info.Size() {
		return nil
	}
	if info.Size() > maxTokenFile {
		return errors.New("the file is too large")
	}
	p, err := os.ReadFile(t.file)
	if err != nil {
		return err
	}
	var sums [][sha256.Size]byte
	secrets, err := parseSecrets(p, minToken, maxTokens)
	if err != nil {
		return err
	}
	for _, s := range secrets {
		sums = append(sums, sha256.Sum256(s))
	}
	t.sums, t.info = sums, info
	return nil
}

// again reads the file again. One that cannot be used leaves the tokens as they are, and that is
// said once.
func (t *tokens) again() {
	fault := ""
	if err := t.read(); err != nil {
		fault = err.Error()
	}
	if fault != "" && fault != t.fault {
		t.log.Error("tokens stay as they are: their file cannot be used", "file", t.file, "error", fault)
	}
	t.fault = fault
}

// current returns the SHA-256 of each token in the file, of which a newer version is read.
func (t *tokens) current() [][sha256.Size]byte {
	t.mu.Lock()
	defer t.mu.Unlock()
	if now := time.Now(); now.Sub(t.looked) > tokensFor {
		t.looked = now
		t.again()
	}
	return t.sums
}

// has reports whether a token is one of those in the file, of which a newer version is read.
func (t *tokens) has(token string) bool {
	sum, found := sha256.Sum256([]byte(token)), 0
	for _, s := range t.current() {
		found |= subtle.ConstantTimeCompare(s[:], sum[:])
	}
	return found == 1
}

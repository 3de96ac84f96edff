package upstream

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/singleflight"
)

// Limits of what is remembered of a registry.
const (
	maxRemembered = 1024 // repositories, and tokens
	maxTokenLife  = 24 * time.Hour
	maxExpiryLead = 10 * time.Second // how long before its end a token is not used any more
)

// demand is what a challenge asks for, and the key of the token that meets it.
type demand struct {
	scheme                string // "bearer" or "basic"
	realm, service, scope string // of a token
	caller                string // whose password: as [Repository.As] got it, "" for the node
}

// grant is what meets a demand. The zero is anonymous.
type grant struct {
	demand demand
	header string // the value of Authorization
	fresh  bool   // it was made just now, so a newer one would be no better
}

// authorize returns a copy of h with the grant, and no other authorization.
func (g grant) authorize(h http.Header) http.Header {
	h = h.Clone()
	if h == nil {
		h = make(http.Header)
	}
	h.Del(authorization)
	if g.header != "" {
		h.Set(authorization, g.header)
	}
	return h
}

// noGrantError says why a challenge could not be met. The registry's own refusal
// is what the caller gets to see.
type noGrantError struct{ reason string }

func (e *noGrantError) Error() string { return e.reason }

// explain adds the reason to the registry's refusal.
func (e *noGrantError) explain(refusal error) error {
	if e.reason == "" {
		return refusal
	}
	return fmt.Errorf("%w: %s", refusal, e.reason)
}

// authorizer meets the challenges of one registry.
type authorizer struct {
	registry *Registry
	flight   singleflight.Group // of token requests

	mu     sync.Mutex
	known  map[string]demand // by repository: what it asked for last
	tokens map[demand]token
}

type token struct {
	header  string
	expires time.Time
}

func newAuthorizer(r *Registry) *authorizer {
	return &authorizer{registry: r, known: make(map[string]demand), tokens: make(map[demand]token)}
}

// remembered returns what a repository is known to want. A demand that can not
// be met any more is forgotten, for the registry to make it again, or another.
func (z *authorizer) remembered(ctx context.Context, p *Repository) (grant, error) {
	if p.carriesToken() {
		return grant{header: p.caller}, nil
	}
	z.mu.Lock()
	d, ok := z.known[p.name]
	z.mu.Unlock()
	if !ok {
		return grant{}, nil
	}
	d.caller = p.caller
	g, err := z.obtain(ctx, d, "")
	if _, no := err.(*noGrantError); no {
		z.forget(p.name)
		return grant{}, nil
	}
	return g, err
}

func (z *authorizer) forget(repository string) {
	z.mu.Lock()
	defer z.mu.Unlock()
	delete(z.known, repository)
}

// renew makes the next request for a repository get a new token: the registry
// did not like the last.
func (z *authorizer) renew(p *Repository) {
	z.mu.Lock()
	defer z.mu.Unlock()
	d := z.known[p.name]
	d.caller = p.caller
	delete(z.tokens, d)
}

// meet returns a grant for the challenges that a request with last was answered
// with, or a *noGrantError: always for a caller's own token, which is the
// caller's to renew.
func (z *authorizer) meet(ctx context.Context, p *Repository, challenges []string, last grant) (grant, error) {
	if p.carriesToken() {
		return grant{}, &noGrantError{}
	}
	d, err := z.choose(parseChallenges(challenges), p.name)
	if err != nil {
		return grant{}, err
	}
	d.caller = p.caller
	stale := ""
	if d == last.demand {
		if last.fresh {
			return grant{}, &noGrantError{}
		}
		stale = last.header
	}
	g, err := z.obtain(ctx, d, stale)
	if err != nil {
		return grant{}, err
	}
	d.caller = ""
	z.mu.Lock()
	defer z.mu.Unlock()
	remember(z.known, p.name, d)
	return g, nil
}

// remember puts k into a bounded map, in the place of any other key if need be.
func remember[K comparable, V any](m map[K]V, k K, v V) {
	if _, ok := m[k]; !ok && len(m) >= maxRemembered {
		for other := range m {
			delete(m, other)
			break
		}
	}
	m[k] = v
}

// choose picks the challenge to meet: a token where one is offered.
func (z *authorizer) choose(challenges []challenge, repository string) (demand, error) {
	why, basic := &noGrantError{}, false
	for _, c := range challenges {
		switch c.scheme {
		case "basic":
			basic = true
		case "bearer":
			if err := z.checkRealm(c.params["realm"]); err != nil {
				why = &noGrantError{err.Error()}
				continue
			}
			d := demand{scheme: "bearer", realm: c.params["realm"], service: c.params["service"], scope: c.params["scope"]}
			if d.scope == "" {
				d.scope = "repository:" + repository + ":pull"
			}
			return d, nil
		}
	}
	if basic {
		return demand{scheme: "basic"}, nil
	}
	return demand{}, why
}

// checkRealm refuses a token server that is not to be trusted with what it would
// be told. Errors do not repeat a realm that was not understood.
func (z *authorizer) checkRealm(realm string) error {
	u, err := url.Parse(realm)
	switch {
	case err != nil || u.Hostname() == "" || u.User != nil || u.Scheme != "http" && u.Scheme != "https":
		return errors.New("the realm of its challenge is no http or https URL")
	case u.Scheme == "http" && z.registry.base.Scheme == "https":
		return fmt.Errorf("the realm of its challenge, http://%s, is not https, which is refused", u.Host)
	}
	return nil
}

// obtain returns a grant for d that is not stale, which may be "".
func (z *authorizer) obtain(ctx context.Context, d demand, stale string) (grant, error) {
	if d.scheme == "basic" {
		return z.basic(ctx, d, stale)
	}
	z.mu.Lock()
	t, ok := z.tokens[d]
	z.mu.Unlock()
	if ok && t.header != stale && time.Now().Before(t.expires) {
		return grant{demand: d, header: t.header}, nil
	}
	header, err := z.share(ctx, d)
	return grant{demand: d, header: header, fresh: true}, err
}

// basic returns credentials. The node's are asked for each time: it is for their
// source to remember them.
func (z *authorizer) basic(ctx context.Context, d demand, stale string) (grant, error) {
	header, err := z.credentials(ctx, d.caller)
	if err != nil {
		return grant{}, err
	}
	if _, ok := identityToken(header); ok || header == "" || header == stale {
		return grant{}, &noGrantError{}
	}
	return grant{demand: d, header: header}, nil
}

// credentials returns a caller's credentials, else the node's, as a value of
// Authorization, or "" (RFC 7617).
func (z *authorizer) credentials(ctx context.Context, caller string) (string, error) {
	r := z.registry
	if caller != "" {
		return caller, nil
	}
	if r.cfg.Credentials == nil {
		return "", nil
	}
	username, password, err := r.cfg.Credentials(ctx, r.base.Host)
	if err != nil {
		return "", fmt.Errorf("upstream %s: credentials: %w", r.base.Host, err)
	}
	if username == "" && password == "" {
		return "", nil
	}
	return "Basic " + base64.StdEncoding.EncodeToString([]byte(username+":"+password)), nil
}

// share makes callers that want the same token at the same time share one
// request. It goes on, for tokenTimeout at most, when the one who began it
// leaves.
func (z *authorizer) share(ctx context.Context, d demand) (string, error) {
	key := strings.Join([]string{d.caller, d.realm, d.service, d.scope}, "\x00")
	c := z.flight.DoChan(key, func() (any, error) {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), tokenTimeout)
		defer cancel()
		t, err := z.fetch(ctx, d)
		if err != nil {
			return "", err
		}
		z.keep(d, t)
		return t.header, nil
	})
	select {
	case <-ctx.Done():
		return "", fmt.Errorf("upstream %s: token: %w", z.registry.base.Host, ctx.Err())
	case r := <-c:
		return r.Val.(string), r.Err
	}
}

// keep caches a token. When there is no room, those that have expired leave
// first.
func (z *authorizer) keep(d demand, t token) {
	z.mu.Lock()
	defer z.mu.Unlock()
	if len(z.tokens) >= maxRemembered {
		for other, old := range z.tokens {
			if !time.Now().Before(old.expires) {
				delete(z.tokens, other)
			}
		}
	}
	remember(z.tokens, d, t)
}

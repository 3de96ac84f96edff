package upstream

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/granary-oci/granary/chunkstore/chunk"
)

const (
	maxRedirects   = 5
	maxAuthRounds  = 3       // as found in the cache, renewed, and renewed for another challenge
	maxDrainBytes  = 8 << 10 // of a body that nobody reads, to keep its connection
	authorization  = "Authorization"
	acceptEncoding = "Accept-Encoding"
)

// answer is a response to a request that started at the registry.
type answer struct {
	*http.Response
	body   *body
	method string
	url    string   // of the registry, without query
	form   string   // the request's body, as of a form; "" for none
	at     *url.URL // that answered; it may be signed
	away   bool     // by redirect to another origin
}

func (a *answer) subject() string { return a.method + " " + a.url }

// ask is do for a question, whose answer is small: one that should be 2xx, and
// that is asked again for a while if it is not answered.
func (p *Repository) ask(ctx context.Context, method, path string, query url.Values, header http.Header, expected func(*answer) bool) (*answer, error) {
	return patiently(ctx, func() (*answer, error) {
		a, err := p.do(ctx, method, path, query, header)
		if err != nil || expected(a) {
			return a, err
		}
		return nil, a.failure()
	})
}

// ok reports whether an answer is 200.
func ok(a *answer) bool { return a.StatusCode == http.StatusOK }

// do asks for a path below the repository, with whatever authorization it takes.
// The caller closes the answer's body, whatever the status.
func (p *Repository) do(ctx context.Context, method, path string, query url.Values, header http.Header) (*answer, error) {
	r := p.registry
	u, err := p.url(path, query)
	if err != nil {
		return nil, fmt.Errorf("upstream %s: %w", r.base.Host, err)
	}
	g, err := r.auth.remembered(ctx, p)
	if err != nil {
		return nil, err
	}
	for round := 1; ; round++ {
		a, err := r.follow(ctx, method, u, r.introduced(g.authorize(header)))
		if err == nil {
			chunk.SetOrigin(ctx, r.cfg.Origin)
		}
		if err != nil || a.StatusCode != http.StatusUnauthorized || a.away {
			return a, err
		}
		refusal := a.failure()
		if round == maxAuthRounds {
			return nil, refusal
		}
		g, err = r.auth.meet(ctx, p, a.Header.Values("Www-Authenticate"), g)
		var no *noGrantError
		if errors.As(err, &no) {
			return nil, no.explain(refusal)
		}
		if err != nil {
			return nil, err
		}
	}
}

// introduced returns header with that of the settings.
func (r *Registry) introduced(header http.Header) http.Header {
	for name, values := range r.cfg.Header {
		header[name] = values
	}
	return header
}

// follow makes a request, and those that it is redirected to. Authorization goes
// no further than the origin of u: not to another host, not even a subdomain,
// not to another port or scheme (distribution-spec, "Redirects").
func (r *Registry) follow(ctx context.Context, method string, u *url.URL, header http.Header) (*answer, error) {
	return r.followForm(ctx, method, u, header, nil)
}

// followForm is follow with a form as the request's body.
func (r *Registry) followForm(ctx context.Context, method string, u *url.URL, header http.Header, form url.Values) (*answer, error) {
	b := r.newBody(ctx)
	a := &answer{body: b, method: method, url: withoutQuery(u), form: form.Encode()}
	b.subject = a.subject()
	if err := r.hop(a, u, maps.Clone(header)); err != nil {
		b.Close()
		return nil, err
	}
	a.Body = b
	a.Request = nil // it holds the token, and the query of a signed URL
	if a.StatusCode/100 == 2 && !plainEncoding(a.Header) {
		b.Close()
		return nil, fmt.Errorf("%s: the answer is encoded although identity was asked for", a.subject())
	}
	return a, nil
}

// hop goes from redirect to redirect until it has the response for a.
func (r *Registry) hop(a *answer, u *url.URL, header http.Header) error {
	if header == nil {
		header = make(http.Header)
	}
	header.Set("User-Agent", r.cfg.UserAgent)
	header.Set(acceptEncoding, "identity")
	if via := r.cfg.via(a.body.ctx); via != "" {
		header.Set("Via", via)
	}
	at := u
	for hops := 0; ; hops++ {
		resp, err := r.send(a, at, header)
		if err != nil {
			return err
		}
		a.Response, a.at, a.body.raw = resp, at, resp.Body
		location := redirection(resp)
		if location == "" {
			return nil
		}
		if hops == maxRedirects {
			return fmt.Errorf("%s: more than %d redirects", a.subject(), maxRedirects)
		}
		a.body.drain()
		if at, err = redirected(at, location); err != nil {
			return fmt.Errorf("%s: %w", a.subject(), err)
		}
		if !sameOrigin(u, at) {
			if r.cfg.Dial != nil {
				return fmt.Errorf("%s: redirected to %s, which is not connected to", a.subject(), at.Host)
			}
			if a.form != "" {
				return fmt.Errorf("%s: redirected to %s, which is not told an identity token", a.subject(), at.Host)
			}
			a.away = true
			header = header.Clone() // the last request's is still its own
			header.Del(authorization)
			header.Del("Cookie")
			for name := range r.cfg.Header {
				header.Del(name)
			}
		}
	}
}

// send makes one request, if its host is to be asked now.
func (r *Registry) send(a *answer, at *url.URL, header http.Header) (*http.Response, error) {
	began := time.Now()
	if err := r.breakers.allow(at.Host); err != nil {
		return nil, &NoAnswerError{a.subject(), &brokenCircuitError{err}}
	}
	ctx := a.body.ctx
	req := &http.Request{Method: a.method, URL: at, Header: header, Host: at.Host}
	if a.form != "" {
		req.Body, req.ContentLength = io.NopCloser(strings.NewReader(a.form)), int64(len(a.form))
	}
	ctx, err := r.cfg.throughProxy(ctx, req)
	var resp *http.Response
	if err == nil {
		resp, err = r.transport.RoundTrip(req.WithContext(ctx))
	}
	if err != nil {
		r.cfg.Observe(a.method, 0)
		err = explain(ctx, a.subject(), err)
		r.breakers.done(at.Host, began, !Unreachable(err), cause(err), 0)
		return nil, err
	}
	r.cfg.Observe(a.method, resp.StatusCode)
	if resp.StatusCode == http.StatusServiceUnavailable && once(ctx) {
		r.breakers.done(at.Host, began, false, "", 0)
		return resp, nil
	}
	r.breakers.observe(at.Host, began, resp)
	return resp, nil
}

// cause is what is wrong with a host, without what was asked of it: that is
// another caller's to know.
func cause(err error) string {
	var none *NoAnswerError
	if errors.As(err, &none) {
		err = none.Err
	}
	return err.Error()
}

// redirection returns where a response redirects to, or "".
func redirection(resp *http.Response) string {
	switch resp.StatusCode {
	case http.StatusMovedPermanently, http.StatusFound, http.StatusSeeOther,
		http.StatusTemporaryRedirect, http.StatusPermanentRedirect:
		return resp.Header.Get("Location")
	}
	return ""
}

// redirected returns the target of a redirect. No error repeats the location,
// which may be signed.
func redirected(from *url.URL, location string) (*url.URL, error) {
	to, err := from.Parse(location)
	switch {
	case err != nil:
		return nil, errors.New("redirected to a malformed URL")
	case to.Scheme != "http" && to.Scheme != "https" || to.Hostname() == "":
		return nil, fmt.Errorf("redirected to something with scheme %q and host %q", to.Scheme, to.Host)
	case from.Scheme == "https" && to.Scheme == "http":
		return nil, fmt.Errorf("redirected from https to http://%s, which is refused", to.Host)
	}
	to.User, to.Fragment, to.RawFragment = nil, "", ""
	return to, nil
}

// sameOrigin reports whether two URLs have one scheme, host and port (RFC 6454,
// section 5).
func sameOrigin(a, b *url.URL) bool {
	return a.Scheme == b.Scheme && strings.EqualFold(a.Hostname(), b.Hostname()) && port(a) == port(b)
}

func port(u *url.URL) string {
	switch p := u.Port(); {
	case p != "":
		return p
	case u.Scheme == "https":
		return "443"
	default:
		return "80"
	}
}

func withoutQuery(u *url.URL) string {
	return (&url.URL{Scheme: u.Scheme, Host: u.Host, Path: u.Path}).String()
}

// plainEncoding reports whether a body has the bytes that were asked for, not an
// encoding of them (RFC 9110, section 8.4).
func plainEncoding(h http.Header) bool {
	for _, v := range h.Values("Content-Encoding") {
		if v != "" && !strings.EqualFold(v, "identity") {
			return false
		}
	}
	return true
}

// body reads the body of an answer, and holds all that ends with it. Its request
// lives until Close, and under the caller's context until detach.
type body struct {
	raw      io.ReadCloser // of the last response; nil before the first
	ctx      context.Context
	cancel   context.CancelCauseFunc
	unlink   func() bool // from the caller's context
	stall    time.Duration
	timer    *time.Timer // runs during a Read, and cancels
	received func(int64)
	subject  string
	onClose  func() // nil for none
}

func (r *Registry) newBody(ctx context.Context) *body {
	b := &body{stall: r.cfg.StallTimeout, received: r.cfg.Received}
	b.ctx, b.cancel = context.WithCancelCause(context.WithoutCancel(ctx))
	b.unlink = context.AfterFunc(ctx, func() { b.cancel(ctx.Err()) })
	b.timer = time.AfterFunc(b.stall, func() { b.cancel(stalledError(b.stall)) })
	b.timer.Stop()
	return b
}

// Read implements [io.Reader]. A read that waits longer than the stall timeout
// fails; the time between reads does not count.
func (b *body) Read(p []byte) (int, error) {
	b.timer.Reset(b.stall)
	n, err := b.raw.Read(p)
	b.timer.Stop()
	b.received(int64(n))
	if err != nil && err != io.EOF {
		err = explain(b.ctx, b.subject, err)
	}
	return n, err
}

// Close ends the request. Its connection is kept if the body has been read to
// its end.
func (b *body) Close() error {
	b.unlink()
	var err error
	if b.raw != nil {
		err = b.raw.Close()
	}
	b.timer.Stop()
	b.cancel(context.Canceled)
	if b.onClose != nil {
		b.onClose()
		b.onClose = nil
	}
	return err
}

// readSome reads what is there of a small body: none of it is needed enough to
// wait for long.
func (b *body) readSome(limit int64) []byte {
	late := time.AfterFunc(b.stall, func() { b.cancel(stalledError(b.stall)) })
	defer late.Stop()
	p, _ := io.ReadAll(io.LimitReader(b, limit))
	return p
}

// drain reads a small rest, so that the connection can be used again, and closes
// the response but not the request.
func (b *body) drain() {
	b.readSome(maxDrainBytes)
	b.raw.Close()
}

// detach frees the request from the caller's context. It is false when that has
// ended already.
func (b *body) detach() bool { return b.unlink() }

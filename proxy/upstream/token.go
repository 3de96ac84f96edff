package upstream

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"
)

const (
	tokenTimeout  = 30 * time.Second // for one token, redirects included
	maxTokenBytes = 64 << 10         // of an answer with a token
	minTokenLife  = 60 * time.Second // where the answer does not say
)

// tokenAnswer is what a token server says (distribution, "Token Authentication
// Specification", "Token Response Fields").
type tokenAnswer struct {
	Token       string  `json:"token"`
	AccessToken string  `json:"access_token"` // the name that OAuth 2.0 has for it
	ExpiresIn   float64 `json:"expires_in"`   // seconds
	IssuedAt    string  `json:"issued_at"`    // RFC 3339
}

// fetch asks the realm of d for a token, in the name of the caller's credentials
// or the node's, if there are any.
func (z *authorizer) fetch(ctx context.Context, d demand) (token, error) {
	u, err := tokenURL(d)
	if err != nil {
		return token{}, err
	}
	header, err := z.credentials(ctx, d.caller)
	if err != nil {
		return token{}, err
	}
	asked := time.Now()
	a, err := z.ask(ctx, d, u, header)
	if Refused(err) { // the client may get a token where the node may not go
		return token{}, &noGrantError{err.Error()}
	}
	if err != nil {
		return token{}, fmt.Errorf("token: %w", err)
	}
	defer a.body.Close()
	if a.StatusCode != http.StatusOK {
		return token{}, a.tokenRefusal(u.Host)
	}
	raw, err := io.ReadAll(io.LimitReader(a.body, maxTokenBytes+1))
	if err != nil {
		return token{}, fmt.Errorf("token: %w", err)
	}
	t, err := parseToken(raw, a.Header.Get("Date"), asked)
	if err != nil {
		return token{}, fmt.Errorf("%s: %w", a.subject(), err)
	}
	return t, nil
}

// identity is the name under which Docker's configuration has an identity token
// in place of a password.
const identity = "<token>"

// ask makes the request for a token: with a password by GET, and with an identity
// token by POST, which OAuth 2.0 calls to refresh (RFC 6749, section 6).
func (z *authorizer) ask(ctx context.Context, d demand, u *url.URL, authorization string) (*answer, error) {
	secret, ok := identityToken(authorization)
	if !ok {
		return z.registry.follow(ctx, http.MethodGet, u, grant{header: authorization}.authorize(nil))
	}
	at := *u
	at.RawQuery = ""
	form := url.Values{"grant_type": {"refresh_token"}, "refresh_token": {secret}, "client_id": {"granary"}, "service": {d.service}, "scope": {d.scope}}
	return z.registry.followForm(ctx, http.MethodPost, &at, http.Header{"Content-Type": {"application/x-www-form-urlencoded"}}, form)
}

// identityToken returns the identity token that a value of Authorization has in
// place of a password.
func identityToken(authorization string) (string, bool) {
	username, secret, ok := (&http.Request{Header: http.Header{"Authorization": {authorization}}}).BasicAuth()
	return secret, ok && username == identity
}

// tokenRefusal tells a token server that does not work from one that says no. A
// 404 is among the latter: it is not what was asked for upstream that is missing.
func (a *answer) tokenRefusal(host string) error {
	code := a.StatusCode
	err := a.failure()
	if code/100 == 5 || code == http.StatusTooManyRequests {
		return fmt.Errorf("token: %w", err)
	}
	return &noGrantError{fmt.Sprintf("the token server %s answers %d", host, code)}
}

// tokenURL adds to a realm what the token is for. Each of several scopes is a
// parameter of its own.
func tokenURL(d demand) (*url.URL, error) {
	u, err := url.Parse(d.realm)
	if err != nil {
		return nil, &noGrantError{"the realm of its challenge is malformed"}
	}
	q := u.Query()
	if d.service != "" {
		q.Set("service", d.service)
	}
	q.Del("scope")
	for _, s := range strings.Fields(d.scope) {
		q.Add("scope", s)
	}
	u.RawQuery, u.Fragment, u.RawFragment = q.Encode(), "", ""
	return u, nil
}

// parseToken reads a token server's answer, that was asked for at the time asked
// and dated by the server. No error repeats any of it.
func parseToken(raw []byte, date string, asked time.Time) (token, error) {
	if len(raw) > maxTokenBytes {
		return token{}, fmt.Errorf("token answer has more than %d bytes", maxTokenBytes)
	}
	var a tokenAnswer
	if json.Unmarshal(raw, &a) != nil {
		return token{}, errors.New("token answer is not the JSON that was expected")
	}
	if a.Token == "" {
		a.Token = a.AccessToken
	}
	if a.Token == "" || strings.ContainsFunc(a.Token, func(c rune) bool { return c <= ' ' || c >= 0x7f }) {
		return token{}, errors.New("token answer has no token that fits a header")
	}
	return token{"Bearer " + a.Token, asked.Add(a.life(date))}, nil
}

// life returns for how long after it was asked for a token may be used. Its age
// is taken from the server's clock alone, which need not agree with ours.
func (a tokenAnswer) life(date string) time.Duration {
	life := minTokenLife
	if a.ExpiresIn != 0 {
		life = time.Duration(min(max(a.ExpiresIn, 0), maxTokenLife.Seconds()) * float64(time.Second))
	}
	life -= min(maxExpiryLead, life/4)
	issued, err := time.Parse(time.RFC3339, a.IssuedAt)
	answered, dateErr := http.ParseTime(date)
	if err == nil && dateErr == nil {
		life -= max(answered.Sub(issued), 0)
	}
	return life
}

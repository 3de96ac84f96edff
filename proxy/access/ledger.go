package access

import (
	"crypto/pbkdf2"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"
)

// ErrUnchecked says that what was asked for is there, but the upstream cannot be
// asked whether the caller may have it, and has not said so before.
var ErrUnchecked = errors.New("the upstream cannot be asked whether you may read this, and has not allowed it before")

// Records keep grants over restarts. A record that is lost costs a question to
// the upstream.
type Records interface {
	Get(key string, value any) bool
	Put(key string, value any) error
	Delete(key string) error
}

// Defaults and limits of how long grants are good for.
const (
	defaultPublicFor = 10 * time.Minute
	defaultGrantFor  = 5 * time.Minute
	defaultHoldFor   = 7 * 24 * time.Hour
	maxHoldGrant     = time.Hour   // for a credential
	opaqueTokenLife  = time.Minute // of a token that does not say

	maxGrants    = 1 << 14 // in memory
	maxChallenge = 4 << 10 // bytes of what a repository's challenges are remembered
	maxHashed    = 1 << 10 // passwords whose slow hash is remembered
	iterations   = 1 << 17 // of the slow hash
)

// Config says how long grants are good for. Zeros are the defaults.
type Config struct {
	// PublicFor is how long what is public is served without asking: 10 min.
	PublicFor time.Duration
	// GrantFor is the same for a credential: 5 min.
	GrantFor time.Duration
	// HoldFor is how long after its last word an upstream that cannot be reached
	// is taken at it: 7 days, but never more than an hour for a credential.
	HoldFor time.Duration
	// Shared reports whether the node's own credentials for a registry are for
	// everybody who asks the node. nil is never.
	Shared func(host string) bool
	// Public reports whether settings make all public that a host serves, which asks for
	// no credentials. While it cannot be reached what it has served is served on. nil is
	// never.
	Public func(host string) bool
	// Report is told of records that could not be kept. nil ignores them.
	Report func(error)
	// Now is the clock on the wall, by which grants are dated. nil is [time.Now].
	Now func() time.Time
}

// Ledger remembers grants. It is safe for concurrent use.
type Ledger struct {
	cfg     Config
	records Records

	mu     sync.Mutex
	grants map[grantKey]Grant
	hashes map[[sha256.Size]byte]string // slow hashes of passwords

	hashing sync.Mutex // one slow hash at a time: whoever sends many waits alone
	salt    []byte     // guarded by hashing
}

// grantKey is a repository, as host/name, and a [Caller.hash].
type grantKey struct {
	repository string
	caller     [sha256.Size]byte
}

// Grant is the upstream's last word that a caller may read a repository.
type Grant struct {
	Checked time.Time `json:"checked"`
	Expires time.Time `json:"expires,omitzero"` // with the token; zero does not
	Denied  bool      `json:"denied,omitempty"` // it is the word that the caller may not
}

// New returns a ledger over records, which hold what an earlier one knew.
func New(cfg Config, records Records) *Ledger {
	setDefault(&cfg.PublicFor, defaultPublicFor)
	setDefault(&cfg.GrantFor, defaultGrantFor)
	setDefault(&cfg.HoldFor, defaultHoldFor)
	if cfg.Shared == nil {
		cfg.Shared = func(string) bool { return false }
	}
	if cfg.Public == nil {
		cfg.Public = func(string) bool { return false }
	}
	if cfg.Report == nil {
		cfg.Report = func(error) {}
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	return &Ledger{
		cfg: cfg, records: records,
		grants: make(map[grantKey]Grant), hashes: make(map[[sha256.Size]byte]string),
	}
}

func setDefault(d *time.Duration, v time.Duration) {
	if *d <= 0 {
		*d = v
	}
}

// Shared reports whether the node's own credentials for a registry are for
// everybody who asks the node.
func (l *Ledger) Shared(host string) bool { return l.cfg.Shared(host) }

// HoldFor returns for how long an upstream that cannot be reached is taken at its
// last word.
func (l *Ledger) HoldFor() time.Duration { return l.cfg.HoldFor }

// Now returns the time by the clock that grants are dated by.
func (l *Ledger) Now() time.Time { return l.cfg.Now() }

// Public reports whether everybody may read a repository of host now, without
// the upstream being asked.
func (l *Ledger) Public(host, repository string) bool {
	return l.fresh(l.identity(host, Caller{}), repository)
}

// Refused reports whether the upstream has said of a repository of host that not everybody may read
// it, as lately as would do for the opposite.
func (l *Ledger) Refused(host, repository string) bool {
	g, ok := l.Word(host, repository, Caller{})
	return ok && g.Denied && l.Now().Sub(g.Checked).Abs() < l.cfg.PublicFor
}

// Fresh reports whether a caller may read a repository of host now, without the
// upstream being asked.
func (l *Ledger) Fresh(host, repository string, c Caller) bool {
	return l.Public(host, repository) || !c.Anonymous() && l.fresh(c, repository)
}

func (l *Ledger) fresh(c Caller, repository string) bool {
	g, ok := l.remembered(c, repository)
	if !ok && !c.password() {
		g, ok = l.recorded(c, repository)
	}
	now := l.Now()
	return ok && g.good(now, l.freshFor(c)) && !c.ended(now)
}

// Holds reports whether a caller may read a repository of host for as long as
// the upstream cannot be asked.
func (l *Ledger) Holds(host, repository string, c Caller) bool {
	return l.cfg.Public(host) || l.holds(l.identity(host, Caller{}), repository) || !c.Anonymous() && l.holds(c, repository)
}

func (l *Ledger) holds(c Caller, repository string) bool {
	g, ok := l.remembered(c, repository)
	if !ok {
		g, ok = l.recorded(c, repository)
	}
	now := l.Now()
	return ok && g.good(now, l.holdFor(c)) && !c.ended(now)
}

// Allow records that the upstream has served a caller, some time ago.
func (l *Ledger) Allow(host, repository string, c Caller, age time.Duration) {
	c = l.identity(host, c)
	g := Grant{Checked: l.Now().Add(-age)}
	switch expires, ok := c.expires(); {
	case ok:
		g.Expires = expires
	case !c.named() && !c.password():
		g.Expires = g.Checked.Add(opaqueTokenLife)
	}
	if later, ok := l.Word(host, repository, c); ok && age > 0 && !g.overrules(later) {
		return // what is hearsay does not stand against what was said since
	}
	old, known := l.remembered(c, repository)
	l.remember(c, repository, g)
	if known && old.good(l.Now(), l.freshFor(c)/4) {
		return // what is recorded is as good, and the disk is spared
	}
	l.report(l.records.Put(l.key(c, repository), g))
}

// Deny records that the upstream has refused a caller, with these challenges:
// the values of WWW-Authenticate.
func (l *Ledger) Deny(host, repository string, c Caller, challenges []string) {
	c = l.identity(host, c)
	old, known := l.remembered(c, repository)
	l.remember(c, repository, Grant{Checked: l.Now(), Denied: true}) // hides what is recorded
	if !c.password() || known && !old.Denied {
		l.report(l.records.Delete(l.key(c, repository))) // no slow hash for a wrong password
	}
	if size := len(strings.Join(challenges, "")); size > 0 && size <= maxChallenge && !slices.Equal(l.Challenges(repository), challenges) {
		l.report(l.records.Put(challengeKey(repository), challenges))
	}
}

// Word returns the upstream's last word on a caller that is known here.
func (l *Ledger) Word(host, repository string, c Caller) (Grant, bool) {
	c = l.identity(host, c)
	g, ok := l.remembered(c, repository)
	if !ok {
		g, ok = l.recorded(c, repository)
	}
	return g, ok
}

// Hear records the upstream's word on a caller as another node has it, unless a
// later one is known. challenges go with a refusal.
func (l *Ledger) Hear(host, repository string, c Caller, g Grant, challenges []string) {
	if known, ok := l.Word(host, repository, c); ok && !g.overrules(known) {
		return
	}
	if g.Denied {
		l.Deny(host, repository, c, challenges)
	}
	c = l.identity(host, c)
	l.remember(c, repository, g)
	if !g.Denied {
		l.report(l.records.Put(l.key(c, repository), g))
	}
}

// Grants returns the words on callers of a repository that are in memory, at most
// n, by the hash of the caller, and the recorded one on the token whose hash is
// wanted: for other nodes.
func (l *Ledger) Grants(repository, wanted string, n int) map[string]Grant {
	found := make(map[string]Grant)
	var g Grant
	if len(wanted) == 2*sha256.Size && l.records.Get(tokenKey(repository, wanted), &g) {
		found[wanted] = g
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	for k, g := range l.grants {
		if k.repository == repository && len(found) < n && k.caller != (Caller{}).hash() && k.caller != (Caller{nodeItself}).hash() {
			found[hex.EncodeToString(k.caller[:])] = g
		}
	}
	return found
}

// HearOf is Hear for a caller of whom only the hash is known. That of a password is
// kept in memory alone: on a disk it would be one to guess the password by.
func (l *Ledger) HearOf(repository, hash string, g Grant, token bool) error {
	k := grantKey{repository: repository}
	if n, err := hex.Decode(k.caller[:], []byte(clip(hash, 2*sha256.Size))); err != nil || n != sha256.Size || len(hash) != 2*sha256.Size {
		return errors.New("not the hash of a caller")
	}
	if k.caller == (Caller{}).hash() || k.caller == (Caller{nodeItself}).hash() {
		return errors.New("not the hash of a credential")
	}
	l.mu.Lock()
	known, ok := l.grants[k]
	l.mu.Unlock()
	if ok && !g.overrules(known) {
		return nil
	}
	l.rememberAs(k, g)
	switch {
	case token && g.Denied:
		l.report(l.records.Delete(tokenKey(repository, hash)))
	case token:
		l.report(l.records.Put(tokenKey(repository, hash), g))
	}
	return nil
}

func clip(s string, n int) string { return s[:min(len(s), n)] }

// Challenges returns those that a repository made when it last refused somebody.
func (l *Ledger) Challenges(repository string) (challenges []string) {
	l.records.Get(challengeKey(repository), &challenges)
	return challenges
}

func challengeKey(repository string) string { return "challenge " + repository }

// The caller that stands for the node's own credentials. No header has a line
// feed.
const nodeItself = "node\n"

// named reports whether the caller is no credential of a client.
func (c Caller) named() bool { return c.Anonymous() || c.authorization == nodeItself }

// identity returns whom a grant is for: where the node shares its credentials,
// whoever brings none comes with those. What they were granted is forgotten, in
// effect, when they are not shared any more.
func (l *Ledger) identity(host string, c Caller) Caller {
	if c.Anonymous() && l.cfg.Shared(host) {
		return Caller{nodeItself}
	}
	return c
}

func (l *Ledger) freshFor(c Caller) time.Duration {
	if c.named() {
		return l.cfg.PublicFor
	}
	return l.cfg.GrantFor
}

func (l *Ledger) holdFor(c Caller) time.Duration {
	if c.named() {
		return l.cfg.HoldFor
	}
	return min(l.cfg.HoldFor, maxHoldGrant)
}

// overrules reports whether a word that another node has is later than the one that
// is known here. What travels is its age, so that it comes out later by the time
// that it was on its way: a grant must not so get past the refusal that ended it.
func (g Grant) overrules(known Grant) bool {
	const onItsWay = 5 * time.Second
	since := known.Checked
	if known.Denied && !g.Denied {
		since = since.Add(onItsWay)
	}
	return g.Checked.After(since)
}

// good reports whether a grant was given within d of now, and its token lives. A grant
// from the future, by a clock that was put back, is as old as it is far.
func (g Grant) good(now time.Time, d time.Duration) bool {
	return !g.Denied && now.Sub(g.Checked).Abs() < d && (g.Expires.IsZero() || now.Before(g.Expires))
}

func (l *Ledger) remembered(c Caller, repository string) (Grant, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	g, ok := l.grants[grantKey{repository, c.hash()}]
	return g, ok
}

func (l *Ledger) remember(c Caller, repository string, g Grant) {
	l.rememberAs(grantKey{repository, c.hash()}, g)
}

func (l *Ledger) rememberAs(k grantKey, g Grant) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for other := range l.grants {
		if _, there := l.grants[k]; there || len(l.grants) < maxGrants {
			break
		}
		delete(l.grants, other)
	}
	l.grants[k] = g
}

// recorded returns a grant from before the process began, or that memory had no
// room for.
func (l *Ledger) recorded(c Caller, repository string) (g Grant, ok bool) {
	if !l.records.Get(l.key(c, repository), &g) {
		return g, false
	}
	l.remember(c, repository, g)
	return g, true
}

// key is where a grant is recorded.
func (l *Ledger) key(c Caller, repository string) string {
	switch {
	case c.Anonymous():
		return "public " + repository
	case c.authorization == nodeItself:
		return "node " + repository
	case c.password():
		return "password " + repository + " " + l.slowHash(c)
	}
	h := c.hash()
	return tokenKey(repository, hex.EncodeToString(h[:]))
}

func tokenKey(repository, hash string) string { return "token " + repository + " " + hash }

// slowHash returns a hash of a password that takes too long to be worth guessing
// by, some 20 ms.
func (l *Ledger) slowHash(c Caller) string {
	if known, ok := l.hashed(c); ok {
		return known
	}
	l.hashing.Lock()
	defer l.hashing.Unlock()
	if known, ok := l.hashed(c); ok {
		return known
	}
	h, err := pbkdf2.Key(sha256.New, c.authorization, l.readSalt(), iterations, sha256.Size)
	if err != nil {
		l.report(fmt.Errorf("access: hash a password: %w", err))
		return rand.Text() // under which nothing is found
	}
	s := hex.EncodeToString(h)
	l.mu.Lock()
	defer l.mu.Unlock()
	for other := range l.hashes {
		if len(l.hashes) < maxHashed {
			break
		}
		delete(l.hashes, other)
	}
	l.hashes[c.hash()] = s
	return s
}

func (l *Ledger) hashed(c Caller) (string, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	h, ok := l.hashes[c.hash()]
	return h, ok
}

// readSalt returns the node's salt, made once; l.hashing is held.
func (l *Ledger) readSalt() []byte {
	if l.salt == nil && !l.records.Get("salt", &l.salt) {
		l.salt = make([]byte, 16)
		_, _ = rand.Read(l.salt) // it never fails
		l.report(l.records.Put("salt", l.salt))
	}
	return l.salt
}

func (l *Ledger) report(err error) {
	if err != nil {
		l.cfg.Report(err)
	}
}

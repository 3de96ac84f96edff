package parent

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"slices"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/granary-oci/granary/chunkstore/chunk"
	"github.com/granary-oci/granary/proxy/ref"
	"github.com/granary-oci/granary/proxy/upstream"
)

// Limits of a parent at fault.
const (
	firstBan  = time.Minute
	longBan   = time.Hour
	forgotten = 24 * time.Hour // after which a fault counts no more
)

// Config describes a parent.
type Config struct {
	// Name is what it is called: in logs, metrics, the status and answers.
	Name string
	// Upstream says how it is connected to, and by what it knows this site. Origin and Relay are
	// set here.
	Upstream upstream.Config
	// Gateway says that chunks of public repositories are got by their CID, where the parent has a
	// map of the blob, for caches on the way to have them (package gateway).
	Gateway bool
	// Allow returns why the parent is not to be asked now, such as that its link has carried enough
	// today. nil is for always.
	Allow func() error
	// Heard is told when the parent no longer answers, with why, and with nil when it answers again. It is
	// called in the midst of a question, and must not wait. nil ignores both.
	Heard func(error)
	// Limit returns how many bytes per second may come from it now, 0 for any number. nil is for any.
	Limit func() int64
}

// Parents are the sites that are asked before the registries, in order of preference. It is
// safe for concurrent use.
type Parents struct {
	all    []*Parent
	report func(error)
	size   Sizes
	given  given
	finder finder
}

// Sizes returns the size in bytes that a blob has by what is known of a repository.
type Sizes func(repo ref.Repository, d digest.Digest) (size int64, known bool)

// New returns the parents that configs describe, in their order. It asks none. report is told
// of faults; size may be nil.
func New(configs []Config, size Sizes, report func(error)) (*Parents, error) {
	if size == nil {
		size = func(ref.Repository, digest.Digest) (int64, bool) { return 0, false }
	}
	ps := &Parents{report: report, size: size}
	for _, cfg := range configs {
		cfg.Upstream.Origin = chunk.OfParent(cfg.Name)
		p, err := newParent(cfg)
		if err != nil {
			return nil, err
		}
		ps.all = append(ps.all, p)
	}
	return ps, nil
}

func newParent(cfg Config) (*Parent, error) {
	p := &Parent{name: cfg.Name, origin: chunk.OfParent(cfg.Name), allow: cfg.Allow, heard: cfg.Heard, limit: cfg.Limit, gateway: cfg.Gateway}
	if p.allow == nil {
		p.allow = func() error { return nil }
	}
	if p.heard == nil {
		p.heard = func(error) {}
	}
	if p.limit == nil {
		p.limit = func() int64 { return 0 }
	}
	cfg.Upstream.Relay = true
	received := cfg.Upstream.Received
	cfg.Upstream.Received = func(n int64) {
		p.count(n)
		if received != nil {
			received(n)
		}
	}
	if p.dial = cfg.Upstream.Dial; p.dial != nil {
		cfg.Upstream.Dial = p.reach
	}
	var err error
	if p.registry, err = upstream.New(cfg.Upstream); err != nil {
		return nil, fmt.Errorf("%s: %w", p.origin, err)
	}
	return p, nil
}

// dialer connects to a parent, see [upstream.Config].
type dialer func(ctx context.Context, network, address string) (net.Conn, error)

// reach connects to where the parent is.
func (p *Parent) reach(ctx context.Context, network, address string) (net.Conn, error) {
	p.mu.Lock()
	dial := p.dial
	p.mu.Unlock()
	return dial(ctx, network, address)
}

// move has the parent connected to in another way from now on.
func (p *Parent) move(dial dialer) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.dial = dial
}

// repository returns a registry's repository as the parent has it.
func (p *Parent) repository(name ref.Repository, authorization string) *upstream.Repository {
	return p.registry.Repository(name.Host + "/" + name.Name).As(authorization)
}

// Close closes the connections that are not in use. What is under way goes on.
func (ps *Parents) Close() {
	for _, p := range ps.all {
		p.registry.Close()
	}
	ps.finder.mu.Lock()
	defer ps.finder.mu.Unlock()
	for _, p := range ps.finder.sites {
		p.registry.Close()
	}
}

// First returns the name of the first parent that is asked now and answers, as far as is known. If none does it is the first
// of all, "" without any.
func (ps *Parents) First() (name string, answers bool) {
	for _, p := range ps.all {
		if p.answers() {
			return p.name, true
		}
	}
	if len(ps.all) == 0 {
		return "", false
	}
	return ps.all[0].name, false
}

// named returns the parent of a name that settings give, or nil.
func (ps *Parents) named(name string) *Parent {
	i := slices.IndexFunc(ps.all, func(p *Parent) bool { return p.name == name })
	if i < 0 {
		return nil
	}
	return ps.all[i]
}

// Configured reports whether a parent is of the settings, and no site that was found.
func (ps *Parents) Configured(name string) bool { return ps.named(name) != nil }

// Blame puts the parent of a name at fault, which another member has found.
func (ps *Parents) Blame(name string, err error) {
	if p := ps.named(name); p != nil {
		ps.fault(p, err)
	}
}

// Believed reports whether there is a parent of that name which is not at fault.
func (ps *Parents) Believed(name string) bool {
	p := ps.named(name)
	return p != nil && p.usable() == nil
}

func (ps *Parents) fault(p *Parent, err error) {
	if p.ban(err) {
		ps.report(err)
	}
}

// Try asks each parent that may be asked now whether it lets this site ask, for the status to tell.
func (ps *Parents) Try(ctx context.Context) {
	var all sync.WaitGroup
	for _, p := range ps.all {
		all.Go(func() {
			face := &Repository{ps, p, ref.Repository{}, p.registry.Static(), true}
			if resp, err := face.Get(ctx, "v2", nil, nil); err == nil {
				_ = resp.Body.Close()
			}
		})
	}
	all.Wait()
}

// Status is what is made of a parent.
type Status struct {
	Name     string    `json:"name"`
	State    string    `json:"state"` // up, down, resting (it is not to be asked now) or quarantined
	Error    string    `json:"error,omitempty"`
	Received int64     `json:"received"` // bytes, since the node was started
	Faults   int       `json:"faults"`   // within a day
	Until    time.Time `json:"quarantined,omitzero"`
	Found    bool      `json:"found,omitempty"` // by who has what, and in no setting
}

// Status returns what is made of each parent, in order of preference, and of sites that were found.
func (ps *Parents) Status() (all []Status) {
	for _, p := range ps.all {
		all = append(all, p.status())
	}
	ps.finder.mu.Lock()
	defer ps.finder.mu.Unlock()
	for _, name := range slices.Sorted(maps.Keys(ps.finder.sites)) {
		s := ps.finder.sites[name].status()
		s.Found = true
		all = append(all, s)
	}
	return all
}

// Parent is one site.
type Parent struct {
	name, origin string
	registry     *upstream.Registry
	allow        func() error
	heard        func(error)
	limit        func() int64
	gateway      bool
	known        knownMaps
	pace         pace
	queue        queue

	mu       sync.Mutex
	dial     dialer // nil is by TCP
	received int64
	faults   int
	last     error     // fault
	at       time.Time // of it
	until    time.Time // not asked
	failed   error     // its last failure to answer, since it answered last
}

func (p *Parent) count(n int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.received += n
}

// ban has a parent not asked for a while. It reports whether that is news: of several wrong
// answers that were under way one counts.
func (p *Parent) ban(err error) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	now := time.Now()
	if now.Before(p.until) {
		return false
	}
	if now.Sub(p.at) > forgotten {
		p.faults = 0
	}
	p.until = now.Add(min(firstBan<<min(p.faults, 10), longBan))
	p.faults++
	p.last, p.at = err, now
	return true
}

func (p *Parent) lastFault() time.Time {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.at
}

// usable returns why a parent is not asked now, as an answer that did not come.
func (p *Parent) usable() error {
	if err := p.allow(); err != nil {
		return &upstream.NoAnswerError{Subject: p.origin, Err: err}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if time.Now().Before(p.until) {
		return &upstream.NoAnswerError{Subject: p.origin, Err: fmt.Errorf("it is at fault and not asked before %s: %w", p.until.UTC().Format(time.RFC3339), quiet(p.last))}
	}
	return nil
}

// answers reports whether the parent is asked now, and has answered when it was asked last.
func (p *Parent) answers() bool {
	if p.usable() != nil {
		return false
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.failed == nil
}

// quiet is err as text alone: what a parent once did wrong is not what is wrong now.
func quiet(err error) error { return errors.New(err.Error()) }

// heed takes note of an answer.
func (p *Parent) heed(err error) {
	switch {
	case upstream.Unreachable(err):
	case err == nil || errors.Is(err, chunk.ErrNotFound) || errors.Is(err, chunk.ErrDenied):
		err = nil
	default:
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if (err == nil) != (p.failed == nil) {
		p.heard(err)
	}
	p.failed = err
}

func (p *Parent) status() Status {
	p.mu.Lock()
	defer p.mu.Unlock()
	s := Status{Name: p.name, State: "up", Received: p.received}
	if time.Since(p.at) <= forgotten {
		s.Faults = p.faults
	}
	if p.failed != nil {
		s.State, s.Error = "down", p.failed.Error()
	}
	if err := p.allow(); err != nil {
		s.State, s.Error = "resting", err.Error()
	}
	if time.Now().Before(p.until) {
		s.State, s.Error, s.Until = "quarantined", p.last.Error(), p.until
	}
	return s
}

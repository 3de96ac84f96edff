package proxy

import (
	"context"
	"encoding/json"
	"errors"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/granary-oci/granary/proxy/access"
	"github.com/granary-oci/granary/proxy/catalog"
	"github.com/granary-oci/granary/proxy/ref"
)

// Facts are what members tell each other of a repository. Times are ages, for
// clocks differ.
type Facts struct {
	Tags    map[string]TagFact               `json:"tags,omitempty"`
	Members map[digest.Digest]catalog.Member `json:"members,omitempty"`
	// Everybody is the upstream's last word on who may read, on nobody in particular.
	Everybody *WordFact `json:"everybody,omitempty"`
	// Callers are words on credentials, by their SHA-256: they do not travel.
	Callers map[string]WordFact `json:"callers,omitempty"`
	// Challenges are those of the upstream's last refusal.
	Challenges []string `json:"challenges,omitempty"`
	// Profiles are access profiles, by the digest of the image's manifest.
	Profiles map[digest.Digest][]byte `json:"profiles,omitempty"`
	// Itself says that the word on everybody is one on the node's own credentials.
	Itself bool `json:"itself,omitempty"`
}

// TagFact is what a tag was resolved to.
type TagFact struct {
	Digest    digest.Digest `json:"digest"`
	MediaType string        `json:"mediaType,omitempty"`
	Size      int64         `json:"size"`
	Age       Millis        `json:"age"`
	Imported  bool          `json:"imported,omitempty"`
}

// WordFact is the upstream's word on one caller.
type WordFact struct {
	Age    Millis `json:"age"`
	Left   Millis `json:"left,omitempty"` // that the token lives; 0 is no end
	Denied bool   `json:"denied,omitempty"`
	Token  bool   `json:"token,omitempty"` // the credential is no password
}

// Millis is a duration in milliseconds.
type Millis int64

func millis(d time.Duration) Millis { return Millis(max(d, 0).Milliseconds()) }

// since returns the time that was so long ago, at most a year.
func (m Millis) since(now time.Time) time.Time {
	const year = 365 * 24 * 3600 * 1000
	return now.Add(-time.Duration(min(max(m, 0), year)) * time.Millisecond)
}

// Limits of facts about one repository. Above them the rest is learned when it is
// needed.
const (
	maxFactTags    = 1000
	maxFactMembers = 4000
	maxFactCallers = 1000
	maxProfiles    = 1
	maxFactText    = 512 // bytes of a tag or media type
)

// Facts returns what is known of a repository, and of who may read it: among others
// the credential whose SHA-256, in hexadecimal, is caller.
func (r *Registry) Facts(in In, caller string) []byte {
	now := r.ledger.Now()
	f := Facts{Tags: make(map[string]TagFact), Members: r.cfg.Catalog.Members(in.String(), maxFactMembers), Itself: r.ledger.Shared(in.Host)}
	for tag, t := range r.cfg.Catalog.Tags(in.String(), maxFactTags) {
		f.Tags[tag] = tagFact(t, now)
	}
	f.Everybody = r.word(in, access.Caller{}, now)
	f.Callers = make(map[string]WordFact)
	for hash, g := range r.ledger.Grants(in.String(), caller, maxFactCallers) {
		if w, ok := wordFact(g, now); ok {
			f.Callers[hash] = w
		}
	}
	f.Challenges = r.ledger.Challenges(in.String())
	return encode(f)
}

func tagFact(t catalog.Tag, now time.Time) TagFact {
	return TagFact{t.Digest, t.MediaType, t.Size, millis(now.Sub(t.Checked)), t.Imported}
}

func (r *Registry) word(in In, c access.Caller, now time.Time) *WordFact {
	g, ok := r.ledger.Word(in.Host, in.String(), c)
	if !ok {
		return nil
	}
	w, ok := wordFact(g, now)
	if !ok {
		return nil
	}
	return &w
}

// wordFact returns what to tell of a word. ok is false for a grant that has ended
// with its token: it would live on where it arrives.
func wordFact(g access.Grant, now time.Time) (w WordFact, ok bool) {
	w = WordFact{Age: millis(now.Sub(g.Checked)), Denied: g.Denied}
	if g.Expires.IsZero() || g.Denied {
		return w, true
	}
	w.Left = millis(g.Expires.Sub(now))
	return w, w.Left > 0
}

func (w WordFact) grant(now time.Time) access.Grant {
	g := access.Grant{Checked: w.Age.since(now), Denied: w.Denied}
	if w.Left > 0 {
		g.Expires = now.Add(time.Duration(min(w.Left, 1<<40)) * time.Millisecond)
	}
	return g
}

func encode(f Facts) []byte {
	p, err := json.Marshal(f)
	if err != nil {
		return nil // there is nothing in it that cannot be encoded
	}
	return p
}

// Learn takes over what another member says of a repository, as far as it is newer
// than what is known.
func (r *Registry) Learn(in In, facts []byte) error {
	f, err := r.parseFacts(facts)
	if err != nil {
		return err
	}
	if len(f.Tags) > maxFactTags || len(f.Members) > maxFactMembers || len(f.Callers) > maxFactCallers || len(f.Profiles) > maxProfiles {
		return errors.New("there are too many facts")
	}
	now := r.ledger.Now()
	for image, p := range f.Profiles {
		if err := r.learnProfile(image, p); err != nil {
			return err
		}
	}
	for tag, t := range f.Tags {
		r.learnTag(in.Repository, tag, t, now)
	}
	maps.DeleteFunc(f.Members, func(d digest.Digest, m catalog.Member) bool {
		return d.Validate() != nil || m.Size < 0 || len(m.MediaType) > maxFactText // as somebody has pushed it
	})
	r.report(r.cfg.Catalog.AddMembers(in.String(), f.Members))
	for hash, w := range f.Callers {
		if err := r.ledger.HearOf(in.String(), hash, w.grant(now), w.Token); err != nil {
			return err
		}
	}
	r.recent.add(in.Repository)
	if f.Itself == r.ledger.Shared(in.Host) {
		r.hear(in, access.Caller{}, f.Everybody, f.Challenges, now)
	}
	return nil
}

// parseFacts parses in its turn, for facts take several times their size.
func (r *Registry) parseFacts(facts []byte) (f Facts, err error) {
	if err := r.parsing.Acquire(context.Background(), 1); err != nil {
		return f, err
	}
	defer r.parsing.Release(1)
	if json.Unmarshal(facts, &f) != nil {
		err = errors.New("facts are not the JSON that was expected")
	}
	return f, err
}

func (r *Registry) learnTag(repo ref.Repository, tag string, t TagFact, now time.Time) {
	if !ref.IsTag(tag) || t.Digest.Validate() != nil || t.Size < 0 || len(t.MediaType) > maxFactText {
		return
	}
	checked := t.Age.since(now)
	if r.forgotten.since(repo, tag, checked.Add(-onItsWay)) {
		return
	}
	if known, ok := r.cfg.Catalog.Tag(repo.String(), tag); !ok || known.Checked.Before(checked) {
		r.report(r.cfg.Catalog.SetTag(repo.String(), tag, catalog.Tag{
			Digest: t.Digest, MediaType: t.MediaType, Size: t.Size, Checked: checked, Imported: t.Imported || r.importedAs(repo, tag, t.Digest),
		}))
	}
}

func (r *Registry) hear(in In, c access.Caller, w *WordFact, challenges []string, now time.Time) {
	if w == nil {
		return
	}
	r.ledger.Hear(in.Host, in.String(), c, w.grant(now), challenges)
}

// tell tells those who keep what is known of the repository what this node has
// just learned from the upstream, in somebody's name.
func (p *Repository) tell(as access.Caller, up Upstream, f Facts) {
	peers := p.registry.cfg.Peers
	if peers == nil || peers.Alone() {
		return
	}
	if _, _, ok := heard(up); ok {
		return
	}
	p.registry.recent.add(p.Repository)
	now := p.registry.ledger.Now()
	in := p.in(as)
	f.Itself = in.Itself
	if as.Anonymous() {
		f.Everybody = p.registry.word(in, as, now)
	} else {
		if w := p.registry.word(in, as, now); w != nil {
			w.Token = as.Token()
			f.Callers = map[string]WordFact{as.Key(): *w}
		}
	}
	f.Challenges = p.registry.ledger.Challenges(p.String())
	in.Caller = access.Caller{}
	peers.Tell(in, encode(f))
}

// Retell tells those who keep what is known of repositories all of it, for the ones
// that were of use lately and that this node keeps: others may keep them only now.
func (r *Registry) Retell() {
	for _, repo := range r.recent.all() {
		in := In{Repository: repo, Itself: r.ledger.Shared(repo.Host)}
		if !r.cfg.Peers.Keeps(in) {
			continue
		}
		r.cfg.Peers.Tell(in, r.Facts(in, ""))
	}
}

// recent are the repositories that others were told of last. The zero value is ready
// to use.
type recent struct {
	mu    sync.Mutex
	order []ref.Repository // the latest last
}

const maxRecent = 256

func (l *recent) add(repo ref.Repository) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.order = append(slices.DeleteFunc(l.order, func(other ref.Repository) bool { return other == repo }), repo)
	if len(l.order) > maxRecent {
		l.order = l.order[1:]
	}
}

func (l *recent) all() []ref.Repository {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.order)
}

// recall learns what other members know of the repository, when the upstream cannot
// be asked.
func (p *Repository) recall(ctx context.Context) {
	peers := p.peers()
	if peers == nil || peers.Alone() {
		return
	}
	in := p.in(access.Caller{})
	_, _ = p.registry.questions.Do(ctx, "recall\n"+p.String()+"\n"+p.caller.Key(), askFor, func(ctx context.Context) (any, error) {
		peers.Recall(ctx, in, p.caller.Key(), func(facts []byte) { p.registry.report(p.registry.Learn(in, facts)) })
		return nil, nil
	})
}

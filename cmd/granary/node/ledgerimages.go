package node

import (
	"cmp"
	"slices"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/granary-oci/granary/proxy"
	"github.com/granary-oci/granary/proxy/ref"
)

const (
	maxAccounts      = 1024 // images that are remembered: those of which anything was read, or came, last
	maxShownAccounts = 32   // of these, that the status tells
	maxRepositories  = 64   // that metrics tell apart
)

// otherRepositories is what all beyond [maxRepositories] are.
var otherRepositories = ref.Repository{}

// tallied is what was asked for, and what came from where, in bytes.
type tallied struct{ asked, members, parents, registry int64 }

func (t *tallied) add(o tallied) {
	t.asked, t.members, t.parents, t.registry = t.asked+o.asked, t.members+o.members, t.parents+o.parents, t.registry+o.registry
}

func (t tallied) moved() int64 { return t.parents + t.registry }

// account is what is known of an image.
type account struct {
	tallied
	tag         string // by which it was asked for last
	since, last time.Time
}

type imageKey struct {
	ref.Repository
	digest digest.Digest
}

// countImage counts for an image, and forgets the one that was used longest ago if there are too many; l.mu is held.
func (l *ledger) countImage(i proxy.Image, t tallied) {
	k, now := imageKey{i.Repository, i.Digest}, l.now()
	a := l.images[k]
	if a == nil {
		l.forgetImages(maxAccounts - 1)
		a = &account{since: now}
		l.images[k] = a
	}
	a.add(t)
	a.tag, a.last = cmp.Or(i.Tag, a.tag), now
	if l.repositories[i.Repository] == nil && len(l.repositories) > maxRepositories {
		i.Repository = otherRepositories
	}
	if l.repositories[i.Repository] == nil {
		l.repositories[i.Repository] = new(tallied)
	}
	l.repositories[i.Repository].add(t)
	l.changed = true
}

// forgetImages leaves at most so many; l.mu is held.
func (l *ledger) forgetImages(most int) {
	for len(l.images) > most {
		var oldest imageKey
		var last time.Time
		for k, a := range l.images {
			if last.IsZero() || a.last.Before(last) {
				oldest, last = k, a.last
			}
		}
		delete(l.images, oldest)
	}
}

// ImageAccount is what was asked for of an image, what moved, and what was saved, in bytes, see [ledger].
type ImageAccount struct {
	Repository string `json:"repository"`
	// Tag is that by which it was asked for last, as far as is known; Digest that of its index or manifest. It is "" for blobs that
	// came or were read while no manifest was known that names them, as for another member's client.
	Tag    string        `json:"tag,omitempty"`
	Digest digest.Digest `json:"digest,omitempty"`

	Asked    int64 `json:"asked"`
	Moved    int64 `json:"moved"`    // from parents and registries
	Saved    int64 `json:"saved"`    // of what was asked for
	Parents  int64 `json:"parents"`  // of what moved
	Registry int64 `json:"registry"` // the same
	Members  int64 `json:"members"`  // came from other members

	Since time.Time `json:"since"` // it is counted
	Last  time.Time `json:"last"`  // when anything was counted
}

// Ref is how people ask for the image.
func (a ImageAccount) Ref() string {
	switch {
	case a.Tag != "":
		return a.Repository + ":" + a.Tag
	case a.Digest != "":
		return a.Repository + "@" + string(a.Digest)
	}
	return a.Repository
}

// imageSums returns the images that are remembered, those first that were used last, at most so many.
func (l *ledger) imageSums(most int) []ImageAccount {
	l.mu.Lock()
	all := l.accounts()
	l.mu.Unlock()
	slices.SortFunc(all, func(a, b ImageAccount) int {
		return cmp.Or(b.Last.Compare(a.Last), cmp.Compare(a.Repository, b.Repository), cmp.Compare(a.Digest, b.Digest))
	})
	return all[:min(len(all), most)]
}

// accounts are all images, in any order; l.mu is held.
func (l *ledger) accounts() []ImageAccount {
	all := make([]ImageAccount, 0, len(l.images))
	for k, a := range l.images {
		all = append(all, ImageAccount{
			Repository: k.String(), Tag: a.tag, Digest: k.digest, Since: a.since, Last: a.last,
			Asked: a.asked, Moved: a.moved(), Saved: saved(a.asked, a.moved()), Parents: a.parents, Registry: a.registry, Members: a.members,
		})
	}
	return all
}

// learnImages takes what a file has of images.
func (l *ledger) learnImages(all []ImageAccount) {
	for _, a := range all {
		host, name, ok := strings.Cut(a.Repository, "/")
		if !ok || a.Digest != "" && a.Digest.Validate() != nil || min(a.Asked, a.Parents, a.Registry, a.Members) < 0 {
			continue
		}
		l.images[imageKey{ref.Repository{Host: host, Name: name}, a.Digest}] = &account{
			tallied{a.Asked, a.Members, a.Parents, a.Registry}, a.Tag, a.Since, a.Last,
		}
	}
	l.forgetImages(maxAccounts)
}

package proxy

import (
	"sync"
	"time"

	"github.com/granary-oci/granary/proxy/ref"
)

// forgotten are the tags that were invalidated lately. What others say of them from
// before may arrive after, and must not bring back what a policy would then keep for
// good. The zero value is ready to use.
type forgotten struct {
	mu sync.Mutex
	at map[string]time.Time // by repository:tag, or repository: for all of its tags
}

const (
	forgottenFor = 10 * time.Minute
	maxForgotten = 4096
	// onItsWay is how long a fact may take to arrive, which makes it look newer.
	onItsWay = 5 * time.Second
)

func (f *forgotten) add(repo ref.Repository, tag string, now time.Time) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.at == nil {
		f.at = make(map[string]time.Time)
	}
	for k, at := range f.at {
		if now.Sub(at) > forgottenFor || len(f.at) >= maxForgotten {
			delete(f.at, k)
		}
	}
	f.at[repo.String()+":"+tag] = now
}

// since reports whether a tag was invalidated after t.
func (f *forgotten) since(repo ref.Repository, tag string, t time.Time) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.at[repo.String()+":"+tag].After(t) || f.at[repo.String()+":"].After(t)
}

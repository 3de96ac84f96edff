package node

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/granary-oci/granary/chunkstore"
	"github.com/granary-oci/granary/chunkstore/chunk"
	"github.com/granary-oci/granary/proxy"
	"github.com/granary-oci/granary/proxy/ref"
	"github.com/granary-oci/granary/tracker"
)

const (
	ledgerName    = "ledger.json"
	maxLedgerFile = 16 << 20 // bytes
	ledgerEvery   = time.Minute
)

// ledger counts, in bytes, what was asked for, what moved, and what was saved: of each link to the outside by the hours of the
// node's clock, and of each image. It outlives the process, for links are paid for by the day. It is safe for concurrent use.
//
//   - Asked for are bytes of blobs that were given to clients, those of other sites too, and to mounts; not what mounts read in files that
//     they were lent. They were asked of the link that they came over; what was here, or another member had, would have come over that
//     of the first parent that answers, or else of the registry, and was asked of that one.
//   - Moved is what came in over a link, with manifests, and in vain too. Of an image it is what came of its blobs from parents and registries; what came
//     from other members is apart.
//   - Saved is by how much more was asked for than moved, and never less than nothing: because it is here since another time, or came from a member, or
//     was made of what older layers or blobs have (proxy/rebuild, proxy/delta). What is fetched ahead is saved when it is asked for, and what a member
//     fetches for others is asked for there: the sums of several nodes are what they were asked for together, less what moved to them together.
type ledger struct {
	path  string // "" keeps nothing
	now   func() time.Time
	peers map[tracker.ID]exchanged // as they were counted last; addZones' own

	saving sync.Mutex // held while the file is written

	mu           sync.Mutex
	links        map[string]map[int64]*crossed // by the Unix time of the hour's beginning
	images       map[imageKey]*account
	totals       map[string]*crossed         // of links, since the process was started
	repositories map[ref.Repository]*tallied // the same of images
	changed      bool
}

// saved returns how much was saved where so much was asked for, and moved.
func saved(asked, moved int64) int64 { return max(asked-moved, 0) }

// keptLedger is the ledger as it is in its file.
type keptLedger struct {
	Links  map[string]map[int64]crossed `json:"links"`
	Images []ImageAccount               `json:"images"`
}

// openLedger reads the ledger of a data directory, "" for none. One that cannot be read begins anew.
func openLedger(dataDir string) (*ledger, error) {
	l := &ledger{
		now: time.Now, links: make(map[string]map[int64]*crossed), images: make(map[imageKey]*account),
		totals: make(map[string]*crossed), repositories: map[ref.Repository]*tallied{otherRepositories: new(tallied)},
	}
	if dataDir == "" {
		return l, nil
	}
	l.path = filepath.Join(dataDir, ledgerName)
	var kept keptLedger
	if err := readKept(l.path, maxLedgerFile, &kept); err != nil {
		return l, err
	}
	l.learnLinks(kept.Links)
	l.learnImages(kept.Images)
	return l, nil
}

// given counts bytes of an image that were given out, and would have come over a link, if that is not "".
func (l *ledger) given(i proxy.Image, link string, n int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.countImage(i, tallied{asked: n})
	if link != "" {
		l.count(link, crossed{Asked: n})
	}
}

// came counts bytes of an image's blobs that came from a source. Of parents and registries the links count more than those.
func (l *ledger) came(i proxy.Image, source string, n int64) {
	var t tallied
	switch {
	case source == "peer":
		t.members = n
	case isParent(source):
		t.parents = n
	default:
		t.registry = n
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.countImage(i, t)
}

func isParent(source string) bool { return source == chunk.Parent || chunk.ParentOf(source) != "" }

// readKept reads what a node has kept as JSON; without the file v stays as it is.
func readKept(name string, most int64, v any) error {
	info, err := os.Stat(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if info.Size() > most {
		return fmt.Errorf("%s: it is too large", name)
	}
	p, err := os.ReadFile(name)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(p, v); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	return nil
}

// run keeps the ledger until ctx ends.
func (l *ledger) run(ctx context.Context, report func(error)) {
	tick := time.NewTicker(ledgerEvery)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-ctx.Done():
		}
		if err := l.save(); err != nil {
			report(err)
		}
		if ctx.Err() != nil {
			return
		}
	}
}

// save writes the file, if there is anything new. Nobody who counts waits for a disk.
func (l *ledger) save() error {
	l.saving.Lock()
	defer l.saving.Unlock()
	kept, changed := l.copy()
	if l.path == "" || !changed {
		return nil
	}
	p, err := json.Marshal(kept)
	if err == nil {
		err = chunkstore.WriteDurably(l.path, p)
	}
	if err != nil {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.changed = true
	}
	return err
}

// copy returns what is to be kept, and whether it has changed since it was asked for last.
func (l *ledger) copy() (kept keptLedger, changed bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	kept = keptLedger{make(map[string]map[int64]crossed, len(l.links)), l.accounts()}
	for link, hours := range l.links {
		kept.Links[link] = make(map[int64]crossed, len(hours))
		for at, c := range hours {
			kept.Links[link][at] = *c
		}
	}
	changed, l.changed = l.changed, false
	return kept, changed
}

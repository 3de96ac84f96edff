package rebuild

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sync/semaphore"
	"golang.org/x/sys/unix"

	"github.com/granary-oci/granary/chunkstore/chunk"
	"github.com/granary-oci/granary/toc"
	"github.com/granary-oci/granary/toc/cdc"
)

const (
	// edgeAtOnce is how many layers are made at a time: each takes a processor.
	edgeAtOnce = 2
	// maxOld is how many older layers are read for one, and of their tars so many times the tar that is wanted.
	maxOld, oldTimes = 4, 4

	longestRebuild = time.Hour
	longestMaking  = 2 * time.Minute // of an offer, by the hub
	longestNap     = 5 * time.Second // between two looks for it
	shortestNap    = 200 * time.Millisecond

	// maxTar bounds a tar, in bytes. Its file is sparse, and then it is not.
	maxTar = 64 << 30
	// freeShare of a file system stays free.
	freeShare = 20

	notAgain  = 10 * time.Minute // is a layer thought of, that was not made
	maxFailed = 1024             // layers that are remembered so
)

// Giver is a node of another site that is asked for offers and contents, in somebody's name.
type Giver interface {
	// Origin is what it is called as a source of bytes.
	Origin() string
	// Pace returns how many bytes per second come from it, 0 while that is not known.
	Pace() int64
	// Own asks for what it has to say of a blob, at a path that ends with the blob's digest. The error is
	// [chunk.ErrNotFound], a [*upstream.StatusError] of 503 while it is being made, or a [*chunk.CorruptError], for
	// which it has been blamed; of all others it does not answer.
	Own(ctx context.Context, of chunk.Ref, path string, query url.Values, mediaType string, most int64) ([]byte, error)
	// Blame has it be at fault for what it gave of a blob.
	Blame(of chunk.Ref, reason string)
}

// Old is an older layer, of which all is here.
type Old struct {
	Digest digest.Digest
	Size   int64
	Open   func(ctx context.Context) io.ReadCloser
}

// Wanted is a layer that is wanted.
type Wanted struct {
	Repository string
	Digest     digest.Digest
	Size       int64
	Givers     []Giver // in order of preference
	Old        []Old   // the likeliest first; a few are read
	// Kept returns a chunk that is kept by itself, nil if it is not. It may be nil.
	Kept func(c *cdc.Chunk) []byte
	// Turn waits until it is the turn of a request that brings about so many bytes, and returns what is to be called
	// when they are there. It may be nil.
	Turn func(ctx context.Context, bytes int64) (done func(), err error)
	// Keep keeps the layer, of which r has all. It matches its digest.
	Keep func(ctx context.Context, r io.Reader) error
	// Came is told of bytes that came for the layer from a giver of that origin, in vain too. nil ignores them.
	Came func(origin string, n int64)
}

func (w *Wanted) ref() chunk.Ref { return chunk.Ref{Blob: w.Digest, Total: w.Size, Size: w.Size} }

// Edge makes layers again. It is safe for concurrent use.
type Edge struct {
	dir   string
	bytes bool
	turns *semaphore.Weighted

	ctx context.Context // ends with Close
	end context.CancelFunc

	looking sync.Mutex     // held while an older layer is looked at
	begun   sync.WaitGroup // by start

	mu     sync.Mutex
	failed map[digest.Digest]time.Time // until when it is not tried again
	ledger Ledger
}

// NewEdge returns an edge that works in files without a name in dir, which is emptied. With bytes it saves bytes,
// whatever time it takes, else time.
func NewEdge(dir string, bytes bool) (*Edge, error) {
	if err := os.RemoveAll(dir); err != nil {
		return nil, fmt.Errorf("rebuild: %w", err)
	}
	if err := os.Mkdir(dir, 0o700); err != nil {
		return nil, fmt.Errorf("rebuild: %w", err)
	}
	e := &Edge{dir: dir, bytes: bytes, turns: semaphore.NewWeighted(edgeAtOnce), failed: make(map[digest.Digest]time.Time)}
	e.ctx, e.end = context.WithCancel(context.Background())
	return e, nil
}

// Close ends what is under way, and waits for that.
func (e *Edge) Close() error {
	e.end()
	e.begun.Wait()
	return e.turns.Acquire(context.Background(), edgeAtOnce) // and nothing begins any more
}

// start does something that Close waits for. What begins after that finds that all is over.
func (e *Edge) start(do func()) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.ctx.Err() != nil {
		go do()
		return
	}
	e.begun.Go(do)
}

// Life is a context that ends with Close.
func (e *Edge) Life() context.Context { return e.ctx }

// Tries reports whether a layer may be made again: it has not been tried lately.
func (e *Edge) Tries(d digest.Digest) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return !time.Now().Before(e.failed[d])
}

// Rebuild makes a layer of what older ones have, and what givers have of the rest. The error says why the layer is to be fetched
// as a whole, and is that of ctx if that has ended.
func (e *Edge) Rebuild(ctx context.Context, w *Wanted) error {
	if err := e.turns.Acquire(ctx, 1); err != nil {
		return err
	}
	defer e.turns.Release(1)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(e.ctx, cancel)()
	j := &attempt{edge: e, want: w, began: time.Now()}
	defer j.close()
	err := errors.New("nobody is there who could say how")
	for _, g := range w.Givers {
		if err = j.with(ctx, g); !j.another(ctx, err) {
			break
		}
	}
	e.note(j, err, ctx.Err() == nil)
	if err != nil {
		return fmt.Errorf("layer %s: rebuild: %w", w.Digest, err)
	}
	return nil
}

// attempt is one layer that is being made.
type attempt struct {
	edge  *Edge
	want  *Wanted
	began time.Time
	offer []byte // that was followed last, as it was sent
	Offer
	tar   *mosaic
	like  *dictionaries
	rests []*rest // of older layers that were read
	room  int64   // bytes that these may take
	giver Giver

	mu    sync.Mutex
	moved int64
}

func (j *attempt) close() {
	if j.tar != nil {
		_ = j.tar.f.Close() // and it is gone
	}
	for _, r := range j.rests {
		_ = r.f.Close()
	}
}

func (j *attempt) count(n int64) {
	j.mu.Lock()
	j.moved += n
	j.mu.Unlock()
	if j.want.Came != nil {
		j.want.Came(j.giver.Origin(), n)
	}
}

// another reports whether another giver may do better than one that err came of.
func (j *attempt) another(ctx context.Context, err error) bool {
	var disk *diskError
	var no *notWorthError
	return err != nil && ctx.Err() == nil && !errors.As(err, &disk) && !errors.As(err, &no)
}

// with makes the layer with what one giver says.
func (j *attempt) with(ctx context.Context, g Giver) error {
	j.giver = g
	d := decision{j.edge.bytes, j.want.Size, g.Pace()}
	if err := d.ask(j.old()); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, d.limit())
	defer cancel()
	offer, err := j.ask(ctx, g, d.patience())
	if err != nil {
		return withReason(err)
	}
	if !bytes.Equal(offer, j.offer) { // else it goes on where another giver stopped
		if err := j.begin(ctx, g, offer); err != nil {
			return err
		}
	}
	d.pace = g.Pace()
	comes := j.tar.left() - int64(likeSaves*float64(j.like.named(j.tar.absent())))
	if err := d.follow(j.Recipe, int64(len(offer)), comes); err != nil {
		return err
	}
	if err := j.fetch(ctx, g); err != nil {
		return err
	}
	return j.make(ctx, g)
}

// old returns how many bytes the older layer has that is read first.
func (j *attempt) old() int64 {
	if len(j.want.Old) == 0 {
		return 0
	}
	return j.want.Old[0].Size
}

// ask gets an offer. One that is no smaller than what it could save is none.
func (j *attempt) ask(ctx context.Context, g Giver, patience time.Duration) ([]byte, error) {
	return askMade(ctx, patience, func() ([]byte, error) {
		p, err := g.Own(ctx, j.want.ref(), OfferPath, nil, OfferType, min(MaxOffer, j.want.Size))
		j.count(int64(len(p)))
		return p, err
	})
}

// blame has a giver be at fault.
func blame(g Giver, of chunk.Ref, reason string) error {
	g.Blame(of, reason)
	return &chunk.CorruptError{Source: g.Origin(), Ref: of, Reason: reason}
}

// begin takes from older layers what an offer names.
func (j *attempt) begin(ctx context.Context, g Giver, p []byte) error {
	j.close()
	j.tar, j.offer, j.rests = nil, nil, nil
	o, err := DecodeOffer(p)
	switch {
	case errors.Is(err, toc.ErrMalformed):
		return blame(g, j.want.ref(), err.Error())
	case err != nil: // it may be newer than this program
		return err
	}
	if err := j.check(o, g); err != nil {
		return err
	}
	f, err := j.edge.scratch()
	if err != nil {
		return &diskError{err}
	}
	tar, err := newMosaic(o.Map, f)
	if err != nil {
		f.Close()
		if errors.Is(err, toc.ErrMalformed) {
			return blame(g, j.want.ref(), err.Error())
		}
		return &diskError{err}
	}
	j.Offer, j.offer, j.tar, j.like = o, p, tar, newDictionaries(o.Map)
	return j.sift(ctx)
}

// check reports an offer that is of another layer, for which its giver is at fault, and a tar that there is no
// room for.
func (j *attempt) check(o Offer, g Giver) error {
	tar, size := o.Recipe.TarSize(), j.want.Size
	if o.Recipe.Blob.String() != j.want.Digest.String() || o.Recipe.Size != size {
		return blame(g, j.want.ref(), "its offer is of another layer")
	}
	if tar > min(maxTar, maxRatio*size) {
		return notWorth("its tar has %d bytes", tar)
	}
	var fs unix.Statfs_t
	if err := unix.Statfs(j.edge.dir, &fs); err != nil {
		return &diskError{err}
	}
	free := (int64(fs.Bavail) - int64(fs.Blocks)/freeShare) * fs.Bsize
	if free < tar+2*size {
		return notWorth("its tar has %d bytes, and there is room for %d", tar, free)
	}
	j.room = min(tar, free-tar-2*size)
	return nil
}

// scratch returns a file without a name, which is gone when it is closed.
func (e *Edge) scratch() (*os.File, error) {
	f, err := os.CreateTemp(e.dir, "layer-*")
	if err != nil {
		return nil, err
	}
	if err := os.Remove(f.Name()); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// fetch gets what is missing.
func (j *attempt) fetch(ctx context.Context, g Giver) error {
	turn := j.want.Turn
	if turn == nil {
		turn = func(context.Context, int64) (func(), error) { return func() {}, nil }
	}
	all, ctx := errgroup.WithContext(ctx)
	all.SetLimit(batchesAtOnce)
	l := &line{j.want.ref(), j.Map, g}
	for _, batch := range l.batches(j.tar.absent()) {
		all.Go(func() error {
			done, err := turn(ctx, l.share(batch))
			if err != nil {
				return err
			}
			defer done()
			return l.get(ctx, batch, j.like.of(batch), j.count, func(i int, q []byte) error { return j.tar.put(j.Map.Chunks[i].Digest, q) })
		})
	}
	return all.Wait()
}

// make makes the layer of its tar, and has it kept. If it is another one, who has said how is at fault.
func (j *attempt) make(ctx context.Context, g Giver) error {
	f, err := j.edge.scratch()
	if err != nil {
		return &diskError{err}
	}
	defer f.Close()
	out := &output{f: f}
	hash := j.want.Digest.Algorithm().Hash()
	tar := io.NewSectionReader(j.tar.f, 0, j.Recipe.TarSize())
	err = j.Recipe.Rebuild(ctx, io.MultiWriter(out, hash), tar)
	switch {
	case out.err != nil:
		return &diskError{out.err}
	case errors.Is(err, toc.ErrMalformed):
		return blame(g, j.want.ref(), err.Error())
	case err != nil:
		return err
	}
	if got := digest.NewDigest(j.want.Digest.Algorithm(), hash); got != j.want.Digest {
		return blame(g, j.want.ref(), "what is made as it says is "+string(got))
	}
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return &diskError{err}
	}
	if err := j.want.Keep(ctx, f); err != nil {
		return &diskError{err}
	}
	return nil
}

package main

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"sync"
	"time"

	"github.com/granary-oci/granary/fuse"
	"github.com/granary-oci/granary/proxy"
	"github.com/granary-oci/granary/proxy/upstream"
)

// session is what a node knows of a mount: it lists it, fetches ahead for it, and counts
// where its bytes came from. A node that is replaced is told anew.
type session struct {
	img      *image
	dir      string
	prefetch bool // what earlier runs have read
	kernel   bool // the kernel mounts layers that are file systems
	connect  func(context.Context) (*upstream.Repository, error)
	id       string

	mu     sync.Mutex
	rest   bool              // all of the image is to be fetched
	before proxy.MountStatus // sums of what earlier nodes have said
	last   proxy.MountStatus // what this one says
}

func newSession(img *image, dir string, connect func(context.Context) (*upstream.Repository, error)) *session {
	return &session{img: img, dir: dir, connect: connect, id: rand.Text()}
}

// run keeps a node informed until ctx ends.
func (s *session) run(ctx context.Context) {
	for pause := firstReadPause; ; pause = min(2*pause, longReadPause) {
		told, err := s.hold(ctx)
		if told || err == nil {
			pause = firstReadPause
		}
		if refusedForGood(err) || !sleep(ctx, pause) { // an older node does without
			return
		}
	}
}

// hold says that the image is mounted for as long as the node listens, and takes note of
// what it tells. told is whether it has.
func (s *session) hold(ctx context.Context) (told bool, err error) {
	resp, err := s.ask(ctx, nil)
	if err != nil {
		return false, err
	}
	defer resp.Body.Close()
	for lines := json.NewDecoder(resp.Body); ; told = true {
		var now proxy.MountStatus
		if err := lines.Decode(&now); err != nil {
			s.over()
			if errors.Is(err, io.EOF) {
				err = nil
			}
			return told, err
		}
		s.tell(now)
	}
}

func (s *session) tell(now proxy.MountStatus) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.last = now
}

// over adds what a node has said last to the sums: the next one begins anew.
func (s *session) over() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.before, s.last = s.sum(), proxy.MountStatus{}
}

// sum returns all that nodes have counted. s.mu is held.
func (s *session) sum() proxy.MountStatus {
	sum := s.last
	sum.Demanded = sum.Demanded.Plus(s.before.Demanded)
	sum.Ahead = sum.Ahead.Plus(s.before.Ahead)
	return sum
}

// ask asks the node about the mount.
func (s *session) ask(ctx context.Context, more url.Values) (*http.Response, error) {
	from, err := s.connect(ctx)
	if err != nil {
		return nil, err
	}
	q := url.Values{"id": {s.id}, "ref": {s.img.want.String()}, "dir": {s.dir}}
	for k, v := range more {
		q[k] = v
	}
	if s.prefetch {
		q.Set("prefetch", "")
	}
	if s.kernel {
		q.Set("kernel", "")
	}
	if s.wantsRest() {
		q.Set("rest", "")
	}
	of := s.img.top
	if s.img.part || of == "" {
		of = s.img.layers[0].Digest
		q.Set("layer", "")
	}
	return from.Get(ctx, "_granary/mount/"+string(of), q, nil)
}

func (s *session) wantsRest() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.rest
}

// fetchRest has the node fetch all of the image.
func (s *session) fetchRest(ctx context.Context) {
	s.mu.Lock()
	s.rest = true
	s.mu.Unlock()
	_, _ = s.now(ctx) // else the next one that is told of the mount is told of this too
}

// now asks for what the node knows just now, and returns the sums.
func (s *session) now(ctx context.Context) (proxy.MountStatus, error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	resp, err := s.ask(ctx, url.Values{"now": {""}})
	if err == nil {
		var now proxy.MountStatus
		if err = json.NewDecoder(resp.Body).Decode(&now); err == nil {
			s.tell(now)
		}
		resp.Body.Close()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.sum(), err
}

// watch has all of the image fetched once a share of its content, in percent, was read.
func (s *session) watch(ctx context.Context, usage func() fuse.Usage, share int) {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		if u := usage(); u.Fetched*100 >= int64(share)*u.Content && u.Fetched > 0 {
			s.fetchRest(ctx)
			return
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

// percent is a share, 1 to 100.
type percent int

// UnmarshalText implements [encoding.TextUnmarshaler].
func (p *percent) UnmarshalText(text []byte) error {
	n, err := strconv.Atoi(string(text))
	if err != nil || n < 1 || n > 100 {
		return errors.New("a share is 1 to 100, in percent")
	}
	*p = percent(n)
	return nil
}

package peers

import (
	"bytes"
	"compress/gzip"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/klauspost/pgzip"

	"github.com/granary-oci/granary/cmd/granary/node"
	"github.com/granary-oci/granary/proxy/rebuild"
	"github.com/granary-oci/granary/toc/treetest"
)

const gzipType = layerType + "+gzip"

// versionOf is a tar of 50 files of 30 KB, of which every tenth is of a version alone.
func versionOf(t *testing.T, n byte) []byte {
	t.Helper()
	tar, err := treetest.Tar(50, func(i int) (string, []byte) {
		seed := byte(i)
		if i%10 == 3 {
			seed += 50 * n
		}
		p := random(30_000, seed)
		for at := range p[:10_000] {
			p[at] = 'a' + p[at]%16
		}
		return fmt.Sprintf("usr/lib/file%04d", i), p
	})
	if err != nil {
		t.Fatal(err)
	}
	return tar
}

// packer is a program that makes layers, of which two versions are made once for all tests.
type packer struct {
	open     func(io.Writer) io.WriteCloser
	once     sync.Once
	old, now []byte
}

var (
	goGzip = &packer{open: func(w io.Writer) io.WriteCloser { return gzip.NewWriter(w) }}
	// chopped packs as nobody does who makes layers.
	chopped    = &packer{open: func(w io.Writer) io.WriteCloser { return chopper{gzip.NewWriter(w)} }}
	manyBlocks = &packer{open: func(w io.Writer) io.WriteCloser { return pgzip.NewWriter(w) }}
)

// chopper flushes each 100 KB.
type chopper struct{ *gzip.Writer }

func (c chopper) Write(p []byte) (n int, err error) {
	for some := range slices.Chunk(p, 100_000) {
		k, werr := c.Writer.Write(some)
		n, err = n+k, errors.Join(err, werr, c.Flush())
	}
	return n, err
}

func (p *packer) versions(t *testing.T) (old, now []byte) {
	t.Helper()
	p.once.Do(func() {
		p.old, p.now = p.pack(t, versionOf(t, 1)), p.pack(t, versionOf(t, 2))
	})
	return p.old, p.now
}

func (p *packer) pack(t *testing.T, tar []byte) []byte {
	t.Helper()
	var b bytes.Buffer
	w := p.open(&b)
	_, err := w.Write(tar)
	if err := errors.Join(err, w.Close()); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// line is what crosses the line to a hub of layers that are made again.
type line struct {
	mu    sync.Mutex
	asked int
	as    string                                  // the credential that was shown last
	lie   func(mediaType string, p []byte) []byte // of what is answered; nil tells the truth
}

// watch has what crosses the line to a hub looked at.
func (l *line) watch(h *hub) {
	look := func(q *http.Request, resp *http.Response) {
		if !strings.Contains(q.URL.Path, "/"+rebuild.OfferPath) && !strings.Contains(q.URL.Path, "/"+rebuild.ContentsPath) {
			return
		}
		l.mu.Lock()
		defer l.mu.Unlock()
		l.asked++
		l.as = q.Header.Get("Authorization")
		if l.lie == nil || resp.StatusCode != http.StatusOK {
			return
		}
		p, _ := io.ReadAll(resp.Body)
		p = l.lie(resp.Header.Get("Content-Type"), p)
		resp.Body, resp.ContentLength = io.NopCloser(bytes.NewReader(p)), int64(len(p))
		resp.Header.Set("Content-Length", strconv.Itoa(len(p)))
	}
	h.spoil.Store(&look)
}

// questions returns how many there were, and by whom the last one was.
func (l *line) questions() (n int, as string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.asked, l.as
}

func saving(what string) func(*node.Config) { return func(c *node.Config) { c.WAN = what } }

// TestASiteTakesWhatChanged of a new version of a layer, once, and has the layer to its last bit.
func TestASiteTakesWhatChanged(t *testing.T) {
	t.Parallel()
	for name, made := range map[string]*packer{"Go's gzip": goGzip, "pgzip": manyBlocks} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newRegistry(t)
			h, l := newHub(t, r), new(line)
			l.watch(h)
			c := newCluster(t, r, 3, unreachable, under(h), saving("bytes"))
			old, now := made.versions(t)
			first := r.pushOf(gzipType, "app", "v1", old)
			pullAtOnce(t, first, 1, c.members...) // lest it depends on how soon others are told who has it
			if n, _ := l.questions(); n > 0 {
				t.Errorf("%d questions for a cold image", n)
			}
			img := r.pushOf(gzipType, "app", "v2", now)
			if err := h.pull(img, ""); err != nil {
				t.Fatal(err)
			}
			before, blobs := h.sent.Load(), r.count("GET", string(img.order[1]))
			pullAtOnce(t, img, 2, c.members...)
			if sent := h.sent.Load() - before; sent > img.size()/8 {
				t.Errorf("%d bytes crossed the line for an image of %d", sent, img.size())
			}
			if more := r.count("GET", string(img.order[1])) - blobs; more > 0 {
				t.Errorf("the registry is asked for the layer %d times", more)
			}
			layers, saved := int64(0), int64(0)
			for _, m := range c.members {
				w := m.Status().WAN
				layers, saved = layers+w.Layers, saved+w.Saved
			}
			if layers != 1 || saved < img.size()*7/8 {
				t.Errorf("%d layers are made again, which saves %d bytes", layers, saved)
			}
			spared := sparing{image: 6 * img.size(), link: 6*img.size() + 3*first.size(), moved: first.size() + img.size()/8}
			spared.check(t, c, "parent "+strings.TrimPrefix(h.Server.URL, "http://"))
			leaves := c.members[0]
			links, images := leaves.Status().Links, leaves.Status().Images
			c.stop(leaves)
			again := c.join(func(cfg *node.Config) { cfg.DataDir = leaves.cfg.DataDir })
			spared.check(t, c, "parent "+strings.TrimPrefix(h.Server.URL, "http://"))
			keeps(t, again, links, images)
		})
	}
}

// sparing is what a site's members were asked for together: of version v2 of app, and of the line; and the most that may have moved,
// but for manifests.
type sparing struct{ image, link, moved int64 }

// check adds up what members say of app and of a link, in their status and in answers of the API.
func (s sparing) check(t *testing.T, c *cluster, link string) {
	t.Helper()
	var image, all, at, history node.Carried
	eventually(t, "all that was given is counted", func() bool {
		image, all, at, history = node.Carried{}, node.Carried{}, node.Carried{}, node.Carried{}
		for _, m := range c.members {
			for _, i := range m.Images(t.Context()).Accounts {
				all.In, all.Asked = all.In+i.Moved, all.Asked+i.Asked
				if i.Tag == "v2" {
					image.Asked += i.Asked
				}
			}
			for _, l := range m.Status().Links {
				if l.Link == link {
					at.In, at.Asked = at.In+l.Month.In, at.Asked+l.Month.Asked
				}
			}
			for _, l := range linksOf(t, m) {
				for _, hour := range l.Hours {
					if l.Link == link {
						history.In, history.Asked = history.In+hour.In, history.Asked+hour.Asked
					}
				}
			}
		}
		return image.Asked == s.image && all.Asked == s.link && at.Asked == s.link
	})
	const manifests = 64 << 10
	if all.In == 0 || all.In > s.moved || at.In < all.In || at.In > s.moved+manifests || history != at {
		t.Errorf("images %+v, the line %+v and by the hour %+v; it may have been %+v", all, at, history, s)
	}
}

// linksOf asks a node's API.
func linksOf(t *testing.T, m *member) (all []node.LinkHistory) {
	t.Helper()
	resp, err := http.Get(m.AdminURL() + "/api/v1/links")
	if err != nil {
		t.Fatal(err)
	}
	p, err := readAll(resp)
	if err == nil {
		err = json.Unmarshal(p, &all)
	}
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// keeps compares what a node that was started again says with what it said before: of what was asked for, which nothing else
// was since; and its metrics begin anew.
func keeps(t *testing.T, m *member, links []node.Link, images []node.ImageAccount) {
	t.Helper()
	s := m.Status()
	for _, was := range links {
		i := slices.IndexFunc(s.Links, func(l node.Link) bool { return l.Link == was.Link })
		if i < 0 || s.Links[i].Month.Asked != was.Month.Asked || s.Links[i].Month.In < was.Month.In {
			t.Errorf("after a restart %+v, before it %+v", s.Links, was)
		}
	}
	same := func(a, b node.ImageAccount) bool {
		return a.Ref() == b.Ref() && a.Digest == b.Digest && a.Asked == b.Asked && a.Moved == b.Moved && a.Saved == b.Saved && a.Members == b.Members && a.Last.Equal(b.Last)
	}
	if len(images) == 0 || !slices.EqualFunc(s.Images, images, same) {
		t.Errorf("after a restart %+v, before it %+v", s.Images, images)
	}
	if text := metricsOf(t, m); strings.Contains(text, `granary_image_bytes_total{kind="asked",repository="`+host+`/app"}`) {
		t.Error("after a restart metrics go on")
	}
}

// TestASiteFetchesTheWholeOtherwise: where nothing is offered, or it is a lie, for which the parent is named and counted,
// where settings say so or the line is fast, and for those who read a part. What was asked for in vain crosses the line, and
// the pull ends.
func TestASiteFetchesTheWholeOtherwise(t *testing.T) {
	t.Parallel()
	cut := func(p []byte) []byte { return p[:len(p)/2] }
	for name, c := range map[string]struct {
		wan   string
		asked bool
		lie   func(path string, p []byte) []byte
		none  bool // nothing is offered
		part  bool
	}{
		"nothing is offered": {wan: "bytes", asked: true, none: true},
		"an offer that is cut": {wan: "bytes", asked: true, lie: func(mediaType string, p []byte) []byte {
			if mediaType == rebuild.OfferType {
				p = cut(p)
			}
			return p
		}},
		"contents that are cut": {wan: "bytes", asked: true, lie: func(mediaType string, p []byte) []byte {
			if mediaType == rebuild.ContentsType {
				p = cut(p)
			}
			return p
		}},
		"off":             {wan: "off"},
		"on a fast line":  {wan: "time"},
		"of which a part": {wan: "bytes", part: true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newRegistry(t)
			h, l := newHub(t, r), &line{lie: c.lie}
			l.watch(h)
			m := newCluster(t, r, 1, under(h), saving(c.wan)).members[0]
			old, now := goGzip.versions(t)
			if err := m.pull(r.pushOf(gzipType, "app", "v1", old), ""); err != nil {
				t.Fatal(err)
			}
			if c.none {
				_, now = chopped.versions(t)
			}
			img := r.pushOf(gzipType, "app", "v2", now)
			if err := h.pull(img, ""); err != nil {
				t.Fatal(err)
			}
			if c.part {
				m.get("/v2/app/manifests/v2")
				if a := m.get(img.path(img.order[1]), "Range", "bytes=100-200000"); a.status != http.StatusPartialContent {
					t.Errorf("%d %v", a.status, a.err)
				}
			} else if err := m.pull(img, ""); err != nil {
				t.Error(err)
			}
			if n, _ := l.questions(); n > 0 != c.asked {
				t.Errorf("%d questions were asked", n)
			}
			s := m.Status()
			if w := s.WAN; w != nil && w.Layers > 0 || c.wan == "off" != (w == nil) {
				t.Errorf("%+v", w)
			}
			if named := s.Parents[0].Faults > 0; named != (c.lie != nil) {
				t.Errorf("the parent is %+v", s.Parents[0])
			}
			if counted := strings.Contains(metricsOf(t, m), `granary_corrupt_total{source="parent"} 1`); counted != (c.lie != nil) {
				t.Errorf("it is counted: %v", counted)
			}
		})
	}
}

// TestOlderLayersAreThoseOfTheRepository: of a private one by the child's credential. Layers of another repository tell
// nothing, though they are here.
func TestOlderLayersAreThoseOfTheRepository(t *testing.T) {
	t.Parallel()
	r := newRegistry(t)
	r.set(func() { r.private["secret"], r.rights["mine"] = "bearer", []string{"secret"} })
	h, l := newHub(t, r), new(line)
	l.watch(h)
	m := newCluster(t, r, 1, unreachable, under(h), saving("bytes")).members[0]
	old, now := goGzip.versions(t)
	if err := m.pull(r.pushOf(gzipType, "secret", "v1", old), "Bearer mine"); err != nil {
		t.Fatal(err)
	}
	other, img := r.pushOf(gzipType, "app", "v2", now), r.pushOf(gzipType, "secret", "v2", now)
	for _, err := range []error{h.pull(other, ""), h.pull(img, "Bearer mine")} {
		if err != nil {
			t.Fatal(err)
		}
	}
	if a := m.get(other.path(other.order[1])); a.status != http.StatusOK {
		t.Errorf("%d %v", a.status, a.err)
	}
	if n, _ := l.questions(); n > 0 {
		t.Errorf("%d questions for a layer like one of another repository", n)
	}
	m = newCluster(t, r, 1, unreachable, under(h), saving("bytes")).members[0]
	if err := m.pull(r.pushOf(gzipType, "secret", "v1", old), "Bearer mine"); err != nil {
		t.Fatal(err)
	}
	if a := m.get(img.path(img.order[1]), "Authorization", "Bearer other"); a.status == http.StatusOK {
		t.Errorf("who may not read it gets %d", a.status)
	}
	if n, _ := l.questions(); n > 0 {
		t.Errorf("%d questions for who may not read it", n)
	}
	if err := m.pull(img, "Bearer mine"); err != nil {
		t.Error(err)
	}
	if _, as := l.questions(); as != "Bearer mine" || m.Status().WAN.Layers != 1 {
		t.Errorf("the hub is asked by %q, and %+v", as, m.Status().WAN)
	}
}

// TestWhoMakesALayerLeaves: another member makes it, and who waits has it.
func TestWhoMakesALayerLeaves(t *testing.T) {
	t.Parallel()
	r := newRegistry(t)
	old, now := goGzip.versions(t)
	v1, v2 := r.pushOf(gzipType, "app", "v1", old), r.pushOf(gzipType, "app", "v2", now)
	asked, released := make(chan int, 16), make(chan struct{})
	var once sync.Once
	release := func() { once.Do(func() { close(released) }) }
	c := &cluster{T: t, registry: r}
	var first atomic.Bool
	for i := range 2 {
		h := newHub(t, r)
		if err := h.pull(v2, ""); err != nil {
			t.Fatal(err)
		}
		hold := func(q *http.Request, _ *http.Response) {
			if strings.Contains(q.URL.Path, "/"+rebuild.OfferPath) && first.CompareAndSwap(false, true) {
				asked <- i
				<-released
			}
		}
		h.spoil.Store(&hold)
		c.start(unreachable, under(h), saving("bytes"), func(c *node.Config) { c.DrainTimeout = time.Second })
	}
	t.Cleanup(release)
	c.meet()
	pullAtOnce(t, v1, 1, c.members...)
	ended := make([]chan error, 2)
	for i, m := range c.members {
		ended[i] = make(chan error, 1)
		go func() { ended[i] <- m.pull(v2, "") }()
	}
	maker := <-asked
	stays := c.members[1-maker]
	c.stop(c.members[maker])
	if err := <-ended[1-maker]; err != nil {
		t.Errorf("who stays: %v", err)
	}
	if w := stays.Status().WAN; w.Layers != 1 {
		t.Errorf("who stays has made %+v", w)
	}
	release()
	<-ended[maker]
}

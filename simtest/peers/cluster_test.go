package peers

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sync/errgroup"

	"github.com/granary-oci/granary/cmd/granary/node"
)

// TestMain lets more tests wait at once than there are processors.
func TestMain(m *testing.M) {
	flag.Parse()
	_ = flag.Set("test.parallel", "5")
	os.Exit(m.Run())
}

const secret = "the first secret of the cluster"

// cluster is nodes that know each other.
type cluster struct {
	*testing.T
	registry *registry
	changes  []func(*node.Config) // of every member's settings
	members  []*member            // that run
	begun    int
}

// member is a node that runs.
type member struct {
	*node.Node
	cfg    node.Config
	log    *logBuffer
	cancel context.CancelFunc
	ended  chan error
}

// newCluster starts n members before a registry, and waits until they know each
// other.
func newCluster(t *testing.T, r *registry, n int, changes ...func(*node.Config)) *cluster {
	t.Helper()
	c := &cluster{T: t, registry: r, changes: changes}
	for range n {
		c.start()
	}
	c.meet()
	return c
}

// settings returns those of the next member.
func (c *cluster) settings(changes ...func(*node.Config)) node.Config {
	dir := filepath.Join(c.TempDir(), "node")
	c.begun++
	cfg := node.Config{
		DataConfig: node.DataConfig{
			DataDir: dir, CacheSize: 1 << 30, Upstream: map[string]string{host: c.registry.URL}, DefaultUpstream: host,
		},
		ListenConfig: node.ListenConfig{Listen: []string{"127.0.0.1:0"}, Admin: "127.0.0.1:0", DrainTimeout: time.Minute},
		ClusterConfig: node.ClusterConfig{
			P2PListen: []string{"/ip4/127.0.0.1/tcp/0"}, GossipListen: "127.0.0.1:0", Weight: 10,
			ClusterSecretFile: write(c.T, c.TempDir(), "secret", secret),
		},
	}
	for _, m := range c.members {
		cfg.Join = append(cfg.Join, m.Status().Cluster.Gossip)
	}
	for _, change := range append(slices.Clone(c.changes), changes...) {
		change(&cfg)
	}
	return cfg
}

// start starts one more member. It does not wait for it to be known.
func (c *cluster) start(changes ...func(*node.Config)) *member {
	c.Helper()
	m := run(c.T, c.settings(changes...))
	c.members = append(c.members, m)
	c.Cleanup(func() {
		for _, m := range c.members {
			m.cancel() // all at once
		}
	})
	return m
}

// join starts one more member, and waits until all know each other.
func (c *cluster) join(changes ...func(*node.Config)) *member {
	c.Helper()
	m := c.start(changes...)
	c.meet()
	return m
}

// run starts a node, which ends with the test.
func run(t *testing.T, cfg node.Config) *member {
	t.Helper()
	m := &member{cfg: cfg, log: &logBuffer{}, ended: make(chan error, 1)}
	var err error
	m.Node, err = node.New(cfg, slog.New(slog.NewTextHandler(m.log, &slog.HandlerOptions{Level: slog.LevelDebug})))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	m.cancel = cancel
	go func() { m.ended <- m.Run(ctx) }()
	t.Cleanup(func() {
		m.end(t)
		if t.Failed() && m.log.notable() != "" {
			t.Logf("log of %s:\n%s", filepath.Base(filepath.Dir(cfg.DataDir)), m.log.notable())
		}
	})
	return m
}

// end makes a node leave, as SIGTERM does.
func (m *member) end(t *testing.T) {
	t.Helper()
	m.cancel()
	err, ok := <-m.ended
	if ok && err != nil {
		t.Errorf("a node ended with %v", err)
	}
	if ok {
		close(m.ended)
	}
}

// stop makes a member leave.
func (c *cluster) stop(m *member) {
	c.Helper()
	m.end(c.T)
	c.members = slices.DeleteFunc(slices.Clone(c.members), func(other *member) bool { return other == m })
}

// meet waits until every member knows of all, and of nobody else.
func (c *cluster) meet() {
	c.Helper()
	eventually(c.T, "all members know each other", func() bool {
		for _, m := range c.members {
			known := m.Status().Cluster.Members
			for _, k := range known {
				if k.State != "up" && k.State != "self" {
					return false
				}
			}
			if len(known) != len(c.members) {
				return false
			}
		}
		return true
	})
}

// eventually waits, for a while, for something to become true.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for begin := time.Now(); time.Since(begin) < time.Minute; time.Sleep(10 * time.Millisecond) {
		if ok() {
			return
		}
	}
	t.Fatalf("never: %s", what)
}

func write(t *testing.T, dir, name, text string) string {
	t.Helper()
	path := filepath.Join(dir, name)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// logBuffer keeps what a node logs.
type logBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(p)
}

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.String()
}

// notable is the end of what is not for debugging.
func (l *logBuffer) notable() string {
	var lines []string
	for line := range strings.Lines(l.String()) {
		if !strings.Contains(line, "level=DEBUG") && !strings.Contains(line, " data=") && !strings.Contains(line, "msg=draining") && !strings.Contains(line, "msg=stopped") && !strings.Contains(line, "of the leave") {
			lines = append(lines, line)
		}
	}
	return strings.Join(lines[max(0, len(lines)-30):], "")
}

// client does not share connections with other clients of the process.
var client = &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 64, TLSClientConfig: &tls.Config{}}, Timeout: 2 * time.Minute}

// answer is what a node has answered.
type answer struct {
	status int
	header http.Header
	body   []byte
	err    error // in the middle of the body
}

// send sends a request with header fields in pairs; empty ones are left out.
func (m *member) send(method, path string, header ...string) (*http.Response, error) {
	q, err := http.NewRequest(method, m.URLs()[0]+path, nil)
	if err != nil {
		return nil, err
	}
	for i := 0; i < len(header); i += 2 {
		if header[i+1] != "" {
			q.Header.Set(header[i], header[i+1])
		}
	}
	return client.Do(q)
}

func (m *member) do(method, path string, header ...string) answer {
	resp, err := m.send(method, path, header...)
	if err != nil {
		return answer{err: err}
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	return answer{resp.StatusCode, resp.Header, body, err}
}

func (m *member) get(path string, header ...string) answer {
	return m.do(http.MethodGet, path, header...)
}

// gives returns an error if the answer to a GET is not these bytes.
func (m *member) gives(want []byte, path string, header ...string) error {
	resp, err := m.send(http.MethodGet, path, header...)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK && resp.StatusCode != http.StatusPartialContent {
		body, _ := io.ReadAll(resp.Body)
		return fmt.Errorf("%d %.300s", resp.StatusCode, body)
	}
	return compare(resp.Body, want)
}

// compare returns an error if a body is not these bytes.
func compare(body io.Reader, want []byte) error {
	for at, p := 0, make([]byte, 64<<10); ; {
		n, err := body.Read(p)
		if n > len(want)-at || !bytes.Equal(p[:n], want[at:at+n]) {
			return fmt.Errorf("wrong bytes after %d", at)
		}
		at += n
		switch {
		case err == io.EOF && at == len(want):
			return nil
		case err == io.EOF:
			return fmt.Errorf("%d bytes of %d", at, len(want))
		case err != nil:
			return fmt.Errorf("after %d bytes of %d: %w", at, len(want), err)
		}
	}
}

// pull pulls an image as containerd does, and checks all of it.
func (m *member) pull(img *image, authorization string) error {
	auth := []string{"Authorization", authorization}
	base := "/v2/" + img.repository + "/manifests/"
	head := m.do(http.MethodHead, base+img.tag, auth...)
	if head.err != nil || head.status != http.StatusOK {
		return fmt.Errorf("HEAD of the tag: %d %v", head.status, head.err)
	}
	if d := head.header.Get("Docker-Content-Digest"); d != string(img.top) {
		return fmt.Errorf("the tag means %s, not %s", d, img.top)
	}
	for _, d := range slices.Compact([]digest.Digest{img.top, img.manifest}) {
		a := m.get(base+string(d), auth...)
		if a.err != nil || a.status != http.StatusOK || digest.FromBytes(a.body) != d || !json.Valid(a.body) {
			return fmt.Errorf("manifest %s: %d %v %.300s", d, a.status, a.err, a.body)
		}
	}
	var g errgroup.Group
	g.SetLimit(3)
	for d, p := range img.blobs {
		g.Go(func() error {
			if err := m.gives(p, img.path(d), auth...); err != nil {
				return fmt.Errorf("blob of %d bytes: %w", len(p), err)
			}
			return nil
		})
	}
	return g.Wait()
}

// pullAtOnce pulls an image through members, several times through each.
func pullAtOnce(t *testing.T, img *image, times int, members ...*member) {
	t.Helper()
	var all sync.WaitGroup
	for i, m := range members {
		for range times {
			all.Go(func() {
				if err := m.pull(img, ""); err != nil {
					t.Errorf("node %d: %v", i+1, err)
				}
			})
		}
	}
	all.Wait()
}

// soon waits until the last blob of an image can be had through a member: that
// another one has it is told in batches.
func soon(t *testing.T, img *image, m *member) {
	t.Helper()
	d := img.order[len(img.order)-1]
	eventually(t, "members are told of who has it", func() bool { return m.gives(img.blobs[d], img.path(d)) == nil })
}

func readAll(resp *http.Response) ([]byte, error) {
	defer resp.Body.Close()
	return io.ReadAll(resp.Body)
}

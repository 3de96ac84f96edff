package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sync/errgroup"

	"github.com/granary-oci/granary/cmd/granary/node"
)

// lab is a cluster before a registry that stands for all there are.
type lab struct {
	dir      string
	registry *registry
	members  []*node.Node
	stops    []func()
}

// images are what the registry has: MiB of layers.
var images = map[string][]int{
	"docker.io/library/python:3.13": {9, 6, 3},
	"docker.io/library/redis:8":     {4, 2},
	"ghcr.io/shop/checkout:v2.4.1":  {24, 16, 7, 3, 1},
	"ghcr.io/shop/small:v1":         {2, 1},
}

// newLab starts a member in each zone, that know each other. The registry sends so many bytes
// per second.
func newLab(ctx context.Context, rate int64, zones ...string) (l *lab, err error) {
	l = &lab{registry: newRegistry(rate)}
	defer func() {
		if err != nil {
			l.close()
		}
	}()
	l.stops = append(l.stops, l.registry.Close)
	if l.dir, err = os.MkdirTemp("", "granary-dashboard-"); err != nil {
		return l, err
	}
	if err := os.WriteFile(filepath.Join(l.dir, "secret"), []byte("the secret of this cluster"), 0o600); err != nil {
		return l, err
	}
	return l, l.grow(ctx, func(*node.Config) {}, zones...)
}

// newSite starts a lab whose members ask a node of another site before the registry, and one that is
// nowhere.
func newSite(ctx context.Context, rate int64, zones ...string) (l *lab, err error) {
	if l, err = newLab(ctx, rate); err != nil {
		return l, err
	}
	hub, err := l.run(l.settings("hub"))
	if err == nil {
		err = l.grow(ctx, func(c *node.Config) { c.Parent = []string{hub.URLs()[0], "http://127.0.0.1:1"} }, zones...)
	}
	if err != nil {
		l.close()
	}
	return l, err
}

// grow starts a member in each zone, and waits until all know each other.
func (l *lab) grow(ctx context.Context, change func(*node.Config), zones ...string) error {
	for _, zone := range zones {
		if _, err := l.start(zone, change); err != nil {
			return err
		}
	}
	return l.meet(ctx)
}

// settings are those of a node alone.
func (l *lab) settings(name string) node.Config {
	return node.Config{
		DataConfig: node.DataConfig{
			DataDir: filepath.Join(l.dir, name), CacheSize: 512 << 20, DefaultUpstream: "docker.io",
			Upstream: map[string]string{"docker.io": l.registry.URL, "ghcr.io": l.registry.URL},
		},
		ListenConfig: node.ListenConfig{Listen: []string{"127.0.0.1:0"}, Admin: "127.0.0.1:0", DrainTimeout: time.Second},
	}
}

// start starts one more member.
func (l *lab) start(zone string, change func(*node.Config)) (*node.Node, error) {
	cfg := l.settings(fmt.Sprint("node", len(l.members)+1))
	cfg.ClusterConfig = node.ClusterConfig{
		P2PListen: []string{"/ip4/127.0.0.1/tcp/0"}, GossipListen: "127.0.0.1:0", Weight: 10, Zone: zone,
		ClusterSecretFile: filepath.Join(l.dir, "secret"),
	}
	for _, m := range l.members {
		cfg.Join = append(cfg.Join, m.Status().Cluster.Gossip)
	}
	change(&cfg)
	n, err := l.run(cfg)
	if err == nil {
		l.members = append(l.members, n)
	}
	return n, err
}

// run runs a node until the lab is closed.
func (l *lab) run(cfg node.Config) (*node.Node, error) {
	n, err := node.New(cfg, slog.New(slog.DiscardHandler))
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- n.Run(ctx) }()
	l.stops = append(l.stops, func() { cancel(); <-ended })
	return n, nil
}

// meet waits until all members know each other.
func (l *lab) meet(ctx context.Context) error {
	for _, m := range l.members {
		for len(m.Status().Cluster.Members) < len(l.members) {
			select {
			case <-time.After(10 * time.Millisecond):
			case <-ctx.Done():
				return ctx.Err()
			}
		}
	}
	return nil
}

func (l *lab) close() {
	for i := len(l.stops) - 1; i >= 0; i-- {
		l.stops[i]()
	}
	if l.dir != "" {
		_ = os.RemoveAll(l.dir)
	}
}

// pull pulls an image through members at once, as a runtime does.
func (l *lab) pull(ctx context.Context, image string, through ...*node.Node) error {
	host, rest, _ := strings.Cut(image, "/")
	name, tag, _ := strings.Cut(rest, ":")
	var g errgroup.Group
	for _, m := range through {
		g.Go(func() error {
			base := m.URLs()[0] + "/v2/" + name
			raw, err := fetch(ctx, base+"/manifests/"+tag+"?ns="+host)
			if err != nil {
				return err
			}
			var manifest struct {
				Config struct{ Digest digest.Digest }
				Layers []struct{ Digest digest.Digest }
			}
			if err := json.Unmarshal(raw, &manifest); err != nil {
				return err
			}
			var blobs errgroup.Group
			blobs.SetLimit(3)
			for _, b := range append(manifest.Layers, manifest.Config) {
				blobs.Go(func() error {
					p, err := fetch(ctx, base+"/blobs/"+string(b.Digest)+"?ns="+host)
					if err == nil && digest.FromBytes(p) != b.Digest {
						err = fmt.Errorf("%s: wrong bytes", b.Digest)
					}
					return err
				})
			}
			return blobs.Wait()
		})
	}
	return g.Wait()
}

func fetch(ctx context.Context, url string) ([]byte, error) {
	q, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, err
	}
	resp, err := http.DefaultClient.Do(q)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	p, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s", resp.Status, p)
	}
	return p, err
}

// registry has images, and sends blobs as fast as its line is.
type registry struct {
	*httptest.Server
	content map[string][]byte // by path below /v2/

	mu   sync.Mutex
	rate int64 // bytes per second
	free time.Time
}

func newRegistry(rate int64) *registry {
	r := &registry{content: make(map[string][]byte), rate: rate}
	seed := byte(0)
	for image, sizes := range images {
		_, rest, _ := strings.Cut(image, "/")
		name, tag, _ := strings.Cut(rest, ":")
		add := func(mediaType string, p []byte) map[string]any {
			r.content[name+"/blobs/"+string(digest.FromBytes(p))] = p
			return map[string]any{"mediaType": mediaType, "digest": digest.FromBytes(p), "size": len(p)}
		}
		var layers []any
		for _, size := range sizes {
			seed++
			p := make([]byte, size<<20)
			_, _ = rand.NewChaCha8([32]byte{seed, byte(len(image))}).Read(p)
			layers = append(layers, add("application/vnd.oci.image.layer.v1.tar+gzip", p))
		}
		m, _ := json.Marshal(map[string]any{
			"schemaVersion": 2, "mediaType": manifestType, "layers": layers,
			"config": add("application/vnd.oci.image.config.v1+json", fmt.Appendf(nil, `{"os":"linux","architecture":"amd64","note":%q}`, image)),
		})
		r.content[name+"/manifests/"+tag], r.content[name+"/manifests/"+string(digest.FromBytes(m))] = m, m
	}
	r.Server = httptest.NewServer(r)
	return r
}

const manifestType = "application/vnd.oci.image.manifest.v1+json"

// ServeHTTP implements [http.Handler].
func (r *registry) ServeHTTP(w http.ResponseWriter, q *http.Request) {
	path := strings.TrimPrefix(q.URL.Path, "/v2/")
	p := r.content[path]
	if p == nil {
		w.WriteHeader(http.StatusNotFound)
		return
	}
	if strings.Contains(path, "/manifests/") {
		w.Header().Set("Content-Type", manifestType)
		w.Header().Set("Docker-Content-Digest", string(digest.FromBytes(p)))
	}
	http.ServeContent(&line{w, r}, q, "", time.Time{}, bytes.NewReader(p))
}

// line takes its time.
type line struct {
	http.ResponseWriter
	r *registry
}

func (l *line) Write(p []byte) (int, error) {
	l.r.mu.Lock()
	if now := time.Now(); l.r.free.Before(now) {
		l.r.free = now
	}
	l.r.free = l.r.free.Add(time.Duration(int64(len(p)) * int64(time.Second) / l.r.rate))
	until := time.Until(l.r.free)
	l.r.mu.Unlock()
	time.Sleep(until)
	return l.ResponseWriter.Write(p)
}

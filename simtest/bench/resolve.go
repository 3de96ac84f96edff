package main

import (
	"context"
	"crypto/sha256"
	"fmt"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"text/tabwriter"
	"time"

	"golang.org/x/sync/errgroup"
)

const (
	manyTags        = 10_000
	resolvers       = 16   // clients that resolve all tags
	crowd           = 1000 // clients that resolve one tag at once
	schema2         = "application/vnd.docker.distribution.manifest.v2+json"
	resolveManifest = `{"schemaVersion":2,"mediaType":"` + schema2 + `","config":{"mediaType":"application/vnd.docker.container.image.v1+json","size":2,"digest":"sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"},"layers":[],"number":%d}`
)

// tagRegistry is a registry of one repository with many tags, all in memory, so
// that what is measured is what stands before it.
type tagRegistry struct {
	url       string
	byTag     map[string]string // digests
	manifests map[string][]byte // by digest
	asked     atomic.Int64      // for manifests
	hold      atomic.Pointer[chan struct{}]
}

func startTagRegistry() (*tagRegistry, error) {
	r := &tagRegistry{byTag: make(map[string]string), manifests: make(map[string][]byte)}
	for i := range manyTags {
		m := fmt.Appendf(nil, resolveManifest, i)
		d := fmt.Sprintf("sha256:%x", sha256.Sum256(m))
		r.byTag[tagName(i)], r.manifests[d] = d, m
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	r.url = "http://" + l.Addr().String()
	go func() { _ = http.Serve(l, r) }() // for as long as the program
	return r, nil
}

func tagName(i int) string { return fmt.Sprintf("v%d", i) }

func (r *tagRegistry) ServeHTTP(w http.ResponseWriter, q *http.Request) {
	_, reference, ok := strings.Cut(q.URL.Path, "/manifests/")
	if !ok {
		return // the base: 200
	}
	r.asked.Add(1)
	if hold := r.hold.Load(); hold != nil {
		<-*hold
	}
	if d := r.byTag[reference]; d != "" {
		reference = d
	}
	m := r.manifests[reference]
	if m == nil {
		w.WriteHeader(http.StatusNotFound)
		return
	}
	w.Header().Set("Content-Type", schema2)
	w.Header().Set("Docker-Content-Digest", reference)
	w.Header().Set("Content-Length", fmt.Sprint(len(m)))
	if q.Method == http.MethodGet {
		_, _ = w.Write(m)
	}
}

// resolve measures how fast tags are resolved, each of many and then again, how
// many questions the upstream gets, and how many it gets for a crowd that
// resolves one tag at once.
func (b *bench) resolve(ctx context.Context) error {
	origin, err := startTagRegistry()
	if err != nil {
		return err
	}
	before := b.registry.url
	b.registry.url = origin.url // for the node
	node, err := b.startGranary(ctx)
	b.registry.url = before
	if err != nil {
		return err
	}
	cache, err := b.startRegistry(ctx, "docker-registry", origin.url)
	if err != nil {
		return err
	}
	systems := []struct {
		name string
		p    *process
		url  string
	}{{"direct", nil, origin.url}, {"granary", node, node.url}, {"docker-registry proxy", cache, cache.url}}
	if program := distribution(); program != "" {
		v3, err := b.startRegistry(ctx, program, origin.url)
		if err != nil {
			return err
		}
		systems = append(systems, struct {
			name string
			p    *process
			url  string
		}{"distribution v3 proxy", v3, v3.url})
	}
	fmt.Printf("Resolving %d tags by HEAD, %d clients, and one tag by %d clients at once\n", manyTags, resolvers, crowd)
	w := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(w, "system\tfirst /s\tagain /s\tquestions for each\tfor the crowd\tpeak MiB\t")
	for _, s := range systems {
		asked := origin.asked.Load()
		first, err := resolveAll(ctx, s.url)
		if err != nil {
			return fmt.Errorf("%s: %w", s.name, err)
		}
		var again []float64
		for range b.runs {
			rate, err := resolveAll(ctx, s.url)
			if err != nil {
				return fmt.Errorf("%s: %w", s.name, err)
			}
			again = append(again, rate)
		}
		each := float64(origin.asked.Load()-asked) / float64(manyTags*(b.runs+1))
		questions, err := origin.crowd(ctx, s.url)
		if err != nil {
			return fmt.Errorf("%s: %w", s.name, err)
		}
		memory := "–"
		if s.p != nil {
			if n, err := s.p.peak(); err == nil {
				memory = fmt.Sprint(n >> 20)
			}
		}
		fmt.Fprintf(w, "%s\t%.0f\t%.0f\t%.2f\t%d\t%s\t\n", s.name, first, median(again), each, questions, memory)
	}
	for _, s := range systems[1:] {
		s.p.stop()
	}
	err = w.Flush()
	fmt.Println()
	return err
}

// resolveAll resolves each tag once and returns the rate.
func resolveAll(ctx context.Context, url string) (float64, error) {
	begin := time.Now()
	var next atomic.Int64
	g, ctx := errgroup.WithContext(ctx)
	for range resolvers {
		g.Go(func() error {
			for {
				i := int(next.Add(1)) - 1
				if i >= manyTags {
					return nil
				}
				if err := head(ctx, url, tagName(i)); err != nil {
					return err
				}
			}
		})
	}
	err := g.Wait()
	return manyTags / time.Since(begin).Seconds(), err
}

// crowd has many clients resolve one tag while the registry holds its answers
// back, and returns how often it was asked.
func (r *tagRegistry) crowd(ctx context.Context, url string) (int64, error) {
	hold := make(chan struct{})
	r.hold.Store(&hold)
	defer r.hold.Store(nil)
	before := r.asked.Load()
	var g errgroup.Group
	var ready sync.WaitGroup
	ready.Add(crowd)
	for range crowd {
		g.Go(func() error {
			ready.Done()
			return head(ctx, url, tagName(1))
		})
	}
	ready.Wait()
	time.Sleep(2 * time.Second) // for all to have come as far as they can
	close(hold)
	err := g.Wait()
	return r.asked.Load() - before, err
}

func head(ctx context.Context, url, tag string) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodHead, url+"/v2/bench/many/manifests/"+tag, nil)
	if err != nil {
		return err
	}
	req.Header.Set("Accept", schema2)
	resp, err := client.Do(req)
	if err != nil {
		return err
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("%s: %s", tag, resp.Status)
	}
	return nil
}

package main

import (
	"context"
	"crypto/sha256"
	"fmt"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/granary-oci/granary/simtest/figures"
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
// often the registry is asked for each, and how many questions it gets for a crowd that
// resolves one tag at once.
func (l *lab) resolve(ctx context.Context) error {
	tags, rounds := of(l.scale, 1000, manyTags, manyTags), of(l.scale, 3, 3, 11)
	by := func(what, unit string) figures.Measurement {
		return figures.Measurement{Name: fmt.Sprintf("tags, %d by %d clients%s", tags, resolvers, what), Unit: unit}
	}
	first, again, each, memory := by("", "tags/s"), by(", again", "tags/s"), by(": questions to the registry for each", "questions"), by(": peak of resident memory", "MiB")
	one := figures.Measurement{Name: fmt.Sprintf("tags, one by %d clients at once: questions to the registry", crowd), Unit: "questions"}
	origin, err := startTagRegistry()
	if err != nil {
		return err
	}
	systems, err := l.systemsBefore(ctx, origin.url, "", first, again, each, memory, one)
	if err != nil {
		return err
	}
	systems = append([]system{{direct, nil, origin.url}}, systems...)
	l.compare(systems, first, again, each, one, memory)
	for round := range rounds + 1 {
		for _, s := range systems {
			asked := origin.asked.Load()
			rate, err := resolveAll(ctx, s.url, tags)
			if err != nil {
				return fmt.Errorf("%s: %w", s.name, err)
			}
			if round == 0 {
				l.into.Add(first, s.name, rate)
			} else {
				l.into.Add(again, s.name, rate)
			}
			l.into.Add(each, s.name, float64(origin.asked.Load()-asked)/float64(tags))
		}
	}
	for _, s := range systems {
		questions, err := origin.crowd(ctx, s.url)
		if err != nil {
			return fmt.Errorf("%s: %w", s.name, err)
		}
		l.into.Add(one, s.name, float64(questions))
		if s.process == nil {
			continue
		}
		peak, err := s.peak()
		if err != nil {
			return fmt.Errorf("%s: %w", s.name, err)
		}
		l.into.Add(memory, s.name, float64(peak>>20))
	}
	return nil
}

// resolveAll resolves each tag once and returns the rate.
func resolveAll(ctx context.Context, url string, tags int) (float64, error) {
	begin := time.Now()
	var next atomic.Int64
	g, ctx := errgroup.WithContext(ctx)
	for range resolvers {
		g.Go(func() error {
			for {
				i := int(next.Add(1)) - 1
				if i >= tags {
					return nil
				}
				if err := head(ctx, url, tagName(i)); err != nil {
					return err
				}
			}
		})
	}
	err := g.Wait()
	return float64(tags) / time.Since(begin).Seconds(), err
}

// crowd has many clients resolve one tag while the registry holds its answers
// back, and returns how often it was asked.
func (r *tagRegistry) crowd(ctx context.Context, url string) (int64, error) {
	hold := make(chan struct{})
	r.hold.Store(&hold)
	defer r.hold.Store(nil)
	before := r.asked.Load()
	done := make(chan error, 1)
	go func() { done <- atOnce(crowd, func(int) error { return head(ctx, url, tagName(1)) }) }()
	time.Sleep(2 * time.Second) // for all to have come as far as they can
	close(hold)
	err := <-done
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

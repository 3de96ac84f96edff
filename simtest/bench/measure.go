package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/granary-oci/granary/simtest/figures"
	"github.com/granary-oci/granary/simtest/netns"
)

// transfer is what is measured of a blob of some size.
type transfer struct {
	size      int64
	rate, cpu figures.Measurement
}

func transferOf(what string, size int64) transfer {
	return transfer{size, figures.Measurement{Name: what, Unit: "MB/s"}, figures.Measurement{Name: what, Unit: "CPU s/GiB"}}
}

func sized(n int64) string {
	if n >= 1<<30 {
		return fmt.Sprintf("%d GiB", n>>30)
	}
	return fmt.Sprintf("%d MiB", n>>20)
}

// take measures one fetch.
func (l *lab) take(ctx context.Context, t transfer, s system) error {
	before := s.cpu()
	rate, err := timed(ctx, s.url, t.size)
	if err != nil {
		return fmt.Errorf("%s: %w", s.name, err)
	}
	l.into.Add(t.rate, s.name, rate)
	l.into.Add(t.cpu, s.name, (s.cpu()-before)/float64(t.size)*(1<<30))
	return nil
}

// withNginx adds nginx, with the same bytes as a file, if there is one.
func (l *lab) withNginx(ctx context.Context, systems []system, p []byte, ms ...figures.Measurement) ([]system, error) {
	if _, err := netns.Tool("nginx"); err != nil {
		l.miss(nginx, err, ms...)
		return systems, nil
	}
	dir := l.folder("www")
	if err := os.WriteFile(filepath.Join(dir, "blob"), p, 0o600); err != nil {
		return nil, err
	}
	server, err := l.startNginx(ctx, dir)
	if err != nil {
		return nil, err
	}
	return append(systems, system{nginx, server, server.url + "/blob"}), nil
}

// warmed starts all systems that there are, with a blob that each of them has.
func (l *lab) warmed(ctx context.Context, size int64, seed uint64, ms ...figures.Measurement) ([]system, error) {
	p, digest := randomBlob(size, seed)
	if err := push(ctx, l.registry.url, "bench", digest, p); err != nil {
		return nil, err
	}
	systems, err := l.systemsBefore(ctx, l.registry.url, "/v2/bench/blobs/"+digest, ms...)
	if err != nil {
		return nil, err
	}
	if systems, err = l.withNginx(ctx, systems, p, ms...); err != nil {
		return nil, err
	}
	for range 2 { // once to fill it, once to have it checked
		for _, s := range systems {
			if _, err := timed(ctx, s.url, size); err != nil {
				return nil, fmt.Errorf("%s: %w", s.name, err)
			}
		}
	}
	l.compare(systems, ms...)
	return systems, netns.Pause(ctx, 3*time.Second) // what the filling left to do
}

// warmBlob measures one client that fetches a blob which the server has.
func (l *lab) warmBlob(ctx context.Context) error {
	size := of[int64](l.scale, 256<<20, 1<<30, 1<<30)
	t := transferOf("warm blob of "+sized(size), size)
	systems, err := l.warmed(ctx, size, 1, t.rate, t.cpu)
	if err != nil {
		return err
	}
	for range of(l.scale, 5, 15, 31) {
		for _, i := range rand.Perm(len(systems)) { // whoever is first finds the machine as nobody else does
			if err := l.take(ctx, t, systems[i]); err != nil {
				return err
			}
		}
	}
	return nil
}

// coldBlob measures one client that fetches a blob which only the upstream has,
// with a new blob for each round.
func (l *lab) coldBlob(ctx context.Context) error {
	size := of[int64](l.scale, 128<<20, 512<<20, 512<<20)
	t := transferOf("cold blob of "+sized(size), size)
	systems, err := l.systemsBefore(ctx, l.registry.url, "", t.rate, t.cpu)
	if err != nil {
		return err
	}
	systems = append([]system{{direct, l.registry, l.registry.url}}, systems...)
	l.compare(systems, t.rate, t.cpu)
	for round := range of(l.scale, 3, 5, 11) + 1 {
		p, digest := randomBlob(size, uint64(100+round))
		if err := push(ctx, l.registry.url, "bench", digest, p); err != nil {
			return err
		}
		syscall.Sync() // the pushed blob is not to be written while others are measured
		for _, s := range systems {
			if err := netns.Pause(ctx, 2*time.Second); err != nil { // what the one before left to do
				return err
			}
			s.url += "/v2/bench/blobs/" + digest
			if round == 0 { // a round that warms the programs up
				_, err = timed(ctx, s.url, size)
			} else {
				err = l.take(ctx, t, s)
			}
			if err != nil {
				return err
			}
		}
	}
	return nil
}

// ranges measures random reads of 4 KiB, one after the other.
func (l *lab) ranges(ctx context.Context) error {
	const size, piece = 256 << 20, 4 << 10
	half, most := figures.Measurement{Name: "range of 4 KiB, median", Unit: "µs"}, figures.Measurement{Name: "range of 4 KiB, 99th percentile", Unit: "µs"}
	systems, err := l.warmed(ctx, size, 7, half, most)
	if err != nil {
		return err
	}
	for round := range of(l.scale, 3, 5, 15) {
		for _, s := range systems {
			rng := rand.New(rand.NewPCG(uint64(round), 1))
			micros := make([]float64, of(l.scale, 500, 2000, 2000))
			for i := range micros {
				off := rng.Int64N(size - piece)
				begin := time.Now()
				if n, err := fetch(ctx, s.url, fmt.Sprintf("bytes=%d-%d", off, off+piece-1)); err != nil || n != piece {
					return fmt.Errorf("%s: %d bytes: %w", s.name, n, err)
				}
				micros[i] = float64(time.Since(begin).Microseconds())
			}
			slices.Sort(micros)
			l.into.Add(half, s.name, micros[len(micros)/2])
			l.into.Add(most, s.name, micros[len(micros)*99/100])
		}
	}
	return nil
}

// clients measures the memory of a node that serves 64 clients at once, each of
// them a whole blob: all cold, and then all warm.
func (l *lab) clients(ctx context.Context) error {
	const n, size = 64, 24 << 20
	node, err := l.startGranary(ctx, l.registry.url)
	if err != nil {
		return err
	}
	digests := make([]string, n)
	for i := range digests {
		var p []byte
		p, digests[i] = randomBlob(size, uint64(1000+i))
		if err := push(ctx, l.registry.url, "bench", digests[i], p); err != nil {
			return err
		}
	}
	for _, name := range []string{"64 clients, cold", "64 clients, then warm"} {
		begin := time.Now()
		err := atOnce(n, func(i int) error {
			_, err := timed(ctx, node.url+"/v2/bench/blobs/"+digests[i], size)
			return err
		})
		took := time.Since(begin).Seconds()
		peak, memErr := node.peak()
		if err := errors.Join(err, memErr); err != nil {
			return err
		}
		l.into.Add(figures.Measurement{Name: name + ": together", Unit: "MB/s"}, granary, n*size/1e6/took)
		l.into.Add(figures.Measurement{Name: name + ": peak of resident memory", Unit: "MiB"}, granary, float64(peak>>20))
	}
	return nil
}

// atOnce calls do n times, as nearly at once as can be.
func atOnce(n int, do func(i int) error) error {
	var g errgroup.Group
	var ready sync.WaitGroup
	ready.Add(n)
	for i := range n {
		g.Go(func() error {
			ready.Done()
			ready.Wait()
			return do(i)
		})
	}
	return g.Wait()
}

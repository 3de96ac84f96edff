package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"
)

// warmBlob measures one client that fetches a blob which the server has.
func (b *bench) warmBlob(ctx context.Context) error {
	p, digest := randomBlob(b.warm, 1)
	if err := push(ctx, b.registry.url, "bench", digest, p); err != nil {
		return err
	}
	dir := b.folder("www")
	if err := os.WriteFile(filepath.Join(dir, "blob"), p, 0o600); err != nil {
		return err
	}
	nginx, err := b.startNginx(ctx, dir)
	if err != nil {
		return err
	}
	node, err := b.startGranary(ctx)
	if err != nil {
		return err
	}
	cache, err := b.startRegistry(ctx, "docker-registry", b.registry.url)
	if err != nil {
		return err
	}
	path := "/v2/bench/blobs/" + digest
	systems := []struct {
		name string
		p    *process
		url  string
	}{
		{"nginx", nginx, nginx.url + "/blob"},
		{"granary", node, node.url + path},
		{"docker-registry proxy", cache, cache.url + path},
	}
	columns := make([]*column, len(systems))
	for i, s := range systems {
		columns[i] = &column{system: s.name, size: b.warm}
		for range 2 { // once to fill it, once to have it checked
			if _, err := timed(ctx, s.url, b.warm); err != nil {
				return err
			}
		}
	}
	time.Sleep(3 * time.Second) // what the filling left to do
	for range b.runs {
		for _, i := range rand.Perm(len(systems)) { // whoever is first finds the machine as nobody else does
			if err := columns[i].take(ctx, systems[i].p, systems[i].url); err != nil {
				return err
			}
		}
	}
	for _, s := range systems {
		s.p.stop()
	}
	table(fmt.Sprintf("Warm blob of %d MiB over loopback, one client", b.warm>>20), columns)
	return nil
}

// take measures one fetch.
func (c *column) take(ctx context.Context, p *process, url string) error {
	before := p.cpu()
	rate, err := timed(ctx, url, c.size)
	if err != nil {
		return fmt.Errorf("%s: %w", c.system, err)
	}
	c.rate = append(c.rate, rate)
	c.cpu = append(c.cpu, p.cpu()-before)
	return nil
}

// coldBlob measures one client that fetches a blob which only the upstream has,
// with a new blob for each round.
func (b *bench) coldBlob(ctx context.Context) error {
	node, err := b.startGranary(ctx)
	if err != nil {
		return err
	}
	cache, err := b.startRegistry(ctx, "docker-registry", b.registry.url)
	if err != nil {
		return err
	}
	systems := []*process{b.registry, node, cache}
	columns := []*column{{system: "direct", size: b.cold}, {system: "granary", size: b.cold}, {system: "docker-registry proxy", size: b.cold}}
	if program := distribution(); program != "" {
		v3, err := b.startRegistry(ctx, program, b.registry.url)
		if err != nil {
			return err
		}
		systems = append(systems, v3)
		columns = append(columns, &column{system: "distribution v3 proxy", size: b.cold})
	} else {
		fmt.Println("distribution v3 is left out: there is no registry in $GRANARY_TOOLS")
	}
	for round := range b.runs + 1 {
		p, digest := randomBlob(b.cold, uint64(100+round))
		if err := push(ctx, b.registry.url, "bench", digest, p); err != nil {
			return err
		}
		syscall.Sync() // the pushed blob is not to be written while others are measured
		for i, s := range systems {
			time.Sleep(2 * time.Second) // what the one before left to do
			if round == 0 {             // a round that warms the programs up
				_, err = timed(ctx, s.url+"/v2/bench/blobs/"+digest, b.cold)
			} else {
				err = columns[i].take(ctx, s, s.url+"/v2/bench/blobs/"+digest)
			}
			if err != nil {
				return err
			}
		}
	}
	for _, s := range systems[1:] {
		s.stop()
	}
	table(fmt.Sprintf("Cold blob of %d MiB over loopback, one client", b.cold>>20), columns)
	return nil
}

// ranges measures random reads of 4 KiB, one after the other.
func (b *bench) ranges(ctx context.Context) error {
	const size, piece = 256 << 20, 4 << 10
	p, digest := randomBlob(size, 7)
	if err := push(ctx, b.registry.url, "bench", digest, p); err != nil {
		return err
	}
	dir := b.folder("www")
	if err := os.WriteFile(filepath.Join(dir, "blob"), p, 0o600); err != nil {
		return err
	}
	nginx, err := b.startNginx(ctx, dir)
	if err != nil {
		return err
	}
	node, err := b.startGranary(ctx)
	if err != nil {
		return err
	}
	path := "/v2/bench/blobs/" + digest
	systems := []struct{ name, url string }{
		{"nginx", nginx.url + "/blob"}, {"granary", node.url + path}, {"docker-registry", b.registry.url + path},
	}
	for range 2 {
		for _, s := range systems {
			if _, err := timed(ctx, s.url, size); err != nil {
				return err
			}
		}
	}
	micros := make([][]float64, len(systems))
	for round := range b.runs {
		for i, s := range systems {
			rng := rand.New(rand.NewPCG(uint64(round), 1))
			for range b.reads {
				off := rng.Int64N(size - piece)
				begin := time.Now()
				if n, err := fetch(ctx, s.url, fmt.Sprintf("bytes=%d-%d", off, off+piece-1)); err != nil || n != piece {
					return fmt.Errorf("%s: %d bytes: %w", s.name, n, err)
				}
				micros[i] = append(micros[i], float64(time.Since(begin).Microseconds()))
			}
		}
	}
	nginx.stop()
	node.stop()
	fmt.Printf("Random ranges of %d bytes of a warm blob, one after the other\n", piece)
	for i, s := range systems {
		fmt.Printf("%16s  p50 %4.0f µs  p99 %4.0f µs\n", s.name, quantile(micros[i], 0.5), quantile(micros[i], 0.99))
	}
	fmt.Println()
	return nil
}

// clients measures the memory of a node that serves 64 clients at once, each of
// them a whole blob: all cold, and then all warm.
func (b *bench) clients(ctx context.Context) error {
	const n, size = 64, 24 << 20
	node, err := b.startGranary(ctx)
	if err != nil {
		return err
	}
	digests := make([]string, n)
	for i := range digests {
		var p []byte
		p, digests[i] = randomBlob(size, uint64(1000+i))
		if err := push(ctx, b.registry.url, "bench", digests[i], p); err != nil {
			return err
		}
	}
	fmt.Printf("%d clients at once, each a whole blob of %d MiB\n", n, size>>20)
	for _, title := range []string{"cold", "warm"} {
		var g errgroup.Group
		start := make(chan struct{})
		var ready sync.WaitGroup
		ready.Add(n)
		for _, d := range digests {
			g.Go(func() error {
				ready.Done()
				<-start
				_, err := timed(ctx, node.url+"/v2/bench/blobs/"+d, size)
				return err
			})
		}
		ready.Wait()
		begin := time.Now()
		close(start)
		if err := g.Wait(); err != nil {
			return err
		}
		took := time.Since(begin).Seconds()
		peak, err := node.peak()
		if err != nil {
			return err
		}
		fmt.Printf("%16s  %5.0f MB/s together  peak resident memory %d MiB\n", title, n*size/1e6/took, peak>>20)
	}
	fmt.Println()
	node.stop()
	return nil
}

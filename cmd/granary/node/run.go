package node

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
)

// Run serves until ctx ends, then stops accepting, lets responses that are under
// way finish for the configured time, and records what was written. It returns
// nil after such an end. It is called once.
func (n *Node) Run(ctx context.Context) error {
	g, gctx := errgroup.WithContext(ctx)
	registry := n.server(n.handler)
	registry.RegisterOnShutdown(n.registry.EndMounts)
	for _, l := range n.listeners {
		g.Go(func() error { return ignoreShutdown(registry.Serve(l)) })
	}
	gate := n.server(n.chunks)
	if n.gateway != nil {
		g.Go(func() error { return ignoreShutdown(gate.Serve(n.gateway)) })
	}
	if t := n.network.Load(); t != nil {
		g.Go(func() error { t.run(gctx, n); return nil })
	}
	children := n.server(n.siteFace())
	if len(n.cfg.SiteListen) > 0 {
		g.Go(func() error { return ignoreShutdown(n.serveSite(children)) })
	}
	admin := n.server(n.adminHandler())
	if n.admin != nil {
		admin.Handler = n.guard.wrap(admin.Handler)
		g.Go(func() error { return ignoreShutdown(admin.Serve(n.admin)) })
	}
	if n.snapshots != nil {
		g.Go(func() error { return n.snapshots.run(gctx) })
	}
	g.Go(func() error { return n.scrub(gctx) })
	g.Go(func() error { n.checkLayers(gctx); return nil })
	g.Go(func() error { n.registry.MakeOffers(gctx); return nil })
	g.Go(func() error { n.watchTraffic(gctx); return nil })
	g.Go(func() error { n.ledger.run(gctx, n.faults.report); return nil })
	g.Go(func() error { n.runPreheats(gctx); return nil })
	if n.lending != nil {
		g.Go(func() error { n.lender.run(gctx); return nil })
		g.Go(func() error { return n.lending.Serve(gctx) })
	}
	// Other members are asked for as long as there are responses to be given.
	cctx, leave := context.WithCancel(context.WithoutCancel(ctx))
	defer leave()
	if n.cluster != nil {
		g.Go(func() error { return n.runCluster(cctx) })
		if len(n.beside) > 0 {
			g.Go(func() error { n.announceContents(cctx); return nil })
		}
	}
	g.Go(func() error {
		<-gctx.Done()
		defer leave()
		return n.drain(admin, registry, gate, children)
	})
	n.log.Info("serving", "registry", strings.Join(n.URLs(), " "), "admin", n.AdminURL(), "gateway", n.GatewayURL(), "bitswap", strings.Join(n.BitswapAddrs(), " "),
		"data", n.cfg.DataDir, "version", Version)
	err := g.Wait()
	if cerr := n.close(); err == nil {
		err = cerr
	}
	n.log.Info("stopped")
	return err
}

// runCluster is a member of the cluster, which learns what the store holds.
func (n *Node) runCluster(ctx context.Context) error {
	if n.store.Disk != nil {
		for _, d := range n.store.Disk.Completed() {
			n.cluster.gossip.Announce(d)
		}
	}
	return n.cluster.run(ctx, backend{n.registry, n.store, n.cluster.providers, n.order})
}

func (n *Node) server(h http.Handler) *http.Server {
	return &http.Server{
		Handler:           h,
		ReadHeaderTimeout: headerTimeout,
		IdleTimeout:       idleTimeout,
		MaxHeaderBytes:    maxHeader,
		ErrorLog:          slog.NewLogLogger(n.log.Handler(), slog.LevelDebug),
	}
}

// drain ends the servers. The admin listener goes last, to be asked until then.
func (n *Node) drain(admin *http.Server, faces ...*http.Server) error {
	n.log.Info("draining", "timeout", n.cfg.DrainTimeout)
	ctx, cancel := context.WithTimeout(context.Background(), n.cfg.DrainTimeout)
	defer cancel()
	if n.cluster != nil {
		n.cluster.drain(ctx)
	}
	var all sync.WaitGroup
	for _, face := range faces {
		all.Go(func() {
			if err := face.Shutdown(ctx); err != nil {
				n.log.Warn("responses were cut off", "after", n.cfg.DrainTimeout)
				_ = face.Close()
			}
		})
	}
	all.Wait()
	return admin.Close()
}

// checkLayers looks at layers that have become complete, one after the other.
func (n *Node) checkLayers(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case d := <-n.completed:
			if info, err := n.store.Stat(d); err == nil {
				n.registry.CheckLayer(ctx, d, info.Size)
				if n.cfg.LayerIndex == "complete" {
					n.registry.IndexLayer(ctx, d, info.Size)
				}
				if n.hasChildren() {
					n.registry.OfferLayer(d, info.Size)
				}
			}
		}
	}
}

// scrub reads and checks everything that is stored, slowly, now and then.
func (n *Node) scrub(ctx context.Context) error {
	if n.store.Disk == nil {
		return nil
	}
	tick := time.NewTicker(scrubEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		pace := func(size int64) {
			select {
			case <-ctx.Done():
			case <-time.After(time.Duration(size) * time.Second / scrubRate):
			}
		}
		report, err := n.store.Disk.Fsck(ctx, pace, n.faults.report)
		n.log.Info("scrubbed the store", "chunks", report.Chunks, "wrong", report.Wrong, "failed", report.Failed, "error", err)
	}
}

// Close closes a node that is not run.
func (n *Node) Close() error { return n.close() }

// close closes what was opened, last first.
func (n *Node) close() error {
	var errs []error
	for i := len(n.closers) - 1; i >= 0; i-- {
		errs = append(errs, n.closers[i]())
	}
	n.closers = nil
	return errors.Join(errs...)
}

func ignoreClosed(l net.Listener) func() error {
	return func() error {
		if err := l.Close(); !errors.Is(err, net.ErrClosed) {
			return err
		}
		return nil
	}
}

func ignoreShutdown(err error) error {
	if errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return err
}

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/granary-oci/granary/simtest/netns"
)

// tool has real clients pull through the nodes of a cluster, all at once. Their
// times say little, for they unpack and write; they check every digest.
func (l *lab) tool(ctx context.Context, name string, img *image, pull func(context.Context, int, *image) error, lim limits) *row {
	return l.measure(ctx, name, []*image{img}, func(ctx context.Context, r *row) error {
		if _, err := os.Stat(filepath.Join(l.Tools, name)); l.Tools == "" || err != nil {
			return fmt.Errorf("%s is not in $GRANARY_TOOLS; see simtest/e2e/install.sh", name)
		}
		nodes, err := l.startNodes(ctx, len(l.spaces), l.Alone)
		if err != nil {
			return err
		}
		if err := r.begin(l); err != nil {
			return err
		}
		r.outcomes = make([]outcome, len(nodes))
		g, ctx := errgroup.WithContext(ctx)
		for i := range nodes {
			g.Go(func() error {
				begin := time.Now()
				err := pull(ctx, i, img)
				r.outcomes[i].Seconds = time.Since(begin).Seconds()
				return err
			})
		}
		err = g.Wait()
		if err := errors.Join(err, r.end(context.WithoutCancel(ctx), l)); err != nil {
			return err
		}
		return r.within(limits{Egress: lim.Egress})
	})
}

func (l *lab) crane(ctx context.Context, i int, img *image) error {
	to := filepath.Join(l.data, fmt.Sprintf("crane-%d.tar", i+1))
	defer os.Remove(to)
	return l.runIn(ctx, i, "crane", "pull", "--insecure", "127.0.0.1:5050/"+img.Name+":"+tag, to)
}

// containerd fetches into the content store of a containerd of its own; it does
// not unpack.
func (l *lab) containerd(ctx context.Context, i int, img *image) error {
	dir := filepath.Join(l.data, fmt.Sprintf("cd%d", i+1))
	config, socket := filepath.Join(dir, "config.toml"), filepath.Join(dir, "c.sock")
	text := fmt.Sprintf("version = 3\nroot = %q\nstate = %q\ndisabled_plugins = ['io.containerd.cri.v1.images', 'io.containerd.cri.v1.runtime', 'io.containerd.grpc.v1.cri']\n"+
		"[grpc]\naddress = %q\n[ttrpc]\naddress = %q\n", dir+"/root", dir+"/state", socket, socket+".ttrpc")
	if err := errors.Join(os.MkdirAll(dir, 0o755), os.WriteFile(config, []byte(text), 0o644)); err != nil {
		return err
	}
	p, err := netns.Start(l.logFile(fmt.Sprintf("containerd%d", i+1)), l.spaces[i].Space, filepath.Join(l.Tools, "containerd"), "-c", config)
	if err != nil {
		return err
	}
	defer p.StopWithin(5 * time.Second)
	err = eventually(ctx, 20*time.Second, "containerd answers", func() bool { return l.runIn(ctx, i, "ctr", "-a", socket, "version") == nil })
	if err != nil {
		return err
	}
	return l.runIn(ctx, i, "ctr", "-a", socket, "content", "fetch", "--plain-http", "127.0.0.1:5050/"+img.Name+":"+tag)
}

// runIn runs one of the tools on machine i.
func (l *lab) runIn(ctx context.Context, i int, tool string, args ...string) error {
	args = l.spaces[i].In(append([]string{filepath.Join(l.Tools, tool)}, args...)...)
	out, err := exec.CommandContext(ctx, args[0], args[1:]...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s on machine %d: %w: %s", tool, i+1, err, out[max(0, len(out)-500):])
	}
	return nil
}

// Command kubernetes runs the Helm chart in a Kubernetes cluster: real control plane, real
// kubelets, real containerd, on this machine alone.
//
//	go run ./simtest/kubernetes [-keep] [-work DIR]
//
// It makes three nodes, each a network, mount and PID namespace with containerd and a kubelet of
// its own, and a machine beside them with etcd, the API server, CoreDNS, and a registry whose
// bytes are counted. Then it runs the commands of deploy/README.md and deploy/upgrade.md as
// they are written there, from install to uninstall, with Helm and without, while nodes pull,
// and looks at what they promise: who sent what, that no pull fails, that containerd's files
// are afterwards what they were, byte for byte. It prints what it does and what it sees; its
// exit status is 1 if anything is not as it should be.
//
// It takes root, Debian's podman, runc, iptables and containernetworking-plugins, what
// simtest/e2e/install.sh puts into $GRANARY_TOOLS, and about 4 GiB of memory. The programs of
// Kubernetes are built into $GRANARY_TOOLS/kubernetes when they are not there yet, which takes
// a quarter of an hour; the rest takes as long.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"
)

// nodeCount is how many nodes the cluster has.
const nodeCount = 3

func main() {
	if len(os.Args) == 3 && os.Args[1] == "machine" {
		beMachine(os.Args[2])
	}
	work := flag.String("work", "/var/tmp/granary-kubernetes", "where logs and what nodes store are")
	keep := flag.Bool("keep", false, "after a failure let the cluster run until it is interrupted")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, *work, *keep); err != nil {
		fmt.Fprintln(os.Stderr, "kubernetes:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, work string, keep bool) (err error) {
	if os.Geteuid() != 0 {
		return errors.New("it takes root to make namespaces")
	}
	if tools() == "" {
		return errors.New("GRANARY_TOOLS is not set; run simtest/e2e/install.sh as root, and name its folder there")
	}
	if err := buildPrograms(ctx); err != nil {
		return err
	}
	sweep(work)
	begin := time.Now()
	l := &lab{dir: filepath.Join(work, fmt.Sprint("run-", os.Getpid())), ran: make(map[string]bool)}
	defer func() {
		if err != nil && keep && ctx.Err() == nil {
			fmt.Printf("%v\nthe cluster runs on; to enter it: nsenter --net=/run/netns/%s env KUBECONFIG=%s %s/kubectl get pods -A\n", err, l.net.outside, l.kubeconfig(), programDir())
			<-ctx.Done()
		}
		err = errors.Join(err, l.close(err != nil))
	}()
	if err := l.open(ctx); err != nil {
		return err
	}
	fmt.Printf("the cluster is up after %v\n", time.Since(begin).Round(time.Second))
	for _, s := range steps {
		if err := ctx.Err(); err != nil {
			return err
		}
		fmt.Printf("\n== %s\n", s.title)
		if err := s.do(ctx, l); err != nil {
			return fmt.Errorf("%s: %w", s.title, err)
		}
	}
	fmt.Printf("\nall is well, after %v\n", time.Since(begin).Round(time.Second))
	return nil
}

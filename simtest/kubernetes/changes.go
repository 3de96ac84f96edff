package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// upgrade replaces all pods twice while all nodes pull without a pause.
func upgrade(ctx context.Context, l *lab) error {
	past := l.registry.sentTo("containerd")
	pulls, err := l.underPulls(ctx, func() error {
		if _, err := l.page(ctx, upgrades, changeLine+" --set image.tag=0.1.0"); err != nil {
			return err
		}
		if err := l.change(ctx, "--set image.tag="+nextTag); err != nil {
			return err
		}
		if err := l.imagesAre(ctx, nextTag); err != nil {
			return err
		}
		if _, err := l.page(ctx, upgrades, "helm rollback granary --namespace kube-system"); err != nil {
			return err
		}
		return l.rolledOut(ctx)
	})
	fmt.Printf("  %d pulls meanwhile; containerd itself has fetched %d KiB\n", pulls, (l.registry.sentTo("containerd")-past)>>10)
	return errors.Join(err, l.imagesAre(ctx, "0.1.0"))
}

// imagesAre looks at which image the pods run.
func (l *lab) imagesAre(ctx context.Context, tag string) error {
	out, err := l.shell(ctx, "kubectl -n kube-system get pods "+selector+" -o jsonpath='{.items[*].spec.containers[*].image}'")
	if err == nil && strings.Count(out, imageName+":"+tag) != nodeCount {
		err = fmt.Errorf("pods run %s, not the tag %s", out, tag)
	}
	return err
}

// underPulls changes something while each node pulls one image after the other.
func (l *lab) underPulls(ctx context.Context, change func() error) (pulls int64, err error) {
	var clients sync.WaitGroup
	var done atomic.Int64
	over := make(chan struct{})
	errs := make([]error, len(l.nodes))
	for i, n := range l.nodes {
		clients.Go(func() {
			for k := i; errs[i] == nil; k++ {
				select {
				case <-over:
					return
				default:
				}
				errs[i] = n.pull(ctx, app(1+k%(apps-1)))
				done.Add(1)
			}
		})
	}
	err = change()
	close(over)
	clients.Wait()
	return done.Load(), errors.Join(append(errs, err)...)
}

// changeSettings changes values as the pages do.
func changeSettings(ctx context.Context, l *lab) error {
	for _, c := range []struct{ page, values string }{
		{upgrades, "--set updateStrategy.rollingUpdate.maxUnavailable=5%"},
		{readme, "--set keep=none --set contentDir=/var/lib/containerd/io.containerd.content.v1.content"},
		{readme, "--set admin.exposed=true --set metrics.podMonitor.enabled=true --set metrics.prometheusRule.enabled=true --set metrics.grafanaDashboard.enabled=true --set networkPolicy.enabled=true"},
	} {
		if _, err := l.page(ctx, c.page, changeLine+" "+c.values); err != nil {
			return err
		}
		if err := l.rolledOut(ctx); err != nil {
			return err
		}
	}
	// Others' ports, and a token, which the notes' commands then name. The mirror's port stays changed.
	if _, err := l.do(ctx, "kubectl -n kube-system create secret generic admintoken --from-literal=token=$(openssl rand -hex 16)"); err != nil {
		return err
	}
	if err := l.tell(ctx, "--set ports.admin=5061 --set mirror.port=5055 --set admin.tokenSecret=admintoken"); err != nil {
		return err
	}
	if err := l.change(ctx, "--set ports.admin=5051 --set admin.tokenSecret="); err != nil {
		return err
	}
	// Only looked at: containerd reads another directory here.
	if _, err := l.page(ctx, readme, changeLine+" --set containerd.hostPath=/var/lib/rancher/k3s/agent/etc/containerd", "--dry-run=server | grep k3s"); err != nil {
		return err
	}
	// What was set before is still set: this comes from where it says.
	before := l.registry.sentTo("containerd")
	for _, n := range l.nodes {
		if err := n.pull(ctx, app(1)); err != nil {
			return err
		}
	}
	if l.registry.sentTo("containerd") != before {
		return errors.New("containerd has gone past the mirror")
	}
	return l.complaints(ctx)
}

// complaints shows what nodes warn of.
func (l *lab) complaints(ctx context.Context) error {
	_, err := l.do(ctx, `kubectl -n kube-system logs `+selector+` -c granary --tail=-1 | { grep -E '"level":"(WARN|ERROR)"' || true; }`)
	return err
}

// editor does to a secret what the page says, as an operator would in an editor. The field
// is base64.
const editor = `#!/bin/bash
set -euo pipefail
is=$(sed -n 's/^  secret: //p' "$1" | base64 -d)
to=$(%s <<<"$is" | base64 -w0)
sed -i "s|^  secret: .*|  secret: $to|" "$1"
`

// changeSecret changes the secret in the three steps of the page.
func changeSecret(ctx context.Context, l *lab) error {
	const second = "the second secret of these nodes"
	for _, step := range []struct {
		how     string
		secrets int
	}{
		{"sed '$a" + second + "'", 2},
		{"tac", 2},
		{"head -n1", 1},
	} {
		before, err := l.reads(ctx, step.secrets)
		if err != nil {
			return err
		}
		begin := time.Now()
		if err := writeFiles(l.dir, map[string]string{"editor": fmt.Sprintf(editor, step.how)}); err != nil {
			return err
		}
		if _, err := l.page(ctx, upgrades, "kubectl -n kube-system edit secret granary-cluster", "# the editor does: "+step.how); err != nil {
			return err
		}
		err = until(ctx, 3*time.Minute, "all nodes have read the secret again", func() error {
			n, err := l.reads(ctx, step.secrets)
			if err == nil && n < before+nodeCount {
				err = fmt.Errorf("%d have", n-before)
			}
			return err
		})
		if err != nil {
			return err
		}
		fmt.Printf("  all have read %d after %v\n", step.secrets, time.Since(begin).Round(time.Second))
		if _, err := l.page(ctx, upgrades, peers); err != nil {
			return err
		}
		if err := l.acquainted(ctx); err != nil {
			return err
		}
	}
	// An upgrade keeps it, and so does the way back.
	if err := l.change(ctx, "--set log.level=debug"); err != nil {
		return err
	}
	if err := l.secretIs(ctx, second); err != nil {
		return fmt.Errorf("after an upgrade: %w", err)
	}
	const oldest = "$(helm history granary --namespace kube-system | awk 'NR == 2 {print $1}')"
	if _, err := l.do(ctx, "helm rollback granary --namespace kube-system "+oldest); err != nil {
		return err
	}
	if err := l.secretIs(ctx, second); err != nil {
		return fmt.Errorf("after a rollback: %w", err)
	}
	return l.rolledOut(ctx)
}

// reads returns how often nodes have read so many secrets again.
func (l *lab) reads(ctx context.Context, secrets int) (int, error) {
	out, err := l.shell(ctx, "kubectl -n kube-system logs "+selector+" -c granary --tail=-1")
	return strings.Count(out, fmt.Sprintf(`"cluster secrets were read again","secrets":%d`, secrets)), err
}

func (l *lab) secretIs(ctx context.Context, want string) error {
	out, err := l.shell(ctx, "kubectl -n kube-system get secret granary-cluster -o jsonpath='{.data.secret}' | base64 -d")
	if err == nil && strings.TrimSpace(out) != want {
		err = errors.New("the cluster's secret is another one")
	}
	return err
}

// forwardPort asks a node as a browser does.
func forwardPort(ctx context.Context, l *lab) error {
	_, err := l.page(ctx, readme, "kubectl -n kube-system port-forward ds/granary 5051",
		"& for _ in {1..30}; do curl -fs http://127.0.0.1:5051/readyz && break; sleep 1; done; curl -fsS http://127.0.0.1:5051/ | grep -o '<title>.*</title>'; kill %1")
	return err
}

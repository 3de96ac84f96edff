package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	granary "github.com/granary-oci/granary/cmd/granary/node"
)

// steps are what is done, in order. Each finds what the one before has left.
var steps = []struct {
	title string
	do    func(context.Context, *lab) error
}{
	{"what tests render, in the eyes of the API server", dryRun},
	{"install", install},
	{"pods on all nodes start from one image", startPods},
	{"upgrade and rollback, while all nodes pull", upgrade},
	{"settings that the pages name", changeSettings},
	{"the cluster's secret is changed", changeSecret},
	{"the dashboard by a forwarded port", forwardPort},
	{"uninstall", uninstall},
	{"without Helm", withoutHelm},
	{"on the nodes' network", onHostNetwork},
	{"containerd's snapshotter", asSnapshotter},
	{"uninstall where a node is gone", withoutANode},
	{"no command of the pages was left out", allRan},
}

const (
	installLine = "helm upgrade --install granary deploy/helm/granary --namespace kube-system"
	changeLine  = installLine + " --reset-then-reuse-values"
	rollout     = "kubectl -n kube-system rollout status ds/granary"
	peers       = "kubectl -n kube-system exec ds/granary -- /granary peers"
	selector    = "-l app.kubernetes.io/name=granary,app.kubernetes.io/component=node"
)

// install installs with the first commands of the README, and then names the registry that there is.
func install(ctx context.Context, l *lab) error {
	if _, err := l.page(ctx, readme, installLine); err != nil {
		return err
	}
	if err := l.rolledOut(ctx); err != nil {
		return err
	}
	if _, err := l.page(ctx, readme, peers); err != nil {
		return err
	}
	if _, err := l.page(ctx, readme, "kubectl -n kube-system logs ds/granary -c configure"); err != nil {
		return err
	}
	if err := l.change(ctx, "--set 'upstreams.docker\\.io=http://"+outsideAddress+":5000' --set data.cacheSize=1GiB"); err != nil {
		return err
	}
	for _, n := range l.nodes {
		if text, err := n.hosts(); err != nil || !strings.Contains(text, `"http://127.0.0.1:5050"`) || !strings.Contains(text, "# ours") {
			return fmt.Errorf("%s: containerd is not configured, or has lost what was there: %w\n%s", n.name, err, text)
		}
	}
	if _, err := l.page(ctx, readme, "kubectl -n kube-system exec ds/granary -- /granary pull alpine:3"); err != nil {
		return err
	}
	_, err := l.page(ctx, readme, "kubectl -n kube-system exec ds/granary -- /granary status")
	return err
}

// change changes values, and waits until all pods have them.
func (l *lab) change(ctx context.Context, values string) error {
	if err := l.tell(ctx, values); err != nil {
		return err
	}
	return l.meet(ctx)
}

// tell changes values, and runs the commands that the chart's notes then tell of: the first
// waits for the pods.
func (l *lab) tell(ctx context.Context, values string) error {
	notes, err := l.do(ctx, changeLine+" "+values)
	if err != nil {
		return err
	}
	told, out := 0, ""
	for line := range strings.Lines(notes) {
		if command := strings.TrimSpace(line); strings.HasPrefix(line, "  kubectl ") {
			told++
			fmt.Println("$", command)
			err := until(ctx, 2*time.Minute, "it works", func() (err error) { out, err = l.shell(ctx, command); return err })
			if err != nil {
				return err
			}
			show(out)
		}
	}
	if told != 2 {
		return fmt.Errorf("the notes tell of %d commands", told)
	}
	return nil
}

// rolledOut waits for the pods as the pages do, and until each knows of all.
func (l *lab) rolledOut(ctx context.Context) error {
	if _, err := l.page(ctx, upgrades, rollout); err != nil {
		return err
	}
	return l.meet(ctx)
}

// meet waits until each member knows of all.
func (l *lab) meet(ctx context.Context) error {
	err := until(ctx, 2*time.Minute, "members know each other", func() error { return l.acquainted(ctx) })
	if err == nil {
		fmt.Printf("  each of %d members knows all\n", nodeCount)
	}
	return err
}

// statuses asks all nodes.
func (l *lab) statuses(ctx context.Context) (all []granary.Status, err error) {
	pods, err := l.shell(ctx, "kubectl -n kube-system get pods -o name "+selector)
	if err != nil {
		return nil, err
	}
	for _, pod := range strings.Fields(pods) {
		out, err := l.shell(ctx, "kubectl -n kube-system exec "+pod+" -c granary -- /granary status --json")
		if err != nil {
			return nil, err
		}
		var s granary.Status
		if err := json.Unmarshal([]byte(out), &s); err != nil {
			return nil, fmt.Errorf("%w: %s", err, out)
		}
		all = append(all, s)
	}
	return all, nil
}

func (l *lab) acquainted(ctx context.Context) error {
	all, err := l.statuses(ctx)
	if err != nil {
		return err
	}
	if len(all) != nodeCount {
		return fmt.Errorf("there are %d pods", len(all))
	}
	for _, s := range all {
		up := 0
		for _, m := range s.Cluster.Members {
			if m.State == "up" || m.State == "self" {
				up++
			}
		}
		if up != nodeCount || s.Degraded != "" {
			return fmt.Errorf("a node knows of %d members: %+v, %s", up, s.Cluster.Members, s.Degraded)
		}
		// Kubernetes gives the label of the node to its pods.
		if s.Cluster.Zone != zone {
			return fmt.Errorf("a node is in the zone %q, not %q", s.Cluster.Zone, zone)
		}
	}
	return nil
}

// appPods is a DaemonSet of an image that no node has.
const appPods = `apiVersion: apps/v1
kind: DaemonSet
metadata: {name: app}
spec:
  selector: {matchLabels: {app: app}}
  template:
    metadata: {labels: {app: app}}
    spec:
      terminationGracePeriodSeconds: 1
      containers:
        - {name: app, image: %q}
`

// startPods has the kubelets of all nodes pull an image at once.
func startPods(ctx context.Context, l *lab) error {
	size, err := l.sizeOf(ctx, app(0))
	if err != nil {
		return err
	}
	moved, err := l.moved(ctx)
	if err != nil {
		return err
	}
	fromRegistry, past := l.registry.sentTo("granary"), l.registry.sentTo("containerd")
	if err := writeFiles(l.dir, map[string]string{"app.yaml": fmt.Sprintf(appPods, "app:0")}); err != nil {
		return err
	}
	if _, err := l.do(ctx, "kubectl apply -f "+l.dir+"/app.yaml && kubectl rollout status ds/app --timeout=3m && kubectl get events | grep app: && ! kubectl get events | grep Failed && kubectl delete -f "+l.dir+"/app.yaml"); err != nil {
		return err
	}
	after, err := l.moved(ctx)
	if err != nil {
		return err
	}
	fromRegistry, past, moved = l.registry.sentTo("granary")-fromRegistry, l.registry.sentTo("containerd")-past, after-moved
	fmt.Printf("  image %d KiB; from the registry: nodes %d KiB, containerd itself %d KiB; from member to member %d KiB\n", size>>10, fromRegistry>>10, past>>10, moved>>10)
	switch {
	case past != 0:
		return errors.New("containerd has gone past the mirror")
	case fromRegistry > size*11/10:
		return errors.New("more than one copy has left the registry")
	case moved < fromRegistry*3/2:
		return errors.New("nodes have not shared")
	}
	return nil
}

// moved returns the bytes that nodes have got from each other since they started.
func (l *lab) moved(ctx context.Context) (n int64, err error) {
	all, err := l.statuses(ctx)
	for _, s := range all {
		n += s.Cluster.Received
	}
	return n, err
}

// sizeOf returns the bytes of an image's layers that no node has.
func (l *lab) sizeOf(ctx context.Context, image string) (n int64, err error) {
	out, err := l.shell(ctx, "crane manifest --insecure "+strings.Replace(image, "docker.io", outsideAddress+":5000", 1))
	if err != nil {
		return 0, err
	}
	var m struct{ Layers []struct{ Size int64 } }
	err = json.Unmarshal([]byte(out), &m)
	for _, layer := range m.Layers[max(0, len(m.Layers)-layers):] {
		n += layer.Size
	}
	return n, err
}

package main

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"time"
)

// operatorKinds are those of the Prometheus operator, which is not here. Their fields are
// looked at by simtest/deploy, with the operator's own types.
const operatorKinds = `apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: %[1]s.monitoring.coreos.com}
spec:
  group: monitoring.coreos.com
  names: {kind: %[2]s, plural: %[1]s}
  scope: Namespaced
  versions:
    - {name: v1, served: true, storage: true, schema: {openAPIV3Schema: {type: object, x-kubernetes-preserve-unknown-fields: true}}}
---
`

// dryRun has the API server read, strictly, what the chart makes of every set of values that
// tests have, and the manifests.
func dryRun(ctx context.Context, l *lab) error {
	kinds := ""
	for _, k := range [][2]string{{"podmonitors", "PodMonitor"}, {"servicemonitors", "ServiceMonitor"}, {"prometheusrules", "PrometheusRule"}} {
		kinds += fmt.Sprintf(operatorKinds, k[0], k[1])
	}
	if err := writeFiles(l.dir, map[string]string{"kinds.yaml": kinds}); err != nil {
		return err
	}
	if _, err := l.do(ctx, "kubectl apply -f "+l.dir+"/kinds.yaml && kubectl wait --for=condition=established crd --all"); err != nil {
		return err
	}
	files, err := filepath.Glob("simtest/deploy/testdata/values/*.yaml")
	if err != nil || len(files) == 0 {
		return fmt.Errorf("there are no values to render with: %w", err)
	}
	for _, f := range append(files, "") {
		values := ""
		if f != "" {
			values = " --values " + f
		}
		if _, err := l.do(ctx, "helm template granary deploy/helm/granary --namespace kube-system --validate"+values+" | kubectl apply --dry-run=server --validate=strict -f -"); err != nil {
			return err
		}
	}
	_, err = l.do(ctx, "kubectl apply --dry-run=server --validate=strict -f deploy/manifests/granary.yaml -f deploy/manifests/undo.yaml")
	return err
}

// uninstall takes it all away, and looks for what is left.
func uninstall(ctx context.Context, l *lab) error {
	if _, err := l.page(ctx, readme, "helm uninstall granary --namespace kube-system"); err != nil {
		return err
	}
	return l.isGone(ctx, "app.kubernetes.io/instance=granary")
}

// isGone looks for what is left, in the cluster and on the nodes.
func (l *lab) isGone(ctx context.Context, labels string) error {
	if err := l.nothing(ctx, labels, "none"); err != nil {
		return err
	}
	return areAsBefore(ctx, l.nodes)
}

// nothing waits until no object of the kinds that the chart has is left.
// Pods of a node that is gone stay until Kubernetes gives it up.
func (l *lab) nothing(ctx context.Context, labels, gone string) error {
	return until(ctx, 2*time.Minute, "nothing is left", func() error {
		line := "kubectl -n kube-system get " + allKinds + " --no-headers -o custom-columns=K:.kind,N:.metadata.name,ON:.spec.nodeName -l " + labels
		left, err := l.shell(ctx, line+" | { grep -v ' "+gone+"$' || true; }")
		if err == nil && left != "" {
			err = errors.New(left)
		}
		return err
	})
}

const allKinds = "all,configmaps,secrets,serviceaccounts,endpointslices,networkpolicies,poddisruptionbudgets,podmonitors,prometheusrules"

// areAsBefore looks at containerd's files on nodes, and whether they pull.
func areAsBefore(ctx context.Context, nodes []*node) error {
	for _, n := range nodes {
		if text, err := n.hosts(); err != nil || text != before {
			return fmt.Errorf("%s: hosts.toml is not what it was: %w\n%s", n.name, err, text)
		}
		if err := n.pull(ctx, app(0)); err != nil {
			return fmt.Errorf("after all: %w", err)
		}
		files, err := filepath.Glob(filepath.Join(n.dir, "etc/containerd/*"))
		certs, cerr := filepath.Glob(filepath.Join(n.dir, "etc/containerd/certs.d/*/*"))
		if err != nil || cerr != nil || len(files) != 2 || len(certs) != 1 {
			return fmt.Errorf("%s: there are files in /etc/containerd that were not: %v %v", n.name, files, certs)
		}
	}
	fmt.Printf("  hosts.toml is what it was on %d nodes, and they pull without\n", len(nodes))
	return nil
}

// withoutHelm does the same with the manifests.
func withoutHelm(ctx context.Context, l *lab) error {
	for _, line := range []string{
		`kubectl -n kube-system create secret generic granary-cluster --from-literal=secret="$(openssl rand -hex 32)"`,
		"kubectl apply -f deploy/manifests/granary.yaml",
	} {
		if _, err := l.page(ctx, readme, line); err != nil {
			return err
		}
	}
	if err := l.rolledOut(ctx); err != nil {
		return err
	}
	if text, err := l.nodes[0].hosts(); err != nil || text == before {
		return fmt.Errorf("containerd is not configured: %w", err)
	}
	for _, line := range []string{
		"kubectl apply -f deploy/manifests/undo.yaml",
		"kubectl -n kube-system wait --for=condition=complete --timeout=5m job/granary-undo",
		"kubectl delete -f deploy/manifests/undo.yaml -f deploy/manifests/granary.yaml",
		"kubectl -n kube-system delete secret granary-cluster",
	} {
		if _, err := l.page(ctx, readme, line); err != nil {
			return err
		}
	}
	return l.isGone(ctx, "app.kubernetes.io/name=granary")
}

// onHostNetwork installs and uninstalls where there are no host ports on loopback.
func onHostNetwork(ctx context.Context, l *lab) error {
	if err := l.change(ctx, "--set hostNetwork=true --set 'upstreams.docker\\.io=http://"+outsideAddress+":5000'"); err != nil {
		return err
	}
	past := l.registry.sentTo("containerd")
	for _, n := range l.nodes {
		if err := n.pull(ctx, app(2)); err != nil {
			return err
		}
	}
	if l.registry.sentTo("containerd") != past {
		return fmt.Errorf("containerd has gone past the mirror")
	}
	return uninstall(ctx, l)
}

// asSnapshotter starts the privileged pods, of which kubelets and runtimes ask more.
func asSnapshotter(ctx context.Context, l *lab) error {
	if err := l.change(ctx, "--set snapshotter.enabled=true"); err != nil {
		return err
	}
	for _, n := range l.nodes {
		if err := n.run(ctx, "test", "-S", "/run/granary/snapshotter.sock"); err != nil {
			return err
		}
	}
	return uninstall(ctx, l)
}

// withoutANode uninstalls while a node is not there to be put back: it fails when its time is
// up, and what the page names then takes the rest away.
func withoutANode(ctx context.Context, l *lab) error {
	if err := l.change(ctx, "--set containerd.undoTimeout=60"); err != nil {
		return err
	}
	gone, left := l.nodes[nodeCount-1], l.nodes[:nodeCount-1]
	gone.machine.end()
	fmt.Println("  " + gone.name + " is gone")
	if out, err := l.do(ctx, "helm uninstall granary --namespace kube-system"); err == nil {
		return fmt.Errorf("it was uninstalled: %s", out)
	}
	for _, line := range []string{
		"helm uninstall granary --namespace kube-system --no-hooks",
		"kubectl -n kube-system delete job/granary-undo secret/granary-cluster",
	} {
		if _, err := l.page(ctx, readme, line); err != nil {
			return err
		}
	}
	if err := l.nothing(ctx, "app.kubernetes.io/name=granary", gone.name); err != nil {
		return err
	}
	return areAsBefore(ctx, left)
}

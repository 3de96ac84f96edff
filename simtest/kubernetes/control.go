package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// startControlPlane starts what kubeadm would, outside the nodes, and waits until it answers.
func (l *lab) startControlPlane(ctx context.Context) error {
	a := l.authority
	if _, err := a.kubeconfig("admin", "admin", "system:masters"); err != nil {
		return err
	}
	if err := errors.Join(a.issue("apiserver", "kube-apiserver", "system:masters"), a.issue("accounts", "accounts", "none")); err != nil {
		return err
	}
	if _, err := l.startOutside("etcd", "--data-dir="+filepath.Join(l.dir, "etcd"), "--unsafe-no-fsync", "--log-level=warn"); err != nil {
		return err
	}
	server, err := l.startOutside("kube-apiserver", "--etcd-servers=http://127.0.0.1:2379", "--bind-address="+outsideAddress, "--service-cluster-ip-range="+serviceRange,
		"--authorization-mode=Node,RBAC", "--enable-admission-plugins=NodeRestriction", "--allow-privileged",
		"--client-ca-file="+a.file("ca.crt"), "--tls-cert-file="+a.file("apiserver.crt"), "--tls-private-key-file="+a.file("apiserver.key"),
		"--kubelet-client-certificate="+a.file("apiserver.crt"), "--kubelet-client-key="+a.file("apiserver.key"), "--kubelet-preferred-address-types=InternalIP",
		"--service-account-issuer=https://kubernetes.default.svc", "--service-account-key-file="+a.file("accounts.crt"), "--service-account-signing-key-file="+a.file("accounts.key"))
	if err != nil {
		return err
	}
	err = until(ctx, 2*time.Minute, "the API server is ready", func() error { return l.quiet(ctx, "kubectl get --raw /readyz") }, server)
	if err != nil {
		return err
	}
	return errors.Join(l.startController("kube-controller-manager", "--service-account-private-key-file="+a.file("accounts.key"), "--root-ca-file="+a.file("ca.crt"), "--use-service-account-credentials"),
		l.startController("kube-scheduler"), l.startDNS())
}

func (l *lab) startController(name string, args ...string) error {
	config, err := l.authority.kubeconfig(name, "system:"+name, "system:"+name)
	if err != nil {
		return err
	}
	_, err = l.startOutside(name, append(args, "--kubeconfig="+config, "--leader-elect=false", "--bind-address=127.0.0.1")...)
	return err
}

// startDNS starts CoreDNS, with what kubeadm configures it to do for names of the cluster.
func (l *lab) startDNS() error {
	config, err := l.authority.kubeconfig("coredns", "coredns", "system:masters")
	if err != nil {
		return err
	}
	text := fmt.Sprintf(".:53 {\n  bind %s\n  errors\n  kubernetes cluster.local in-addr.arpa ip6.arpa {\n    kubeconfig %s\n    ttl 30\n  }\n  cache 30\n  loadbalance\n}\n", outsideAddress, config)
	file := filepath.Join(l.dir, "Corefile")
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		return err
	}
	_, err = l.startOutside("coredns", "-conf", file)
	return err
}

// startOutside starts one of the programs of Kubernetes on the machine that is no node.
func (l *lab) startOutside(program string, args ...string) (*process, error) {
	return l.start(program, in(l.net.outside, append([]string{filepath.Join(programDir(), program)}, args...)...))
}

func (l *lab) kubeconfig() string { return filepath.Join(l.dir, "certificates", "admin.conf") }

// env is the environment of all that is run: an operator's, with no files but the lab's.
func (l *lab) env() []string {
	return append(os.Environ(), "PATH="+programDir()+":"+tools()+":"+os.Getenv("PATH"), "KUBECONFIG="+l.kubeconfig(), "HOME="+l.dir, "KUBE_EDITOR=bash "+filepath.Join(l.dir, "editor"))
}

// shell is an operator's: a line of it is run on the machine beside the nodes.
func (l *lab) shell(ctx context.Context, line string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, 8*time.Minute)
	defer cancel()
	args := in(l.net.outside, "bash", "-euo", "pipefail", "-c", line)
	cmd := exec.CommandContext(ctx, args[0], args[1:]...)
	cmd.Env = l.env()
	out, err := cmd.CombinedOutput()
	if err != nil {
		return string(out), fmt.Errorf("%s: %w: %s", line, err, out)
	}
	return string(out), nil
}

// quiet runs a line of which only the end matters.
func (l *lab) quiet(ctx context.Context, line string) error {
	_, err := l.shell(ctx, line)
	return err
}

// do runs a line, and shows it and what it prints.
func (l *lab) do(ctx context.Context, line string) (string, error) {
	fmt.Println("$", line)
	out, err := l.shell(ctx, line)
	show(out)
	return out, err
}

// show shows what was printed, but for what says that there is nothing to say yet, and for
// the chart's notes: change does what they say.
func show(out string) {
	for s := range strings.Lines(out) {
		s = strings.TrimRight(s, "\n")
		if s == "NOTES:" {
			return
		}
		if s != "" && !strings.HasPrefix(s, "Waiting for daemon set") {
			fmt.Println("  ", s)
		}
	}
}

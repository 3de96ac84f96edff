package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
)

// sources are the programs that are built from modules, and where. They are built one after
// the other, for they share most of their packages.
var sources = []struct{ name, module, pkg string }{
	{"etcd", "programs", "go.etcd.io/etcd/server/v3"},
	{"kube-apiserver", "programs", "k8s.io/kubernetes/cmd/kube-apiserver"},
	{"kubectl", "programs", "k8s.io/kubernetes/cmd/kubectl"},
	{"kubelet", "programs", "k8s.io/kubernetes/cmd/kubelet"},
	{"kube-controller-manager", "programs", "k8s.io/kubernetes/cmd/kube-controller-manager"},
	{"kube-scheduler", "programs", "k8s.io/kubernetes/cmd/kube-scheduler"},
	{"coredns", "coredns", "."},
}

// tools is where simtest/e2e/install.sh has put programs.
func tools() string { return os.Getenv("GRANARY_TOOLS") }

func programDir() string { return filepath.Join(tools(), "kubernetes") }

// buildPrograms builds the programs that are not there, or are of another version.
func buildPrograms(ctx context.Context) error {
	for _, s := range sources {
		mod, err := os.ReadFile(filepath.Join("simtest/kubernetes", s.module, "go.mod"))
		if err != nil {
			return fmt.Errorf("%w: run this in the root of the repository", err)
		}
		version := regexp.MustCompile(`(?m)k8s\.io/kubernetes (v1\.(\d+)\S+)`).FindSubmatch(mod)
		to, stamp := filepath.Join(programDir(), s.name), filepath.Join(programDir(), "."+s.name)
		if is, err := os.ReadFile(stamp); err == nil && string(is) == string(mod) {
			continue
		}
		flags := "-s -w"
		if version != nil { // what the programs say that they are, and Helm asks for
			const is = " -X k8s.io/component-base/version."
			flags += fmt.Sprintf("%sgitVersion=%s%sgitMajor=1%sgitMinor=%s", is, version[1], is, is, version[2])
		}
		fmt.Println("go build", s.pkg)
		build := exec.CommandContext(ctx, "nice", "-n", "19", "go", "build", "-trimpath", "-ldflags", flags, "-o", to, s.pkg)
		build.Dir = filepath.Join("simtest/kubernetes", s.module)
		build.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := build.CombinedOutput(); err != nil {
			return fmt.Errorf("build of %s: %w\n%s", s.name, err, out)
		}
		if err := os.WriteFile(stamp, mod, 0o644); err != nil {
			return err
		}
	}
	return nil
}

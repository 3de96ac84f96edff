package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/granary-oci/granary/simtest/programs"
)

// configured runs a test of a runtime that 'granary configure' has told of a node, in a
// file system of its own with files of a user's. The registry resolves nowhere, so that
// what is pulled came from the node. At the end all is as it was, byte for byte.
func configured(t *testing.T, runtime string, files map[string]string, args []string, test func(t *testing.T, n *node, root string)) {
	t.Helper()
	n := startNode(t, startRegistry(t).URL)
	configuredFor(t, n, runtime, files, args, func(t *testing.T, root string) { test(t, n, root) })
}

// configuredFor is configured with a node that runs already, and returns the file system.
func configuredFor(t *testing.T, n *node, runtime string, files map[string]string, args []string, test func(t *testing.T, root string)) string {
	t.Helper()
	root := t.TempDir()
	for name, text := range files {
		programs.Write(t, root, name, text)
	}
	before := tree(t, root)
	call := append([]string{"configure", runtime, "--root", root, "--mirror", n.url}, args...)
	diff := programs.Run(t, nil, granaryBinary, append(call, "--dry-run")...)
	if !strings.Contains(diff, "+++ /etc/") || tree(t, root) != before {
		t.Errorf("the dry run printed %s", diff)
	}
	programs.Run(t, nil, granaryBinary, call...)
	once := tree(t, root)
	programs.Run(t, nil, granaryBinary, call...)
	if now := tree(t, root); now != once {
		t.Errorf("the second time it changed\n%s\nto\n%s", once, now)
	}
	test(t, root)
	if moved := n.metric(t, "granary_bytes_total"); moved < image.Size()/2 {
		t.Errorf("%d bytes went through the node, of an image of %d", moved, image.Size())
	}
	programs.Run(t, nil, granaryBinary, "configure", runtime, "--root", root, "--undo")
	if now := tree(t, root); now != before {
		t.Errorf("after the undo there is\n%s\nand there was\n%s", now, before)
	}
	return root
}

// tree is all that is in a directory, as text.
func tree(t *testing.T, root string) string {
	t.Helper()
	var text strings.Builder
	err := filepath.Walk(root, func(path string, info os.FileInfo, err error) error {
		if err != nil {
			return err
		}
		fmt.Fprintln(&text, strings.TrimPrefix(path, root), info.Mode())
		if info.Mode().IsRegular() {
			p, err := os.ReadFile(path)
			fmt.Fprintf(&text, "%s", p)
			return err
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return text.String()
}

// deadMirror is a mirror of a user's that does not answer: a runtime goes on to the next.
const deadMirror = "http://127.0.0.1:1"

const hostsOfUser = "# by hand\nserver = \"https://" + upstreamName + "\"\n\n[host.\"" + deadMirror + "\"]\n  capabilities = [\"pull\", \"resolve\"]\n"

func TestConfiguredContainerd16(t *testing.T) {
	programs.NeedRoot(t)
	daemon, ctr := programs.OfSystem(t, "containerd"), programs.OfSystem(t, "ctr")
	files := map[string]string{
		"etc/containerd/config.toml":                   "version = 2\n[plugins.\"io.containerd.grpc.v1.cri\".registry]\n  config_path = \"/etc/containerd/certs.d\"\n",
		"etc/containerd/certs.d/_default/hosts.toml":   hostsOfUser,
		"etc/containerd/certs.d/other.test/hosts.toml": "server = \"https://other.test\"\n",
	}
	configured(t, "containerd", files, nil, func(t *testing.T, _ *node, root string) {
		c := startContainerd(t, daemon, ctr, containerdConfig16)
		c.run(t, "image", "pull", "--hosts-dir", filepath.Join(root, "etc/containerd/certs.d"), "--snapshotter", "overlayfs", upstreamName+"/go:multi")
		checkBlobs(t, c.blob)
	})
}

// machine returns a program that sees a directory of /etc as it is below a root, as on the
// machine that the root is of.
func machine(t *testing.T, root, dir, program string) string {
	t.Helper()
	script := fmt.Sprintf("#!/bin/sh\nexec unshare --mount sh -c 'mount --bind %[1]s%[2]s %[2]s && exec %[3]s \"$@\"' - \"$@\"\n", root, dir, program)
	path := programs.Write(t, t.TempDir(), "machine", script)
	if err := os.Chmod(path, 0o755); err != nil {
		t.Fatal(err)
	}
	return path
}

// TestConfiguredContainerd24 pulls as a kubelet does: containerd finds hosts.toml by its
// own config.toml.
func TestConfiguredContainerd24(t *testing.T) {
	programs.NeedRoot(t)
	daemon, ctr, cri := programs.Tool(t, "containerd"), programs.Tool(t, "ctr"), programs.Tool(t, "cri")
	config := strings.ReplaceAll(containerdConfigCRI, "HOSTS", "/etc/containerd/certs.d")
	files := map[string]string{"etc/containerd/certs.d/" + upstreamName + "/hosts.toml": hostsOfUser, "etc/containerd/config.toml": config}
	configured(t, "containerd", files, []string{"--registry", upstreamName, "--prepend"}, func(t *testing.T, n *node, root string) {
		hosts, err := os.ReadFile(filepath.Join(root, "etc/containerd/certs.d", upstreamName, "hosts.toml"))
		if first := strings.Index(string(hosts), n.url); err != nil || first < 0 || first > strings.Index(string(hosts), deadMirror) {
			t.Errorf("the node is not the first mirror: %v\n%s", err, hosts)
		}
		c := startContainerd(t, machine(t, root, "/etc/containerd", daemon), ctr, config)
		programs.Run(t, nil, cri, c.socket, upstreamName+"/go:v1")
		checkBlobs(t, c.blob)
	})
}

func TestConfiguredPodman(t *testing.T) {
	programs.NeedRoot(t)
	podman := programs.OfSystem(t, "podman")
	policy, err := os.ReadFile("/etc/containers/policy.json")
	if err != nil {
		programs.Missing(t, err.Error())
	}
	files := map[string]string{
		"etc/containers/policy.json":                    string(policy),
		"etc/containers/registries.conf":                "# by hand\nunqualified-search-registries = [\"docker.io\"]\n",
		"etc/containers/registries.conf.d/10-corp.conf": fmt.Sprintf("[[registry]]\nprefix = %[1]q\nlocation = %[1]q # the registry\n\n[[registry.mirror]]\nlocation = \"127.0.0.1:1\"\ninsecure = true", upstreamName),
	}
	configured(t, "podman", files, []string{"--registry", upstreamName, "--registry", "docker.io"}, func(t *testing.T, _ *node, root string) {
		dir := t.TempDir()
		podman := machine(t, root, "/etc/containers", podman)
		base := []string{"--root", filepath.Join(dir, "root"), "--runroot", filepath.Join(dir, "run"), "--storage-driver", "vfs"}
		for _, ref := range []string{upstreamName + "/go:v1", "docker.io/library/go:v1"} { // in a file of the user's, and in granary.conf
			programs.Run(t, nil, podman, append(base, "pull", ref)...)
			got := programs.Run(t, nil, podman, append(base, "image", "inspect", "--format", "{{.Digest}}", ref)...)
			if strings.TrimSpace(got) != string(image.Manifest.Digest) {
				t.Errorf("podman has %s", got)
			}
		}
	})
}

func TestConfiguredDocker(t *testing.T) {
	files := map[string]string{"etc/docker/daemon.json": "{\n\t\"log-level\": \"warn\",\n\t\"max-concurrent-downloads\": 2, \"live-restore\": false\n}"}
	configured(t, "docker", files, nil, func(t *testing.T, _ *node, root string) {
		docker := startDocker(t, "--config-file", filepath.Join(root, "etc/docker/daemon.json"))
		docker("pull", "go:old")
		if got := docker("image", "inspect", "--format", "{{.Id}}", "go:old"); strings.TrimSpace(got) != string(digest.FromBytes(oldConfig)) {
			t.Errorf("docker has %s", got)
		}
	})
}

package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/granary-oci/granary/simtest/programs"
)

// pullThrice pulls the image through a node with a client: cold, warm, and with
// the registry dead. pull pulls it into an empty store of its own and checks
// what it got; the node tells where the bytes came from.
func pullThrice(t *testing.T, pull func(t *testing.T, n *node)) {
	t.Helper()
	r := startRegistry(t)
	n := startNode(t, r.URL)
	t.Run("cold", func(t *testing.T) { pull(t, n) })
	if t.Failed() {
		return
	}
	moved := n.metric(t, "granary_upstream_bytes_total")
	if size := image.Size(); moved > size*21/20 {
		t.Errorf("%d bytes came from the registry for an image of %d", moved, size)
	}
	t.Run("warm", func(t *testing.T) { pull(t, n) })
	if again := n.metric(t, "granary_upstream_bytes_total") - moved; again > 64<<10 {
		t.Errorf("the warm pull moved %d bytes from the registry", again)
	}
	if err := r.End(syscall.SIGKILL); err == nil {
		t.Error("the registry was not killed")
	}
	t.Run("registry dead", func(t *testing.T) { pull(t, n) })
}

// hostsDir is containerd's configuration of a mirror for all registries.
func hostsDir(t *testing.T, n *node) string {
	t.Helper()
	dir := t.TempDir()
	programs.Write(t, dir, "_default/hosts.toml", fmt.Sprintf("[host.%q]\n  capabilities = [\"pull\", \"resolve\"]\n", n.url))
	return dir
}

// containerd is one with an empty store.
type containerd struct {
	ctr    string
	socket string
	root   string
}

func startContainerd(t *testing.T, daemon, ctr, config string) *containerd {
	t.Helper()
	dir := programs.ShortDir(t)
	c := &containerd{ctr: ctr, socket: filepath.Join(dir, "sock"), root: filepath.Join(dir, "root")}
	file := programs.Write(t, dir, "config.toml", strings.NewReplacer("DIR", dir).Replace(config))
	programs.Start(t, daemon, "-c", file)
	programs.Eventually(t, "containerd answers", func() bool {
		_, err := programs.TryRun(t, nil, c.ctr, "-a", c.socket, "version")
		return err == nil
	})
	return c
}

func (c *containerd) run(t *testing.T, args ...string) string {
	t.Helper()
	return programs.Run(t, nil, c.ctr, append([]string{"-a", c.socket}, args...)...)
}

func (c *containerd) blob(d digest.Digest) string {
	return filepath.Join(c.root, "io.containerd.content.v1.content/blobs/sha256", d.Encoded())
}

const containerdConfig16 = `version = 2
root = "DIR/root"
state = "DIR/state"
disabled_plugins = ["io.containerd.grpc.v1.cri"]
[grpc]
  address = "DIR/sock"
`

func TestContainerd16(t *testing.T) {
	programs.NeedRoot(t)
	daemon, ctr := programs.OfSystem(t, "containerd"), programs.OfSystem(t, "ctr")
	programs.OfSystem(t, "runc")
	pullThrice(t, func(t *testing.T, n *node) {
		c := startContainerd(t, daemon, ctr, containerdConfig16)
		ref := upstreamName + "/go:multi"
		c.run(t, "image", "pull", "--hosts-dir", hostsDir(t, n), "--snapshotter", "overlayfs", ref)
		if list := c.run(t, "image", "ls"); !strings.Contains(list, string(index.Digest)) {
			t.Errorf("the image is not the index that was pushed:\n%s", list)
		}
		checkBlobs(t, c.blob)
		out := c.run(t, "run", "--rm", "--snapshotter", "overlayfs", ref, "e2e")
		if !strings.HasPrefix(out, "go version go") {
			t.Errorf("the container printed %q", out)
		}
	})
}

const containerdConfig24 = `version = 3
root = "DIR/root"
state = "DIR/state"
disabled_plugins = ["io.containerd.cri.v1.images", "io.containerd.cri.v1.runtime", "io.containerd.grpc.v1.cri"]
[grpc]
  address = "DIR/sock"
[plugins."io.containerd.transfer.v1.local"]
  config_path = "HOSTS"
TRANSFER
  [[plugins."io.containerd.transfer.v1.local".unpack_config]]
    platform = "linux"
    snapshotter = "overlayfs"
    differ = "walking"
`

func TestContainerd24(t *testing.T) {
	programs.NeedRoot(t)
	daemon, ctr := programs.Tool(t, "containerd"), programs.Tool(t, "ctr")
	for _, c := range []struct {
		name, transfer string
		args           []string
	}{
		{"transfer service", "", nil},
		{"parallel layer fetch", "  max_concurrent_downloads = 4\n  concurrent_layer_fetch_buffer = 4194304\n", nil},
		{"local", "", []string{"--local", "--snapshotter", "overlayfs"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			pullThrice(t, func(t *testing.T, n *node) {
				hosts := hostsDir(t, n)
				config := strings.NewReplacer("HOSTS", hosts, "TRANSFER\n", c.transfer).Replace(containerdConfig24)
				d := startContainerd(t, daemon, ctr, config)
				args := append([]string{"image", "pull", "--hosts-dir", hosts}, c.args...)
				d.run(t, append(args, upstreamName+"/go:multi")...)
				checkBlobs(t, d.blob)
			})
		})
	}
}

// mirrorConf is the configuration of containers/image for a mirror, which must
// name the registry in its path.
func mirrorConf(t *testing.T, n *node) string {
	t.Helper()
	return programs.Write(t, t.TempDir(), "registries.conf", fmt.Sprintf(`[[registry]]
prefix = %[1]q
location = %[1]q
[[registry.mirror]]
location = "%[2]s/%[1]s"
insecure = true
`, upstreamName, n.address))
}

func TestPodman(t *testing.T) {
	programs.NeedRoot(t)
	podman := programs.OfSystem(t, "podman")
	pullThrice(t, func(t *testing.T, n *node) {
		dir := t.TempDir()
		env := []string{"CONTAINERS_REGISTRIES_CONF=" + mirrorConf(t, n)}
		base := []string{"--root", filepath.Join(dir, "root"), "--runroot", filepath.Join(dir, "run"), "--storage-driver", "vfs"}
		ref := upstreamName + "/go:v1"
		programs.Run(t, env, podman, append(base, "pull", ref)...)
		got := programs.Run(t, env, podman, append(base, "image", "inspect", "--format", "{{.Digest}} {{.Id}}", ref)...)
		want := fmt.Sprintf("%s %s", image.Manifest.Digest, image.Config.Digest.Encoded())
		if strings.TrimSpace(got) != want {
			t.Errorf("podman has %q, want %q", got, want)
		}
	})
}

func TestSkopeo(t *testing.T) {
	t.Parallel()
	skopeo := programs.OfSystem(t, "skopeo")
	pullThrice(t, func(t *testing.T, n *node) {
		dir := t.TempDir()
		programs.Run(t, nil, skopeo, "--registries-conf", mirrorConf(t, n), "copy", "--preserve-digests",
			"docker://"+upstreamName+"/go:v1", "oci:"+dir+":v1")
		checkBlobs(t, func(d digest.Digest) string { return filepath.Join(dir, "blobs/sha256", d.Encoded()) })
		plain := filepath.Join(dir, "plain")
		programs.Run(t, nil, skopeo, "copy", "--src-tls-verify=false", "docker://"+n.address+"/go:v1", "dir:"+plain)
		checkFile(t, filepath.Join(plain, image.Layers[0].Digest.Encoded()), image.Layers[0].Digest)
	})
}

func TestContainersImage(t *testing.T) {
	t.Parallel()
	cimage := programs.Tool(t, "cimage")
	pullThrice(t, func(t *testing.T, n *node) {
		dir := t.TempDir()
		programs.Run(t, nil, cimage, mirrorConf(t, n), "docker://"+upstreamName+"/go:v1", "oci:"+dir+":v1")
		checkBlobs(t, func(d digest.Digest) string { return filepath.Join(dir, "blobs/sha256", d.Encoded()) })
	})
}

func TestCrane(t *testing.T) {
	t.Parallel()
	crane := programs.Tool(t, "crane")
	pullThrice(t, func(t *testing.T, n *node) {
		for _, ref := range []string{n.address + "/" + upstreamName + "/go:multi", n.address + "/go:multi"} {
			if got := programs.Run(t, nil, crane, "digest", ref); strings.TrimSpace(got) != string(index.Digest) {
				t.Errorf("crane digest %s: %s, want %s", ref, got, index.Digest)
			}
			if got := programs.Run(t, nil, crane, "manifest", ref); got != string(indexBytes) {
				t.Errorf("crane manifest %s: %s, want %s", ref, got, indexBytes)
			}
		}
		dir := t.TempDir()
		programs.Run(t, nil, crane, "pull", "--format", "oci", n.address+"/"+upstreamName+"/go:v1", dir)
		checkBlobs(t, func(d digest.Digest) string { return filepath.Join(dir, "blobs/sha256", d.Encoded()) })
		programs.Run(t, nil, crane, "validate", "--fast", "--remote", n.address+"/"+upstreamName+"/go:v1")
	})
}

// startDocker starts a Docker with an empty store, which is given a command by what is returned.
func startDocker(t *testing.T, args ...string) func(command ...string) string {
	t.Helper()
	programs.NeedRoot(t)
	dockerd, docker := programs.OfSystem(t, "dockerd"), programs.OfSystem(t, "docker")
	dir := programs.ShortDir(t)
	socket := "unix://" + dir + "/sock"
	programs.Start(t, dockerd, append([]string{"--bridge=none", "--iptables=false", "--ip-masq=false", "--storage-driver=vfs",
		"--data-root", dir + "/data", "--exec-root", dir + "/exec", "--pidfile", dir + "/pid", "-H", socket}, args...)...)
	programs.Eventually(t, "dockerd answers", func() bool { _, err := programs.TryRun(t, nil, docker, "-H", socket, "version"); return err == nil })
	return func(command ...string) string {
		t.Helper()
		return programs.Run(t, nil, docker, append([]string{"-H", socket}, command...)...)
	}
}

func TestDocker(t *testing.T) {
	pullThrice(t, func(t *testing.T, n *node) {
		docker := startDocker(t, "--registry-mirror", n.url)
		docker("pull", "go:old")
		got := docker("image", "inspect", "--format", "{{.Id}} {{index .RepoDigests 0}}", "go:old")
		want := fmt.Sprintf("%s go@%s", digest.FromBytes(oldConfig), digest.FromBytes(oldManifest))
		if strings.TrimSpace(got) != want {
			t.Errorf("docker has %q, want %q", got, want)
		}
	})
}

func TestHelm(t *testing.T) {
	t.Parallel()
	helm := programs.Tool(t, "helm")
	dir := t.TempDir()
	programs.Run(t, nil, helm, "create", filepath.Join(dir, "chart"))
	programs.Run(t, nil, helm, "package", filepath.Join(dir, "chart"), "-d", dir)
	r := startRegistry(t)
	programs.Run(t, nil, helm, "push", "--plain-http", filepath.Join(dir, "chart-0.1.0.tgz"), "oci://"+strings.TrimPrefix(r.URL, "http://")+"/charts")
	want, err := os.ReadFile(filepath.Join(dir, "chart-0.1.0.tgz"))
	if err != nil {
		t.Fatal(err)
	}
	n := startNode(t, r.URL)
	for _, state := range []string{"cold", "warm", "dead"} {
		if state == "dead" {
			_ = r.End(syscall.SIGKILL)
		}
		out := t.TempDir()
		programs.Run(t, nil, helm, "pull", "--plain-http", "oci://"+n.address+"/"+upstreamName+"/charts/chart", "--version", "0.1.0", "-d", out)
		got, err := os.ReadFile(filepath.Join(out, "chart-0.1.0.tgz"))
		if err != nil || string(got) != string(want) {
			t.Errorf("%s: the chart is not the one that was pushed: %v", state, err)
		}
	}
}

// TestPull holds granary pull, through a node and with one of its own.
func TestPull(t *testing.T) {
	t.Parallel()
	pullThrice(t, func(t *testing.T, n *node) {
		dir := t.TempDir()
		out := programs.Run(t, nil, granaryBinary, "pull", "--node", n.admin, upstreamName+"/go:multi", "-o", "oci:"+dir)
		if !strings.Contains(out, string(index.Digest)) {
			t.Errorf("granary pull printed %s", out)
		}
		checkBlobs(t, func(d digest.Digest) string { return filepath.Join(dir, "blobs/sha256", d.Encoded()) })
	})
	r := startRegistry(t)
	dir, data := t.TempDir(), t.TempDir()
	args := []string{"pull", "--node", "http://" + programs.FreeAddress(t), "--data-dir", data, "--upstream", upstreamName + "=" + r.URL, upstreamName + "/go:v1", "-o", "oci:" + dir}
	programs.Run(t, nil, granaryBinary, args...)
	checkBlobs(t, func(d digest.Digest) string { return filepath.Join(dir, "blobs/sha256", d.Encoded()) })
}

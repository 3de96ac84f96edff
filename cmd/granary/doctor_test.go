package main

import (
	"encoding/json"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/granary-oci/granary/cmd/granary/doctor"
	"github.com/granary-oci/granary/cmd/granary/node"
)

// examine runs granary doctor, and returns what it found.
func examine(t *testing.T, args ...string) (status int, r doctor.Report) {
	t.Helper()
	args = append([]string{"doctor", "--json"}, args...)
	status, out, errs := granary(t, args...)
	if err := json.Unmarshal([]byte(out), &r); err != nil {
		t.Fatalf("%v: %s%s", err, out, errs)
	}
	if want := map[bool]int{true: 1}[r.Severity == doctor.Error]; status != want {
		t.Errorf("the exit status is %d, and the worst is %s", status, r.Severity)
	}
	for _, f := range r.Findings {
		if f.Cause == "" || f.Severity != doctor.OK && f.Severity != doctor.Note && f.Remedy == "" {
			t.Errorf("no cause or no remedy: %+v", f)
		}
	}
	return status, r
}

// found returns the worst finding of a check whose cause has a text.
func found(r doctor.Report, check, text string) doctor.Severity {
	for _, s := range []doctor.Severity{doctor.Error, doctor.Warning, doctor.Note, doctor.OK} {
		for _, f := range r.Findings {
			if f.Check == check && f.Severity == s && strings.Contains(f.Cause, text) {
				return s
			}
		}
	}
	return ""
}

// idle are the settings of a node that does not run, on ports that are free.
func idle(t *testing.T, upstream string) []string {
	return []string{
		"--node", "http://127.0.0.1:1", "--data-dir", filepath.Join(t.TempDir(), "data"), "--cache-size", "1MiB", "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0",
		"--upstream", "registry.test=" + upstream, "--default-upstream", "registry.test", "--root", t.TempDir(),
	}
}

func TestDoctorFindsNothingWrong(t *testing.T) {
	registry := newSmallRegistry(t)
	n := testNode(t, node.Config{DataConfig: node.DataConfig{Upstream: map[string]string{"registry.test": registry.URL}, CacheSize: 1 << 20}})
	root := t.TempDir()
	if err := os.MkdirAll(filepath.Join(root, "etc/docker"), 0o755); err != nil {
		t.Fatal(err)
	}
	if status, _, errs := granary(t, "configure", "docker", "--root", root, "--mirror", n.URLs()[0]); status != 0 {
		t.Fatal(errs)
	}
	status, r := examine(t, "--node", n.AdminURL(), "--root", root, "--image", "registry.test/app:v1")
	if status != 0 || r.Node != n.AdminURL() || r.Version != doctor.Version {
		t.Errorf("%d: %+v", status, r)
	}
	for _, check := range []string{"node", "runtime", "disk", "upstream", "clock", "pull"} {
		if found(r, check, "") != doctor.OK {
			t.Errorf("%s: %+v", check, r.Findings)
		}
	}
	chunks := layerSize>>20 + 1
	if p := r.Pull; p == nil || p.Bytes != layerSize || p.Sources()["upstream"] != chunks || len(p.Sources()) != 1 {
		t.Errorf("the first pull: %+v", r.Pull)
	}
	_, r = examine(t, "--node", n.AdminURL(), "--root", root) // the image that the node knows
	if p := r.Pull; p == nil || p.Image != "registry.test/app:v1" || p.Sources()["memory"]+p.Sources()["disk"] != chunks {
		t.Errorf("the second pull: %+v", r.Pull)
	}
	if status, out, _ := granary(t, "doctor", "--node", n.AdminURL(), "--root", root); status != 0 || !strings.Contains(out, string(registry.layer)) || !strings.Contains(out, "ok       upstream registry.test: ") {
		t.Errorf("%d: %s", status, out)
	}
}

func TestDoctorWithoutANode(t *testing.T) {
	registry := newSmallRegistry(t)
	args := idle(t, registry.URL)
	status, r := examine(t, args...)
	if status != 0 || r.Node != "" || found(r, "node", "no node answers") != doctor.Warning || found(r, "upstream", "") != doctor.OK || found(r, "ports", "free") != doctor.OK {
		t.Errorf("%d: %+v", status, r)
	}
	_, r = examine(t, append(args, "--image", "registry.test/app:v1")...)
	if r.Pull == nil || r.Pull.Sources()["upstream"] == 0 {
		t.Errorf("%+v", r)
	}
}

func TestDoctorFindsADeadUpstream(t *testing.T) {
	n := testNode(t, node.Config{DataConfig: node.DataConfig{Upstream: map[string]string{"registry.test": "http://127.0.0.1:1"}}})
	for name, args := range map[string][]string{"a node": {"--node", n.AdminURL(), "--root", t.TempDir()}, "none": idle(t, "http://127.0.0.1:1")} {
		_, r := examine(t, append(args, "--image", "registry.test/app:v1")...)
		if found(r, "upstream", "refused") != doctor.Error || found(r, "pull", "") != doctor.Error || r.Pull != nil {
			t.Errorf("%s: %+v", name, r)
		}
	}
	live := newSmallRegistry(t)
	_, r := examine(t, idle(t, "http://127.0.0.1:1,"+live.URL)...)
	if found(r, "upstream", "refused") != doctor.Warning || found(r, "upstream", live.URL) != doctor.OK {
		t.Errorf("one place of two: %+v", r)
	}
	_, r = examine(t, idle(t, "oci:/none/such")...)
	if found(r, "upstream", "no such file") != doctor.Error {
		t.Errorf("no layout: %+v", r)
	}
}

func TestDoctorFindsASkewedClock(t *testing.T) {
	for ahead, want := range map[time.Duration]doctor.Severity{time.Hour: doctor.Error, -time.Minute: doctor.Warning, 5 * time.Second: doctor.OK} {
		upstream := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Date", time.Now().Add(ahead).UTC().Format(http.TimeFormat))
		}))
		t.Cleanup(upstream.Close)
		if _, r := examine(t, idle(t, upstream.URL)...); found(r, "clock", "") != want {
			t.Errorf("%s: %+v", ahead, r.Findings)
		}
	}
}

func TestDoctorFindsADirectoryThatCannotBeUsed(t *testing.T) {
	registry := newSmallRegistry(t)
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	_, r := examine(t, append(idle(t, registry.URL), "--data-dir", filepath.Join(file, "below"))...)
	if found(r, "disk", "cannot be made") != doctor.Error {
		t.Errorf("below a file: %+v", r.Findings)
	}
	_, r = examine(t, append(idle(t, registry.URL), "--data-dir", t.TempDir(), "--cache-size", "1024TiB")...)
	if found(r, "disk", "may grow by") != doctor.Warning {
		t.Errorf("a budget that does not fit: %+v", r.Findings)
	}
	n := testNode(t, node.Config{DataConfig: node.DataConfig{DataDir: filepath.Join(file, "below"), Upstream: map[string]string{"registry.test": registry.URL}}})
	if _, r := examine(t, "--node", n.AdminURL(), "--root", t.TempDir()); found(r, "node", "nothing is kept") != doctor.Error {
		t.Errorf("a degraded node: %+v", r.Findings)
	}
}

func TestDoctorFindsAFullAndAReadOnlyFileSystem(t *testing.T) {
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=128k"); err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatal(err)
		}
		t.Skipf("MISSING: mount a tmpfs: %v", err)
	}
	t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
	args := append(idle(t, newSmallRegistry(t).URL), "--data-dir", dir)
	_, r := examine(t, args...)
	if found(r, "disk", "cannot be written to") != doctor.Error || found(r, "disk", "full") != doctor.Error || found(r, "disk", "in memory") != doctor.Warning {
		t.Errorf("full: %+v", r.Findings)
	}
	if err := unix.Mount("", dir, "", unix.MS_REMOUNT, "size=3g,nr_inodes=99"); err != nil {
		t.Fatal(err)
	}
	if _, r = examine(t, args...); found(r, "disk", "inodes left") != doctor.Warning || found(r, "disk", "full") != "" {
		t.Errorf("few inodes: %+v", r.Findings)
	}
	if err := unix.Mount("", dir, "", unix.MS_REMOUNT|unix.MS_RDONLY, "size=128k"); err != nil {
		t.Fatal(err)
	}
	if _, r = examine(t, args...); found(r, "disk", "read-only") != doctor.Error {
		t.Errorf("read-only: %+v", r.Findings)
	}
}

func TestDoctorFindsAPortInUseAndASecretThatIsNotThere(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	args := append(idle(t, newSmallRegistry(t).URL), "--insecure-cluster", "--p2p-listen", "/ip4/127.0.0.1/tcp/0", "--gossip-listen", l.Addr().String(), "--join", "127.0.0.1:1")
	_, r := examine(t, args...)
	_, unread := examine(t, append(idle(t, newSmallRegistry(t).URL), "--cluster-secret-file", "/none/such", "--p2p-listen", "/ip4/127.0.0.1/tcp/0", "--gossip-listen", "127.0.0.1:0")...)
	if found(unread, "cluster", "secret cannot be used") != doctor.Error {
		t.Errorf("%+v", unread.Findings)
	}
	if found(r, "ports", "could not listen") != doctor.Error || found(r, "cluster", "cannot be joined") != doctor.Error {
		t.Errorf("%+v", r.Findings)
	}
}

// member starts a member of a cluster with a secret, which joins others.
func member(t *testing.T, secret, upstream string, change func(*node.ClusterConfig), join ...string) *node.Node {
	t.Helper()
	file := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(file, []byte(secret), 0o600); err != nil {
		t.Fatal(err)
	}
	cfg := node.Config{
		DataConfig:    node.DataConfig{Upstream: map[string]string{"registry.test": upstream}},
		ClusterConfig: node.ClusterConfig{P2PListen: []string{"/ip4/127.0.0.1/tcp/0"}, GossipListen: "127.0.0.1:0", ClusterSecretFile: file, Join: join, Weight: 10},
	}
	change(&cfg.ClusterConfig)
	return testNode(t, cfg)
}

func asIs(*node.ClusterConfig) {}

func TestDoctorFindsAnotherSecret(t *testing.T) {
	registry := newSmallRegistry(t)
	a := member(t, "the secret of the cluster", registry.URL, asIs)
	b := member(t, "the secret of another one", registry.URL, asIs, a.Status().Cluster.Gossip)
	for name, c := range map[string]struct {
		n    *node.Node
		text string
	}{"asked": {a, "cannot be decrypted"}, "asks": {b, "cannot be joined"}} {
		eventuallyFound(t, c.n, "cluster", c.text, doctor.Error)
		_, r := examine(t, "--node", c.n.AdminURL(), "--root", t.TempDir())
		for _, f := range r.Findings {
			if f.Check == "cluster" && f.Severity == doctor.Error && !strings.Contains(f.Remedy, "--cluster-secret-file") {
				t.Errorf("who %s: %+v", name, f)
			}
		}
	}
}

// eventuallyFound waits for a finding, for members learn of each other in their time.
func eventuallyFound(t *testing.T, n *node.Node, check, text string, want doctor.Severity) {
	t.Helper()
	root := t.TempDir()
	var r doctor.Report
	for range 100 {
		if _, r = examine(t, "--node", n.AdminURL(), "--root", root); found(r, check, text) == want {
			return
		}
		time.Sleep(100 * time.Millisecond)
	}
	t.Fatalf("never: %s: %s %q: %+v", want, check, text, r.Findings)
}

func TestDoctorFindsMembersAndTheirPorts(t *testing.T) {
	registry := newSmallRegistry(t)
	const secret = "the secret of the cluster"
	a := member(t, secret, registry.URL, asIs)
	member(t, secret, registry.URL, asIs, a.Status().Cluster.Gossip)
	eventuallyFound(t, a, "member", "its ports answer", doctor.OK)
	eventuallyFound(t, a, "cluster", "1 other members", doctor.OK)
	// Nothing listens at the address that this one gives others.
	member(t, secret, registry.URL, func(c *node.ClusterConfig) { c.Advertise = "127.77.0.1" }, a.Status().Cluster.Gossip)
	eventuallyFound(t, a, "member", "is not to be reached", doctor.Error)
	eventuallyFound(t, a, "member", "does not answer", doctor.Error)
}

func TestDoctorFindsARuntimeThatDoesNotReadItsMirrors(t *testing.T) {
	root := t.TempDir()
	config := filepath.Join(root, "etc/containerd/config.toml")
	if err := os.MkdirAll(filepath.Dir(config), 0o755); err != nil {
		t.Fatal(err)
	}
	text := "version = 3\n[plugins.\"io.containerd.cri.v1.images\".registry]\nconfig_path = \"/etc/containerd/certs.d:/etc/docker/certs.d\"\n"
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	args := append(idle(t, newSmallRegistry(t).URL), "--root", root, "--mirror", "http://127.0.0.1:5050")
	if _, r := examine(t, args...); found(r, "runtime", "not told of the mirror") != doctor.Warning {
		t.Errorf("before: %+v", r.Findings)
	}
	if status, _, errs := granary(t, "configure", "containerd", "--root", root); status != 0 || !strings.Contains(errs, "has 2 directories") {
		t.Errorf("%d: %s", status, errs)
	}
	if _, r := examine(t, args...); found(r, "runtime", "has 2 directories") != doctor.Error {
		t.Errorf("after: %+v", r.Findings)
	}
}

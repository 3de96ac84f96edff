package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"time"
)

// The two ends of the measured link.
const (
	registrySpace, nodeSpace     = "granary-bench-r", "granary-bench-n"
	registryAddress, nodeAddress = "10.207.0.1", "10.207.0.2"
)

// link measures cold pulls over a link of 1 Gbit/s between two namespaces: the
// registry in one, the node and its client in the other, and the same client
// without the node. The client is curl, for it must live in the namespace.
func (b *bench) link(ctx context.Context) error {
	if os.Geteuid() != 0 {
		fmt.Println("the 1 Gbit/s link is left out: it takes root to make one")
		return nil
	}
	defer b.cutLink()
	if err := b.layLink(ctx); err != nil {
		return err
	}
	registry, err := b.startRegistryIn(ctx)
	if err != nil {
		return err
	}
	node, err := b.start(ctx, "", inSpace(nodeSpace, b.granary, "serve", "--data-dir", b.folder("node"), "--listen", "127.0.0.1:5050", "--admin", "",
		"--upstream", host+"=http://"+registryAddress+":5000", "--default-upstream", host, "--log-level", "warn")...)
	if err != nil {
		return err
	}
	time.Sleep(time.Second)
	columns := []*column{{system: "direct", size: b.cold}, {system: "granary", size: b.cold}}
	for round := range min(b.runs, 5) {
		digest, err := b.pushIn(ctx, uint64(500+round))
		if err != nil {
			return err
		}
		for i, base := range []string{"http://" + registryAddress + ":5000", "http://127.0.0.1:5050"} {
			rate, err := b.curl(ctx, base+"/v2/bench/blobs/"+digest)
			if err != nil {
				return err
			}
			columns[i].rate = append(columns[i].rate, rate)
		}
	}
	node.stop()
	registry.stop()
	table(fmt.Sprintf("Cold blob of %d MiB over a link of 1 Gbit/s, one client", b.cold>>20), columns)
	return nil
}

func inSpace(space string, args ...string) []string {
	return append([]string{"ip", "netns", "exec", space}, args...)
}

// layLink makes the namespaces and shapes both directions, with a token bucket
// that is small beside what is measured.
func (b *bench) layLink(ctx context.Context) error {
	b.cutLink()
	for _, line := range []string{
		"ip netns add " + registrySpace,
		"ip netns add " + nodeSpace,
		"ip link add gr0 netns " + registrySpace + " type veth peer name gn0 netns " + nodeSpace,
		"ip -n " + registrySpace + " addr add " + registryAddress + "/24 dev gr0",
		"ip -n " + nodeSpace + " addr add " + nodeAddress + "/24 dev gn0",
		"ip -n " + registrySpace + " link set gr0 up",
		"ip -n " + nodeSpace + " link set gn0 up",
		"ip -n " + registrySpace + " link set lo up",
		"ip -n " + nodeSpace + " link set lo up",
		"tc -n " + registrySpace + " qdisc add dev gr0 root tbf rate 1gbit burst 256kb latency 20ms",
		"tc -n " + nodeSpace + " qdisc add dev gn0 root tbf rate 1gbit burst 256kb latency 20ms",
	} {
		args := strings.Fields(line)
		if out, err := exec.CommandContext(ctx, args[0], args[1:]...).CombinedOutput(); err != nil {
			return fmt.Errorf("%s: %w: %s", line, err, out)
		}
	}
	return nil
}

func (b *bench) cutLink() {
	for _, space := range []string{registrySpace, nodeSpace} {
		_ = exec.Command("ip", "netns", "del", space).Run()
	}
}

func (b *bench) startRegistryIn(ctx context.Context) (*process, error) {
	dir := b.folder("registry")
	file := dir + ".yml"
	config := fmt.Sprintf("version: 0.1\nlog: {level: error, accesslog: {disabled: true}}\nstorage:\n  filesystem: {rootdirectory: %s}\nhttp: {addr: 0.0.0.0:5000}\n", dir)
	if err := os.WriteFile(file, []byte(config), 0o600); err != nil {
		return nil, err
	}
	p, err := b.start(ctx, "", inSpace(registrySpace, "docker-registry", "serve", file)...)
	time.Sleep(time.Second)
	return p, err
}

// pushIn uploads a blob within the registry's namespace.
func (b *bench) pushIn(ctx context.Context, seed uint64) (digest string, err error) {
	p, digest := randomBlob(b.cold, seed)
	file := b.folder("push") + "/blob"
	if err := os.WriteFile(file, p, 0o600); err != nil {
		return "", err
	}
	defer os.Remove(file)
	script := `set -e
to=$(curl -fsS -X POST -D - -o /dev/null http://127.0.0.1:5000/v2/bench/blobs/uploads/ | tr -d '\r' | sed -n 's/^[Ll]ocation: //p')
case $to in *\?*) to="$to&digest=$1";; *) to="$to?digest=$1";; esac
curl -fsS -X PUT -H 'Content-Type: application/octet-stream' -T "$2" "$to"`
	out, err := exec.CommandContext(ctx, "ip", inSpace(registrySpace, "sh", "-c", script, "push", digest, file)[1:]...).CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("push: %w: %s", err, out)
	}
	return digest, nil
}

// curl fetches a URL within the node's namespace and returns the rate in MB/s.
func (b *bench) curl(ctx context.Context, url string) (float64, error) {
	begin := time.Now()
	out, err := exec.CommandContext(ctx, "ip", inSpace(nodeSpace, "curl", "-fsS", "-o", "/dev/null", "-w", "%{size_download}", url)[1:]...).CombinedOutput()
	took := time.Since(begin).Seconds()
	if err != nil || string(out) != fmt.Sprint(b.cold) {
		return 0, fmt.Errorf("%s: %s: %w", url, out, err)
	}
	return float64(b.cold) / 1e6 / took, nil
}

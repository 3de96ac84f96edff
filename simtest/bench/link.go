package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"time"

	"github.com/granary-oci/granary/simtest/figures"
	"github.com/granary-oci/granary/simtest/lines"
	"github.com/granary-oci/granary/simtest/netns"
)

// The two ends of the measured link.
const (
	registrySpace, nodeSpace     = "granary-bench-r", "granary-bench-n"
	registryAddress, nodeAddress = "10.207.0.1", "10.207.0.2"
)

// link measures cold pulls over a link of 1 Gbit/s between two namespaces: the
// registry in one, the node and its client in the other, and the same client
// without the node. The client is curl, for it must live in the namespace.
func (l *lab) link(ctx context.Context) error {
	size := of[int64](l.scale, 128<<20, 512<<20, 512<<20)
	rate := figures.Measurement{Name: "cold blob of " + sized(size) + " over 1 Gbit/s", Unit: "MB/s"}
	defer cutLink()
	if err := layLink(ctx); err != nil {
		return err
	}
	if err := l.startRegistryIn(ctx); err != nil {
		return err
	}
	if _, err := l.start(ctx, "", inSpace(nodeSpace, l.granary, "serve", "--data-dir", l.folder("node"), "--listen", "127.0.0.1:5050", "--admin", "",
		"--upstream", host+"=http://"+registryAddress+":5000", "--default-upstream", host, "--log-level", "warn")...); err != nil {
		return err
	}
	if err := netns.Pause(ctx, time.Second); err != nil {
		return err
	}
	l.into.Compare(rate, granary, direct)
	for round := range of(l.scale, 3, 5, 11) {
		digest, err := l.pushIn(ctx, size, uint64(500+round))
		if err != nil {
			return err
		}
		for _, s := range []system{{direct, nil, "http://" + registryAddress + ":5000"}, {granary, nil, "http://127.0.0.1:5050"}} {
			got, err := curl(ctx, s.url+"/v2/bench/blobs/"+digest, size)
			if err != nil {
				return err
			}
			l.into.Add(rate, s.name, got)
		}
	}
	return nil
}

func inSpace(space string, args ...string) []string {
	return append([]string{"ip", "netns", "exec", space}, args...)
}

// layLink makes the namespaces and shapes both directions, with a token bucket
// that is small beside what is measured.
func layLink(ctx context.Context) error {
	cutLink()
	return lines.Run(ctx,
		"ip netns add "+registrySpace,
		"ip netns add "+nodeSpace,
		"ip link add gr0 netns "+registrySpace+" type veth peer name gn0 netns "+nodeSpace,
		"ip -n "+registrySpace+" addr add "+registryAddress+"/24 dev gr0",
		"ip -n "+nodeSpace+" addr add "+nodeAddress+"/24 dev gn0",
		"ip -n "+registrySpace+" link set gr0 up",
		"ip -n "+nodeSpace+" link set gn0 up",
		"ip -n "+registrySpace+" link set lo up",
		"ip -n "+nodeSpace+" link set lo up",
		"tc -n "+registrySpace+" qdisc add dev gr0 root tbf rate 1gbit burst 256kb latency 20ms",
		"tc -n "+nodeSpace+" qdisc add dev gn0 root tbf rate 1gbit burst 256kb latency 20ms",
	)
}

func cutLink() {
	for _, space := range []string{registrySpace, nodeSpace} {
		_ = exec.Command("ip", "netns", "del", space).Run()
	}
}

func (l *lab) startRegistryIn(ctx context.Context) error {
	program, err := netns.Tool("docker-registry", "registry")
	if err != nil {
		return err
	}
	file, err := l.registryConfig("0.0.0.0:5000", "")
	if err != nil {
		return err
	}
	if _, err := l.start(ctx, "", inSpace(registrySpace, program, "serve", file)...); err != nil {
		return err
	}
	return netns.Pause(ctx, time.Second)
}

// pushIn uploads a blob within the registry's namespace.
func (l *lab) pushIn(ctx context.Context, size int64, seed uint64) (digest string, err error) {
	p, digest := randomBlob(size, seed)
	file := l.folder("push") + "/blob"
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

// curl fetches a URL of want bytes within the node's namespace and returns the rate in MB/s.
func curl(ctx context.Context, url string, want int64) (float64, error) {
	begin := time.Now()
	out, err := exec.CommandContext(ctx, "ip", inSpace(nodeSpace, "curl", "-fsS", "-o", "/dev/null", "-w", "%{size_download}", url)[1:]...).CombinedOutput()
	took := time.Since(begin).Seconds()
	if err == nil && string(out) != fmt.Sprint(want) {
		err = fmt.Errorf("want %d bytes", want)
	}
	if err != nil {
		return 0, fmt.Errorf("%s: %s: %w", url, out, err)
	}
	return float64(want) / 1e6 / took, nil
}

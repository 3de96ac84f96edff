package site

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/p2p/protocol/holepunch"
	ma "github.com/multiformats/go-multiaddr"
)

// Environment of the processes that TestSitesBehindNATReachEachOther consists of.
const (
	roleEnv = "SITE_TEST_ROLE"
	dirEnv  = "SITE_TEST_DIR" // where they tell each other who they are
)

// nats has a hub at 45.0.0.1 and two sites behind NATs at 45.0.0.2 and 45.0.0.3, which
// let in what answers alone. All of it is in namespaces that end with the script; the
// addresses are public ones because libp2p punches no holes to others.
const nats = `
mount -t tmpfs tmpfs /run
ip link add wire type bridge
ip link set wire up
for n in 1 2 3; do
	ip netns add out$n
	ip link add eth0 netns out$n type veth peer name port$n
	ip link set port$n master wire up
	ip -n out$n addr add 45.0.0.$n/24 dev eth0
	ip -n out$n link set eth0 up
	ip -n out$n link set lo up
done
for n in 2 3; do
	ip netns add in$n
	ip link add eth1 netns out$n type veth peer name eth0 netns in$n
	ip -n out$n addr add 10.0.$n.1/24 dev eth1
	ip -n out$n link set eth1 up
	ip -n in$n addr add 10.0.$n.2/24 dev eth0
	ip -n in$n link set eth0 up
	ip -n in$n link set lo up
	ip -n in$n route add default via 10.0.$n.1
	ip netns exec out$n sh -c 'echo 1 >/proc/sys/net/ipv4/ip_forward'
	ip netns exec out$n nft -f - <<-END
		table ip nat { chain out { type nat hook postrouting priority 100; oifname eth0 masquerade; }; }
		table ip filter {
			chain in { type filter hook input priority 0; iifname eth0 ct state != { established, related } drop; }
			chain through { type filter hook forward priority 0; iifname eth0 ct state != { established, related } drop; }
		}
	END
done
run() { exec ip netns exec $1 env SITE_TEST_ROLE=$2 $SELF -test.run '^TestSitesBehindNATReachEachOther$' -test.timeout 60s -test.v; }
run out1 hub >$SITE_TEST_DIR/hub.log 2>&1 & hub=$!
run in2 listener >$SITE_TEST_DIR/listener.log 2>&1 & listener=$!
trap "kill $hub $listener" EXIT
(run in3 dialer) || { cat $SITE_TEST_DIR/*.log; exit 1; }
`

func TestSitesBehindNATReachEachOther(t *testing.T) {
	listen := []string{"/ip4/0.0.0.0/tcp/5054", "/ip4/0.0.0.0/udp/5054/quic-v1"}
	throughHub := func(c *Config) { c.Relays = []peer.AddrInfo{await(t, "hub")} }
	switch os.Getenv(roleEnv) {
	case "hub":
		h := newHost(t, func(c *Config) { c.RelayService = true }, listen...)
		tell(t, "hub", peer.AddrInfo{ID: h.ID(), Addrs: slices.DeleteFunc(h.Addrs(), func(a ma.Multiaddr) bool { return !strings.Contains(a.String(), "/45.0.0.1/") })})
		<-t.Context().Done()
	case "listener":
		h := newHost(t, throughHub, listen...)
		waitReady(h)
		tell(t, "listener", reachedThrough(t, h, await(t, "hub").ID))
		<-t.Context().Done()
	case "dialer":
		h := newHost(t, throughHub, listen...)
		waitReady(h)
		dialThroughNAT(t, h, await(t, "listener"))
	default:
		for _, program := range []string{"ip", "nft", "unshare"} {
			if _, err := exec.LookPath(program); err != nil || os.Geteuid() != 0 {
				if os.Getenv("CI") == "true" {
					t.Fatalf("MISSING: root and %s; CI has them", program)
				}
				t.Skipf("MISSING: root and %s", program)
			}
		}
		self, err := os.Executable()
		if err != nil {
			t.Fatal(err)
		}
		cmd := exec.CommandContext(t.Context(), "unshare", "--net", "--mount", "sh", "-ec", nats)
		cmd.Env = append(os.Environ(), dirEnv+"="+t.TempDir(), "SELF="+self)
		out, err := cmd.CombinedOutput()
		t.Logf("%s", out)
		if err != nil {
			t.Error(err)
		}
	}
}

// waitReady waits until the host has learned its public address from the hub. libp2p
// does not try to do without the hub for connections that were made before.
func waitReady(h *Host) {
	for !slices.Contains(h.Mux().Protocols(), holepunch.Protocol) {
		time.Sleep(100 * time.Millisecond)
	}
}

// dialThroughNAT dials a site through the hub, and waits until the two are connected
// without it.
func dialThroughNAT(t *testing.T, h *Host, to peer.AddrInfo) {
	if _, err := echo(t.Context(), h, to); err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(40 * time.Second); time.Now().Before(deadline); time.Sleep(100 * time.Millisecond) {
		for _, c := range h.Network().ConnsToPeer(to.ID) {
			if c.Stat().Limited || !strings.Contains(c.RemoteMultiaddr().String(), "/45.0.0.2/") {
				continue
			}
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
			defer cancel()
			s, err := h.NewStream(ctx, to.ID, echoed)
			if err != nil {
				t.Fatal(err)
			}
			s.Reset()
			t.Logf("reached at %s", c.RemoteMultiaddr())
			return
		}
	}
	t.Errorf("they are connected by %v alone", h.Network().ConnsToPeer(to.ID))
}

// tell lets the other processes know who one is.
func tell(t *testing.T, name string, info peer.AddrInfo) {
	t.Helper()
	p, err := info.MarshalJSON()
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(os.Getenv(dirEnv), name)
	if err := os.WriteFile(file+".part", p, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(file+".part", file); err != nil {
		t.Fatal(err)
	}
}

func await(t *testing.T, name string) (info peer.AddrInfo) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); time.Now().Before(deadline); time.Sleep(50 * time.Millisecond) {
		p, err := os.ReadFile(filepath.Join(os.Getenv(dirEnv), name))
		if err != nil {
			continue
		}
		if err := info.UnmarshalJSON(bytes.TrimSpace(p)); err != nil {
			t.Fatal(err)
		}
		return info
	}
	t.Fatal(fmt.Sprint("there is no ", name))
	return info
}

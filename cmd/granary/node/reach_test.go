package node

import (
	"net"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"
)

func TestReachTCP(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	if refused, large := ReachTCP(t.Context(), l.Addr().String()); refused != "" || large != "" {
		t.Errorf("nobody reads: %q, %q", refused, large)
	}
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			c.Close() // with bytes unread, which resets
		}
	}()
	if refused, large := ReachTCP(t.Context(), l.Addr().String()); refused != "" || large != "" {
		t.Errorf("closed at once: %q, %q", refused, large)
	}
	l.Close()
	if refused, _ := ReachTCP(t.Context(), l.Addr().String()); !strings.Contains(refused, "refused") {
		t.Errorf("nobody listens: %q", refused)
	}
}

// TestLargeSegmentsThatGetLost has a router between two network namespaces, whose second
// link takes packets of 1000 bytes, and which says nothing to whoever sends larger ones.
func TestLargeSegmentsThatGetLost(t *testing.T) {
	const behind = "10.77.2.2:7777"
	switch os.Getenv("GRANARY_TEST_ROUTER") {
	case "listen":
		l, err := net.Listen("tcp", behind)
		if err != nil {
			t.Fatal(err)
		}
		_, _ = l.Accept()
		time.Sleep(time.Minute) // until it is killed
	case "reach":
		var refused, large string
		for range 50 { // until it listens
			if refused, large = ReachTCP(t.Context(), behind); refused == "" {
				break
			}
			time.Sleep(100 * time.Millisecond)
		}
		if refused != "" || large == "" {
			t.Errorf("refused %q, large %q", refused, large)
		}
	default:
		self, err := os.Executable()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := exec.LookPath("ip"); err != nil || os.Geteuid() != 0 {
			if os.Getenv("CI") == "true" {
				t.Fatal("MISSING: root and ip; CI has them")
			}
			t.Skip("MISSING: root and ip")
		}
		cmd := exec.CommandContext(t.Context(), "unshare", "--net", "--mount", "sh", "-ec", router, self)
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("%v: %s", err, out)
		}
	}
}

const router = `
mount -t tmpfs tmpfs /run
ip netns add r; ip netns add b
ip link add a0 type veth peer name r0 netns r
ip -n r link add r1 type veth peer name b0 netns b
ip addr add 10.77.1.1/24 dev a0; ip link set a0 up
ip -n r addr add 10.77.1.2/24 dev r0; ip -n r link set r0 up
ip -n r addr add 10.77.2.1/24 dev r1; ip -n r link set r1 mtu 1000 up
ip -n b addr add 10.77.2.2/24 dev b0; ip -n b link set b0 up
ip route add 10.77.2.0/24 via 10.77.1.2
ip -n b route add 10.77.1.0/24 via 10.77.2.1
ip netns exec r sh -c 'echo 1 >/proc/sys/net/ipv4/ip_forward'
ip -n r rule add iif lo pref 1 blackhole
export GRANARY_TEST_ROUTER=listen
ip netns exec b "$0" -test.run '^TestLargeSegmentsThatGetLost$' >/dev/null 2>&1 &
trap "kill $!" EXIT
GRANARY_TEST_ROUTER=reach "$0" -test.run '^TestLargeSegmentsThatGetLost$'
`

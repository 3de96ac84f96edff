package libp2p

import (
	"bufio"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	libp2ptls "github.com/libp2p/go-libp2p/p2p/security/tls"

	"github.com/granary-oci/granary/p2p"
	"github.com/granary-oci/granary/tracker"
)

// TestMain is also the process whose memory BenchmarkMemory measures.
func TestMain(m *testing.M) {
	if id := os.Getenv("GRANARY_TEST_HUB_OF"); id != "" {
		if err := hub(strings.Split(id, ",")); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

// lanes returns n pairs of the ends of a stream from one host to another.
func lanes(b *testing.B, n int) (near, far []io.ReadWriter) {
	from, to := newNode(b), newNode(b)
	from.knows(to)
	to.knows(from)
	taken := make(chan p2p.Stream)
	to.Handle(func(_ tracker.ID, s p2p.Stream) { taken <- s })
	for range n {
		near = append(near, open(b, from, to.self))
		far = append(far, <-taken)
	}
	return near, far
}

// tlsConns returns n pairs of the ends of a TLS connection with libp2p's
// certificates.
func tlsConns(b *testing.B, n int) (near, far []io.ReadWriter) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	defer l.Close()
	server, client := tlsIdentity(b), tlsIdentity(b)
	for range n {
		raw, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			b.Fatal(err)
		}
		accepted, err := l.Accept()
		if err != nil {
			b.Fatal(err)
		}
		serverConfig, _ := server.ConfigForPeer("")
		clientConfig, _ := client.ConfigForPeer("")
		s, c := tls.Server(accepted, serverConfig), tls.Client(raw, clientConfig)
		go func() { _ = s.Handshake() }()
		if err := c.Handshake(); err != nil {
			b.Fatal(err)
		}
		b.Cleanup(func() { s.Close(); c.Close() })
		near, far = append(near, c), append(far, s)
	}
	return near, far
}

func tlsIdentity(b *testing.B) *libp2ptls.Identity {
	i, err := libp2ptls.NewIdentity(newIdentity(b).key)
	if err != nil {
		b.Fatal(err)
	}
	return i
}

// BenchmarkBulk sends 16 MiB in writes of 1 MiB, divided among the streams.
func BenchmarkBulk(b *testing.B) {
	const total, write = 16 << 20, 1 << 20
	for _, kind := range []struct {
		name string
		make func(*testing.B, int) (near, far []io.ReadWriter)
	}{{"libp2p", lanes}, {"tls", tlsConns}} {
		for _, n := range []int{1, 4} {
			b.Run(fmt.Sprintf("%s/%d", kind.name, n), func(b *testing.B) {
				near, far := kind.make(b, n)
				p := make([]byte, write)
				into := make([][]byte, n)
				for i := range into {
					into[i] = make([]byte, write)
				}
				b.SetBytes(total)
				for b.Loop() {
					var wg sync.WaitGroup
					for i := range n {
						wg.Go(func() {
							for range total / write / n {
								if _, err := near[i].Write(p); err != nil {
									b.Error(err)
								}
							}
						})
						wg.Go(func() {
							for range total / write / n {
								if _, err := io.ReadFull(far[i], into[i]); err != nil {
									b.Error(err)
								}
							}
						})
					}
					wg.Wait()
				}
			})
		}
	}
}

// BenchmarkPingPong sends 4 KiB there and back.
func BenchmarkPingPong(b *testing.B) {
	for _, kind := range []struct {
		name string
		make func(*testing.B, int) (near, far []io.ReadWriter)
	}{{"libp2p", lanes}, {"tls", tlsConns}} {
		b.Run(kind.name, func(b *testing.B) {
			near, far := kind.make(b, 1)
			go func() { _, _ = io.Copy(struct{ io.Writer }{far[0]}, struct{ io.Reader }{far[0]}) }()
			p := make([]byte, 4<<10)
			for b.Loop() {
				if _, err := near[0].Write(p); err != nil {
					b.Fatal(err)
				}
				if _, err := io.ReadFull(near[0], p); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkOpen opens a stream on a connection that is there.
func BenchmarkOpen(b *testing.B) {
	from, to := newNode(b), newNode(b)
	introduce(from, to)
	keep := open(b, from, to.self)
	defer keep.Close()
	for b.Loop() {
		s, err := from.Open(b.Context(), to.self)
		if err != nil {
			b.Fatal(err)
		}
		s.Close()
	}
}

// BenchmarkMemory reports the memory of a process that 50 members are connected
// to, with four streams each on which nothing happens.
func BenchmarkMemory(b *testing.B) {
	const members = 50
	var nodes []*node
	var ids []string
	for range members {
		nodes = append(nodes, newNode(b))
		ids = append(ids, string(nodes[len(nodes)-1].self.ID))
	}
	for b.Loop() {
		before, after := memoryOfHub(b, nodes, ids)
		b.ReportMetric(before, "MiB-alone")
		b.ReportMetric(after, "MiB-with-50")
	}
}

func memoryOfHub(b *testing.B, nodes []*node, ids []string) (before, after float64) {
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), "GRANARY_TEST_HUB_OF="+strings.Join(ids, ","))
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		b.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		b.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		b.Fatal(err)
	}
	defer func() { in.Close(); _ = cmd.Wait() }()
	lines := bufio.NewScanner(out)
	lines.Scan()
	id, addr, _ := strings.Cut(lines.Text(), " ")
	hub := &node{self: tracker.Peer{ID: tracker.ID(id), Addrs: []string{addr}}}
	before = residentMiB(b, cmd.Process.Pid)
	for _, n := range nodes {
		n.knows(hub)
		for range 4 {
			checkEcho(b, open(b, n, hub.self), "hello")
		}
	}
	time.Sleep(time.Second)
	return before, residentMiB(b, cmd.Process.Pid)
}

// hub echoes to the members with these IDs until its standard input ends.
func hub(ids []string) error {
	i, err := NewIdentity()
	if err != nil {
		return err
	}
	var peers []tracker.Peer
	for _, id := range ids {
		peers = append(peers, tracker.Peer{ID: tracker.ID(id)})
	}
	members := tracker.NewStatic(tracker.NewView(tracker.Peer{ID: i.ID()}, peers))
	h, err := New(Config{Identity: i, Listen: []string{"/ip4/127.0.0.1/tcp/0"}, Members: members})
	if err != nil {
		return err
	}
	h.Handle(echo)
	fmt.Println(i.ID(), h.Addrs()[0])
	_, _ = io.Copy(io.Discard, os.Stdin)
	return h.Close()
}

func residentMiB(b *testing.B, pid int) float64 {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		b.Skip(err)
	}
	_, rest, _ := strings.Cut(string(status), "VmRSS:")
	kib, err := strconv.Atoi(strings.Fields(rest)[0])
	if err != nil {
		b.Fatal(err)
	}
	return float64(kib) / 1024
}

package netns

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Space is a machine: a network namespace with an address.
type Space struct{ Name, Address string }

// Name returns a name for a namespace of this process, by which [Sweep] knows it: prefix is the program's own.
func Name(prefix, label string) string { return fmt.Sprintf("%s%d-%s", prefix, os.Getpid(), label) }

// Sweep deletes the namespaces of runs that were killed.
func Sweep(prefix string) {
	names, _ := filepath.Glob("/run/netns/" + prefix + "*")
	for _, name := range names {
		pid, _, _ := strings.Cut(strings.TrimPrefix(filepath.Base(name), prefix), "-")
		if _, err := os.Stat("/proc/" + pid); os.IsNotExist(err) {
			Delete(filepath.Base(name))
		}
	}
}

// Delete deletes namespaces.
func Delete(names ...string) {
	for _, name := range names {
		_ = exec.Command("ip", "netns", "del", name).Run()
	}
}

// In gives the command line that runs args on the machine; on nil that is the caller's own. nsenter replaces
// itself with the program, so that the process is the program. What it mounts is seen everywhere: "ip netns
// exec" would give it mounts of its own, and what others have mounted would stay as long as it runs.
func (s *Space) In(args ...string) []string {
	if s == nil {
		return args
	}
	return append([]string{"nsenter", "--net=/run/netns/" + s.Name, "--"}, args...)
}

// Within calls do on a thread that is on the machine: sockets that it opens stay there.
// The thread ends with it, unless it can come back.
func (s *Space) Within(do func() error) error {
	runtime.LockOSThread()
	home, err := openNamespace(fmt.Sprintf("/proc/self/task/%d/ns/net", unix.Gettid()))
	if err != nil {
		runtime.UnlockOSThread()
		return err
	}
	defer unix.Close(home)
	there, err := openNamespace("/run/netns/" + s.Name)
	if err != nil {
		runtime.UnlockOSThread()
		return err
	}
	defer unix.Close(there)
	if err = unix.Setns(there, unix.CLONE_NEWNET); err == nil {
		err = do()
	}
	if back := unix.Setns(home, unix.CLONE_NEWNET); back != nil {
		return fmt.Errorf("cannot return to the network namespace: %w", back)
	}
	runtime.UnlockOSThread()
	return err
}

func openNamespace(name string) (int, error) {
	return unix.Open(name, unix.O_RDONLY|unix.O_CLOEXEC, 0)
}

// Dial connects from the machine.
func (s *Space) Dial(ctx context.Context, kind, address string) (c net.Conn, err error) {
	err = s.Within(func() (err error) {
		dialer := net.Dialer{Timeout: 5 * time.Second}
		c, err = dialer.DialContext(ctx, kind, address)
		return err
	})
	return c, err
}

// Listen listens on the machine.
func (s *Space) Listen(address string) (l net.Listener, err error) {
	err = s.Within(func() (err error) { l, err = net.Listen("tcp4", address); return err })
	return l, err
}

// Client is one of HTTP that is on the machine.
func (s *Space) Client() *http.Client {
	return &http.Client{Timeout: 5 * time.Minute, Transport: &http.Transport{DialContext: s.Dial, DisableKeepAlives: true}}
}

// Sent returns the bytes that have left the machine by its link, frames and all, as the link counts them: a
// segment that the kernel sends in one piece has one header.
func (s *Space) Sent() (int64, error) {
	out, err := exec.Command("ip", "netns", "exec", s.Name, "cat", "/sys/class/net/eth0/statistics/tx_bytes").Output()
	if err != nil {
		return 0, fmt.Errorf("count bytes of %s: %w", s.Name, err)
	}
	return strconv.ParseInt(strings.TrimSpace(string(out)), 10, 64)
}

// Answers reports whether a GET of url is answered with 200, within 5 seconds.
func Answers(ctx context.Context, c *http.Client, url string) bool {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return false
	}
	resp, err := c.Do(req)
	if err != nil {
		return false
	}
	resp.Body.Close()
	return resp.StatusCode == http.StatusOK
}

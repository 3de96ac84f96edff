package programs

import (
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"
)

// Process is a daemon that a test has started.
type Process struct {
	Log string // the file that it writes to

	cmd  *exec.Cmd
	once sync.Once
	err  error
}

// Start starts a daemon that ends with the test. If the test fails, the end of its log is
// shown.
func Start(t *testing.T, name string, args ...string) *Process {
	t.Helper()
	log, err := os.CreateTemp(t.TempDir(), filepath.Base(name)+"-*.log")
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	p := &Process{cmd: exec.Command(name, args...), Log: log.Name()}
	p.cmd.Stdout, p.cmd.Stderr = log, log
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := p.cmd.Start(); err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	t.Cleanup(func() {
		_ = p.End(syscall.SIGTERM)
		if t.Failed() {
			out, _ := os.ReadFile(p.Log)
			t.Logf("end of the log of %s:\n%s", filepath.Base(name), out[max(0, len(out)-4000):])
		}
	})
	return p
}

// End ends a process with a signal and returns how it ended. One that does not end is
// killed after a while.
func (p *Process) End(signal syscall.Signal) error {
	p.once.Do(func() {
		_ = p.cmd.Process.Signal(signal)
		late := time.AfterFunc(40*time.Second, func() { _ = p.cmd.Process.Kill() })
		p.err = p.cmd.Wait()
		late.Stop()
	})
	return p.err
}

// Eventually waits, for a while, for something to become true.
func Eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for range 600 {
		if ok() {
			return
		}
		time.Sleep(50 * time.Millisecond)
	}
	t.Fatalf("never: %s", what)
}

// Answers reports whether a GET of url is answered with 200.
func Answers(url string) bool {
	resp, err := http.Get(url)
	if err != nil {
		return false
	}
	resp.Body.Close()
	return resp.StatusCode == http.StatusOK
}

// FreeAddress returns an address of this host at which nobody listens.
func FreeAddress(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

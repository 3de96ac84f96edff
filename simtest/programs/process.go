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

// Process is a program that a test has started.
type Process struct {
	Cmd  *exec.Cmd
	Log  string         // the file that it prints to
	Quit syscall.Signal // that ends it with the test; 0 is SIGTERM

	once sync.Once
	err  error
}

// Start starts a program that ends with the test. If the test fails, the end of what it has
// printed is shown.
func Start(t *testing.T, name string, args ...string) *Process {
	t.Helper()
	return StartCommand(t, exec.Command(name, args...))
}

// StartCommand starts a program that is to have more than arguments.
func StartCommand(t *testing.T, cmd *exec.Cmd) *Process {
	t.Helper()
	name := filepath.Base(cmd.Path)
	log, err := os.CreateTemp(t.TempDir(), name+"-*.log")
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	p := &Process{Cmd: cmd, Log: log.Name()}
	cmd.Stdout, cmd.Stderr = log, log
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	}
	if err := cmd.Start(); err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	t.Cleanup(func() {
		quit := p.Quit
		if quit == 0 {
			quit = syscall.SIGTERM
		}
		_ = p.End(quit)
		if out := p.Printed(); t.Failed() {
			t.Logf("end of what %s has printed:\n%s", name, out[max(0, len(out)-4000):])
		}
	})
	return p
}

// Printed returns what the program has printed so far.
func (p *Process) Printed() string {
	out, _ := os.ReadFile(p.Log)
	return string(out)
}

// End ends a process with a signal and returns how it ended. One that does not end is
// killed after a while.
func (p *Process) End(signal syscall.Signal) error {
	p.once.Do(func() {
		_ = p.Cmd.Process.Signal(signal)
		late := time.AfterFunc(40*time.Second, func() { _ = p.Cmd.Process.Kill() })
		p.err = p.Cmd.Wait()
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

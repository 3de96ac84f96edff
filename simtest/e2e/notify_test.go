package e2e

import (
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/granary-oci/granary/simtest/programs"
)

// TestServiceManagerIsTold holds a node to be reached from the moment on at which it has
// said so, as systemd's Type=notify has it.
func TestServiceManagerIsTold(t *testing.T) {
	t.Parallel()
	dir := programs.ShortDir(t)
	manager, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: filepath.Join(dir, "notify"), Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer manager.Close()
	admin := programs.FreeAddress(t)
	cmd := exec.Command(granaryBinary, "serve", "--data-dir", t.TempDir(), "--listen", programs.FreeAddress(t), "--admin", admin)
	cmd.Env = append(os.Environ(), "NOTIFY_SOCKET="+manager.LocalAddr().String())
	programs.StartCommand(t, cmd)
	told := make([]byte, 64)
	_ = manager.SetReadDeadline(time.Now().Add(30 * time.Second))
	n, err := manager.Read(told)
	if err != nil || string(told[:n]) != "READY=1" {
		t.Fatalf("the node said %q: %v", told[:n], err)
	}
	programs.Run(t, nil, granaryBinary, "status", "--node", "http://"+admin)
}

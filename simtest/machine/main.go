// Command machine follows deploy/README.md on machines whose init is systemd.
//
//	go run ./simtest/machine [-v]
//
// Two machines are booted from a Debian tree by systemd-nspawn, with their own systemd,
// D-Bus, network manager, Docker and podman. "Recipe 2" is read from the document and run on
// them line by line, as it is written there, and so is "On a machine" of deploy/upgrade.md.
// Between the lines it is looked at whether they have done what the page says of them: images
// come through the node, the node comes back when it is killed, machines share, and
// containers go on while the node that their files come from is replaced. What is run and
// what it prints is printed; the first thing that is not as it should be ends the run, with
// the exit status 1.
//
// The machines and their registry, which calls itself registry-1.docker.io, are in namespaces
// that end with the program: nothing leaves them. They take root, and what
// simtest/e2e/install.sh installs. The Debian tree is made once, and kept in $GRANARY_TOOLS.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"
)

// inside tells the program that it is in the namespaces, and which directory is for it.
const inside = "GRANARY_MACHINE_WORK"

func main() {
	verbose := flag.Bool("v", false, "print all that commands print")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	var err error
	if work := os.Getenv(inside); work != "" {
		err = follow(ctx, work, *verbose)
	} else {
		err = apart(ctx)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "machine:", err)
		stop()
		os.Exit(1)
	}
}

// apart makes what takes a network, runs this program again in namespaces of its own, and
// removes what that has left.
func apart(ctx context.Context) error {
	if os.Geteuid() != 0 {
		return errors.New("it takes root")
	}
	sweep()
	work, err := os.MkdirTemp("", fmt.Sprintf("%s%d-", prefix, os.Getpid()))
	if err != nil {
		return err
	}
	defer os.RemoveAll(work)
	if err := build(ctx, work); err != nil {
		return err
	}
	runtime.LockOSThread() // Pdeathsig is of the thread
	cmd := exec.CommandContext(ctx, "/proc/self/exe", os.Args[1:]...)
	cmd.Env = append(os.Environ(), inside+"="+work)
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: syscall.CLONE_NEWNS | syscall.CLONE_NEWNET | syscall.CLONE_NEWPID,
		Pdeathsig:  syscall.SIGKILL,
	}
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = time.Minute
	return cmd.Run()
}

// sweep removes the directories of runs that were killed.
func sweep() {
	all, _ := filepath.Glob(filepath.Join(os.TempDir(), prefix+"*"))
	for _, name := range all {
		pid, _, _ := strings.Cut(strings.TrimPrefix(filepath.Base(name), prefix), "-")
		if _, err := os.Stat("/proc/" + pid); os.IsNotExist(err) {
			_ = os.RemoveAll(name)
		}
	}
}

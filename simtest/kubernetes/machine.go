package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// beMachine is the first process of a node, in namespaces of its own: it mounts what a node
// has for itself, from dir, and takes leave of processes whose parents are gone. All that
// runs on the node ends with it.
func beMachine(dir string) {
	if err := mountMachine(dir); err != nil {
		fmt.Fprintln(os.Stderr, "machine:", err)
		os.Exit(1)
	}
	quit := make(chan os.Signal, 1)
	signal.Notify(quit, syscall.SIGTERM)
	for {
		select {
		case <-quit:
			os.Exit(0)
		case <-time.After(100 * time.Millisecond):
		}
		for pid := 1; pid > 0; {
			pid, _ = syscall.Wait4(-1, nil, syscall.WNOHANG, nil)
		}
	}
}

// mountMachine gives the node directories where Debian's and Kubernetes' programs look for
// them. What is mounted is seen by those that the node starts, and by nobody else.
func mountMachine(dir string) error {
	layers := fmt.Sprintf("lowerdir=/etc,upperdir=%[1]s/etc,workdir=%[1]s/work", dir)
	for _, m := range []struct {
		from, to, kind string
		flags          uintptr
		data           string
	}{
		{"", "/", "", unix.MS_REC | unix.MS_PRIVATE, ""},
		{"proc", "/proc", "proc", 0, ""},
		{"overlay", "/etc", "overlay", 0, layers},
		{filepath.Join(dir, "lib"), "/var/lib", "", unix.MS_BIND, ""},
		{filepath.Join(dir, "log"), "/var/log", "", unix.MS_BIND, ""},
		{"tmpfs", "/run", "tmpfs", 0, "mode=755"},
		{"", "/", "", unix.MS_REC | unix.MS_SHARED, ""},
	} {
		if err := unix.Mount(m.from, m.to, m.kind, m.flags, m.data); err != nil {
			return fmt.Errorf("mount %s: %w", m.to, err)
		}
	}
	return os.WriteFile(filepath.Join(dir, "mounted"), nil, 0o644)
}

// cgroup names the group in which a kubelet keeps its pods, at the root of each hierarchy.
func cgroup(i int) string { return fmt.Sprintf("/%s%d-%d", namePrefix, os.Getpid(), i) }

// makeCgroup makes the group of a node, in version 1 or 2, and returns what removes it.
func makeCgroup(i int) (remove func(), err error) {
	const root = "/sys/fs/cgroup"
	places := []string{root}
	if _, err := os.Stat(root + "/cgroup.controllers"); err != nil {
		places, _ = filepath.Glob(root + "/*")
	} else if err := os.WriteFile(root+"/cgroup.subtree_control", []byte("+cpu +cpuset +io +memory +pids"), 0); err != nil {
		return nil, err
	}
	var made []string
	for _, place := range places {
		made = append(made, place+cgroup(i))
		err = errors.Join(err, os.MkdirAll(place+cgroup(i), 0o755))
		for _, name := range []string{"cpuset.cpus", "cpuset.mems"} { // version 1: a new group has none
			if is, rerr := os.ReadFile(filepath.Join(place, name)); rerr == nil {
				err = errors.Join(err, os.WriteFile(filepath.Join(place+cgroup(i), name), is, 0))
			}
		}
	}
	return func() {
		for _, dir := range made {
			removeCgroup(dir)
		}
	}, err
}

// removeCgroup removes a group by its directories alone, the innermost first.
func removeCgroup(dir string) {
	_ = exec.Command("find", dir, "-depth", "-type", "d", "-exec", "rmdir", "{}", ";").Run()
}

// writeFiles writes files of a directory, by their names in it.
func writeFiles(dir string, files map[string]string) error {
	for name, text := range files {
		file := filepath.Join(dir, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(file), 0o755), os.WriteFile(file, []byte(strings.TrimLeft(text, "\n")), 0o644)); err != nil {
			return err
		}
	}
	return nil
}

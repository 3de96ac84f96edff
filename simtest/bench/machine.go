package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/granary-oci/granary/simtest/netns"
)

// machine is where a run was.
type machine struct {
	CPU        string            `json:"cpu"`
	CPUs       int               `json:"cpus"`
	Memory     int64             `json:"memory"` // bytes
	Kernel     string            `json:"kernel"`
	Go         string            `json:"go"`
	FileSystem string            `json:"fileSystem"` // of what is written
	Programs   map[string]string `json:"programs"`   // versions of those that are compared with
}

// machineOf looks at this machine, and at the file system of a directory.
func machineOf(ctx context.Context, dir string) machine {
	m := machine{CPUs: runtime.NumCPU(), Go: runtime.Version(), Programs: make(map[string]string)}
	m.CPU = strings.TrimSpace(field("/proc/cpuinfo", "model name"))
	var kib int64
	if _, err := fmt.Sscan(field("/proc/meminfo", "MemTotal"), &kib); err == nil {
		m.Memory = kib << 10
	}
	m.Kernel = firstWord("/proc/sys/kernel/osrelease")
	m.FileSystem = fileSystem(dir)
	for _, p := range []struct{ name, program, flag string }{
		{nginx, "nginx", "-v"}, {dockerRegistry, "docker-registry", "--version"}, {distribution, "registry", "--version"},
	} {
		if path, err := netns.Tool(p.program); err == nil {
			said, _ := exec.CommandContext(ctx, path, p.flag).CombinedOutput()
			m.Programs[p.name] = version(string(said))
		}
	}
	return m
}

// field returns what follows a name and a colon in a file of /proc.
func field(file, name string) string {
	p, _ := os.ReadFile(file)
	for line := range strings.Lines(string(p)) {
		if key, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(key) == name {
			return value
		}
	}
	return ""
}

func firstWord(file string) string {
	p, _ := os.ReadFile(file)
	word, _, _ := strings.Cut(strings.TrimSpace(string(p)), " ")
	return word
}

// version returns the last word of what a program says of itself, as of "nginx version: nginx/1.22.1".
func version(said string) string {
	words := strings.Fields(said)
	if len(words) == 0 {
		return "unknown"
	}
	return strings.TrimPrefix(words[len(words)-1], "nginx/")
}

// fileSystem names the file system of a directory, by its magic number (statfs(2)).
func fileSystem(dir string) string {
	var s unix.Statfs_t
	if err := unix.Statfs(dir, &s); err != nil {
		return "unknown"
	}
	name, ok := map[int64]string{
		unix.EXT4_SUPER_MAGIC: "ext4", unix.XFS_SUPER_MAGIC: "xfs", unix.BTRFS_SUPER_MAGIC: "btrfs",
		unix.TMPFS_MAGIC: "tmpfs", unix.OVERLAYFS_SUPER_MAGIC: "overlay",
	}[int64(s.Type)]
	if !ok {
		return fmt.Sprintf("%#x", s.Type)
	}
	return name
}

func (m machine) String() string {
	s := fmt.Sprintf("%s, %d CPUs, %.0f GiB, Linux %s, %s, data on %s", m.CPU, m.CPUs, float64(m.Memory)/(1<<30), m.Kernel, m.Go, m.FileSystem)
	for _, name := range []string{nginx, dockerRegistry, distribution} {
		if v := m.Programs[name]; v != "" {
			s += fmt.Sprintf("; %s %s", name, v)
		}
	}
	return s
}

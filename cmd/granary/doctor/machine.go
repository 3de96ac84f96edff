package doctor

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/dustin/go-humanize"
	"golang.org/x/sys/unix"

	"github.com/granary-oci/granary/cmd/granary/configure"
)

// checkRuntimes looks at the configuration of the runtimes that the machine has.
func checkRuntimes(_ context.Context, p *patient) (findings []Finding) {
	mirror := p.mirror()
	for _, runtime := range configure.Runtimes() {
		state, err := configure.Inspect(configure.Options{Runtime: runtime, Root: p.Root, Mirror: mirror})
		switch {
		case errors.Is(err, fs.ErrPermission):
			findings = append(findings, Finding{"", runtime, Warning, err.Error(), "run granary doctor as root, to have its files looked at"})
			continue
		case errors.Is(err, configure.ErrForm):
			findings = append(findings, Finding{"", runtime, Warning, err.Error(), "add the mirror by hand, as the README shows it"})
			continue
		case err != nil:
			findings = append(findings, Finding{"", runtime, Error, err.Error(), "look at the file: what is not understood here, the runtime may not understand either"})
			continue
		case !state.Present:
			continue
		case len(state.Mirrored) > 0:
			findings = append(findings, Finding{"", runtime, OK, mirror + " is in " + strings.Join(state.Mirrored, ", "), ""})
		}
		for _, problem := range state.Problems {
			severity := Warning
			if problem.Severe && len(state.Mirrored) > 0 {
				severity = Error
			}
			findings = append(findings, Finding{"", runtime, severity, problem.Cause, problem.Remedy})
		}
	}
	if len(findings) == 0 {
		findings = []Finding{{"", "", Note, "there is no runtime below " + cmp.Or(p.Root, "/"), "name the machine's file system with --root, if it is elsewhere"}}
	}
	return findings
}

// mirror is the URL that runtimes should have.
func (p *patient) mirror() string {
	if p.Mirror != "" {
		return p.Mirror
	}
	if p.status != nil && len(p.status.Listen) > 0 {
		if u, err := url.Parse(p.status.Listen[0]); err == nil {
			if ip := net.ParseIP(u.Hostname()); ip != nil && ip.IsUnspecified() {
				u.Host = net.JoinHostPort("127.0.0.1", u.Port())
			}
			return u.Scheme + "://" + u.Host
		}
	}
	return "http://127.0.0.1:5050"
}

const (
	fewBytes   = 1 << 30 // below, little can be kept
	noBytes    = 64 << 20
	fewInodes  = 10_000
	probeBytes = 256 << 10
)

// fileSystems are those on which a store is not as good as on others.
var fileSystems = map[int64]string{
	unix.OVERLAYFS_SUPER_MAGIC: "is an overlay, as in a container without a volume: what it holds ends with the container, and files cannot be passed to the kernel",
	unix.TMPFS_MAGIC:           "is in memory: what it holds ends with the machine, and takes its memory",
	unix.NFS_SUPER_MAGIC:       "is on NFS: the store belongs on a disk of the machine",
	0xff534d42:                 "is on CIFS: the store belongs on a disk of the machine",
	unix.FUSE_SUPER_MAGIC:      "is on FUSE: the store belongs on a disk of the machine",
}

// checkDisk looks at where the store is.
func checkDisk(_ context.Context, p *patient) []Finding {
	dir, budget, used := p.Settings.DataDir, int64(p.Settings.CacheSize), int64(0)
	if p.status != nil {
		dir, budget, used = p.status.DataDir, p.status.Store.Budget, p.status.Store.Bytes
	}
	there := dir
	for {
		if _, err := os.Stat(there); err == nil || there == filepath.Dir(there) {
			break
		}
		there = filepath.Dir(there)
	}
	if there != dir && p.status != nil {
		return []Finding{{"", dir, Note, "the node's data directory is not to be seen from here", "run granary doctor where the node runs, as in its container"}}
	}
	var at unix.Statfs_t
	if err := unix.Statfs(there, &at); err != nil {
		return []Finding{{"", dir, Error, err.Error(), "make it a directory that the node can use, or choose another with --data-dir"}}
	}
	findings := writable(dir, there, at)
	if what := fileSystems[int64(at.Type)]; what != "" {
		findings = append(findings, Finding{"", dir, Warning, "the file system " + what, "mount a volume there, or choose another directory with --data-dir"})
	}
	free := int64(at.Bavail) * at.Bsize
	switch {
	case free < noBytes:
		findings = append(findings, Finding{"", dir, Error, "the file system is full: " + humanize.IBytes(uint64(free)) + " are free, so nothing is kept", "make room, or choose another directory with --data-dir"})
	case free < fewBytes:
		findings = append(findings, Finding{"", dir, Warning, humanize.IBytes(uint64(free)) + " are free", "make room, or choose another directory with --data-dir"})
	case budget > 0 && budget-used > free:
		findings = append(findings, Finding{"", dir, Warning, fmt.Sprintf("the store may grow by %s, and %s are free", humanize.IBytes(uint64(budget-used)), humanize.IBytes(uint64(free))), "make --cache-size smaller, or make room"})
	}
	if at.Files > 0 && at.Ffree < fewInodes {
		findings = append(findings, Finding{"", dir, Warning, fmt.Sprintf("the file system has %d inodes left", at.Ffree), "remove small files, or choose another file system with --data-dir"})
	}
	if len(findings) == 0 {
		findings = []Finding{{"", dir, OK, humanize.IBytes(uint64(free)) + " are free", ""}}
	}
	return findings
}

// writable tries to write where the store is, or would be.
func writable(dir, there string, at unix.Statfs_t) []Finding {
	remedy := "give the node's user the directory, or choose another with --data-dir"
	if at.Flags&unix.ST_RDONLY != 0 {
		return []Finding{{"", dir, Error, "the file system is mounted read-only", "mount it to be written to, or choose another directory with --data-dir"}}
	}
	if there != dir {
		if err := unix.Access(there, unix.W_OK|unix.X_OK); err != nil {
			return []Finding{{"", dir, Error, fmt.Sprintf("it does not exist, and cannot be made in %s: %v", there, err), remedy}}
		}
		return nil
	}
	f, err := os.CreateTemp(dir, ".doctor-*")
	if err != nil {
		return []Finding{{"", dir, Error, fmt.Sprintf("it cannot be written to: %v", err), remedy}}
	}
	defer os.Remove(f.Name())
	_, err = f.Write(make([]byte, probeBytes))
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return []Finding{{"", dir, Error, fmt.Sprintf("it cannot be written to: %v", err), "make room: a quota or the file system is full"}}
	}
	return nil
}

// checkFUSE looks at what mounts need. Pulls do without.
func checkFUSE(_ context.Context, p *patient) []Finding {
	const device = "/dev/fuse"
	f, err := os.OpenFile(device, os.O_RDWR, 0)
	if err != nil {
		return []Finding{{"", device, Note, fmt.Sprintf("granary mount and --snapshotter-listen do not work here: %v", err), "load the module fuse, and give the container the device; pulls do without"}}
	}
	f.Close()
	if os.Geteuid() != 0 {
		if _, err := exec.LookPath("fusermount3"); err != nil {
			return []Finding{{"", "fusermount3", Note, "granary mount does not work for this user: there is no fusermount3", "install fuse3; pulls do without"}}
		}
	}
	release := kernelRelease()
	if !atLeast(release, 6, 9) {
		return []Finding{{"", device, Note, "mounts work; Linux " + release + " does not let the kernel read files by itself (--passthrough)", "use Linux 6.9 or later, if reading from mounts is to be faster"}}
	}
	return []Finding{{"", device, OK, "mounts work, and as root the kernel may read files by itself", ""}}
}

func kernelRelease() string {
	var u unix.Utsname
	if unix.Uname(&u) != nil {
		return "?"
	}
	return unix.ByteSliceToString(u.Release[:])
}

// atLeast reports whether a kernel is of a version or later.
func atLeast(release string, major, minor int) bool {
	parts := strings.FieldsFunc(release, func(r rune) bool { return r < '0' || r > '9' })
	if len(parts) < 2 {
		return false
	}
	a, _ := strconv.Atoi(parts[0])
	b, _ := strconv.Atoi(parts[1])
	return a > major || a == major && b >= minor
}

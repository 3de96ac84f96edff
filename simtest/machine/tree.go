package main

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// bootstrap is how the machines' Debian is made: what a machine with Docker and podman has,
// and, for its images, a shell that needs no libraries.
var bootstrap = []string{
	"mmdebstrap", "--quiet", "--variant=minbase", "--format=directory", `--aptopt=APT::Install-Recommends "false"`,
	"--include=systemd,systemd-sysv,dbus,docker.io,podman,busybox-static,ca-certificates,curl,fuse3,iproute2,iptables,openssl,procps,sudo",
	"--dpkgopt=path-exclude=/usr/share/doc/*", "--dpkgopt=path-exclude=/usr/share/locale/*", "--dpkgopt=path-exclude=/usr/share/man/*",
	`--customize-hook=systemctl --root="$1" enable systemd-networkd`,
	"bookworm",
}

// debian returns a directory with a Debian, which is made if it is not in folder. An older
// one, made in another way, is removed.
func debian(ctx context.Context, folder string) (string, error) {
	dir := filepath.Join(folder, fmt.Sprintf("debian-%.4x", sha256.Sum256([]byte(fmt.Sprint(bootstrap)))))
	if _, err := os.Stat(dir); err == nil {
		return dir, nil
	}
	if err := errors.Join(os.RemoveAll(folder), os.MkdirAll(folder, 0o755)); err != nil {
		return "", err
	}
	part := dir + ".part"
	fmt.Println("mmdebstrap bookworm, for minutes, once")
	args := append(bootstrap[1:], part, "http://deb.debian.org/debian")
	cmd := exec.CommandContext(ctx, bootstrap[0], args...)
	cmd.Cancel = func() error { return cmd.Process.Signal(unix.SIGTERM) } // it cleans up
	cmd.WaitDelay = 20 * time.Second
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("mmdebstrap: %w\n%s", err, out[max(0, len(out)-2000):])
	}
	return dir, os.Rename(part, dir)
}

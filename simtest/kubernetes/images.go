package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
)

const (
	imageName  = "ghcr.io/granary-oci/granary"
	nextTag    = "next" // of what is the same, for upgrades
	pauseImage = "granary.test/pause:1"

	apps       = 8 // images of pods
	layers     = 3 // of each, beside the program's
	layerBytes = 4 << 20
)

// app names an image of pods, as people do.
func app(i int) string { return fmt.Sprintf("docker.io/library/app:%d", i) }

// buildImages builds the image by the Dockerfile, and one of it that does nothing, as pods'
// sandboxes and as the base of all others. It returns the archive of them.
func (l *lab) buildImages(ctx context.Context) (archive string, err error) {
	dir := filepath.Join(l.dir, "images")
	files := filepath.Join(dir, "context")
	if err := os.MkdirAll(filepath.Join(files, "empty"), 0o755); err != nil {
		return "", err
	}
	build := exec.CommandContext(ctx, "go", "build", "-trimpath", "-ldflags", "-s -w", "-o", filepath.Join(files, "granary-linux-"+runtime.GOARCH), "./cmd/granary")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build: %w\n%s", err, out)
	}
	chart, err := os.ReadFile("deploy/helm/granary/Chart.yaml")
	if err != nil {
		return "", err
	}
	version := regexp.MustCompile(`(?m)^appVersion: "(.+)"`).FindSubmatch(chart)
	if version == nil {
		return "", errors.New("the chart has no appVersion")
	}
	current, rest := fmt.Sprintf("%s:%s", imageName, version[1]), filepath.Join(dir, "Containerfile")
	if err := os.WriteFile(rest, []byte("FROM "+current+"\nCMD [\"pod\", \"rest\"]\n"), 0o644); err != nil {
		return "", err
	}
	podman := fmt.Sprintf("podman --root %[1]s/root --runroot %[1]s/run --tmpdir %[1]s/tmp --storage-driver vfs --cgroup-manager cgroupfs --events-backend none ", dir)
	archive = filepath.Join(dir, "images.tar")
	return archive, commands(ctx,
		podman+"build --quiet --isolation chroot --file deploy/docker/Dockerfile --build-arg TARGETARCH="+runtime.GOARCH+" --tag "+current+" "+files,
		podman+"build --quiet --isolation chroot --file "+rest+" --tag "+pauseImage+" "+files,
		podman+"tag "+current+" "+imageName+":"+nextTag,
		podman+"save --multi-image-archive --output "+archive+" "+current+" "+imageName+":"+nextTag+" "+pauseImage,
		podman+"save --output "+l.baseArchive()+" "+pauseImage)
}

func (l *lab) baseArchive() string { return filepath.Join(l.dir, "images", "base.tar") }

// pushImages puts the images of pods into the registry, and the one that the pages name.
func (l *lab) pushImages(ctx context.Context) error {
	const at = outsideAddress + ":5000/library/"
	if _, err := l.shell(ctx, "crane push --insecure "+l.baseArchive()+" "+at+"base:1"); err != nil {
		return err
	}
	for i := range apps + 1 {
		name := fmt.Sprintf("app:%d", i)
		if i == apps {
			name = "alpine:3"
		}
		line := "crane append --insecure --base " + at + "base:1 --new_tag " + at + name
		for k := range layers {
			file, err := l.layer(ctx, fmt.Sprintf("%d-%d", i, k))
			if err != nil {
				return err
			}
			line += " --new_layer " + file
		}
		if _, err := l.shell(ctx, line); err != nil {
			return err
		}
	}
	return nil
}

// layer makes a tar of one file that nothing compresses.
func (l *lab) layer(ctx context.Context, name string) (string, error) {
	dir := filepath.Join(l.dir, "images")
	content := make([]byte, layerBytes)
	_, _ = rand.Read(content)
	err := errors.Join(os.WriteFile(filepath.Join(dir, name), content, 0o644), commands(ctx, strings.Join([]string{"tar", "-C", dir, "-cf", filepath.Join(dir, name+".tar"), name}, " ")))
	return filepath.Join(dir, name+".tar"), err
}

package main

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"syscall"

	"github.com/granary-oci/granary/simtest/lines"
)

// registry is Debian's docker-registry, with the certificate of Docker Hub's name. It has
// library/alpine:3, which is a shell and some data.
type registry struct {
	certificate, log string
	printed          int               // bytes of the log that have been asked for
	sums             map[string]string // SHA-256 of the image's data, by the name of the file
}

// startRegistry starts a registry that ends with the program.
func startRegistry(ctx context.Context, l *lab) (*registry, error) {
	dir := filepath.Join(l.work, "registry")
	r := &registry{sums: make(map[string]string), certificate: filepath.Join(dir, "certificate.pem"), log: filepath.Join(dir, "log")}
	config := fmt.Sprintf("version: 0.1\nlog: {level: error}\nstorage: {filesystem: {rootdirectory: %[1]s/data}}\n"+
		"http: {addr: '%[2]s:443', tls: {certificate: %[1]s/certificate.pem, key: %[1]s/key.pem}}\n", dir, outside)
	err := errors.Join(os.Mkdir(dir, 0o755), os.WriteFile(dir+"/config.yml", []byte(config), 0o644))
	if err != nil {
		return nil, err
	}
	if err := lines.Run(ctx, "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=registry-1.docker.io -addext subjectAltName=DNS:registry-1.docker.io -keyout "+
		dir+"/key.pem -out "+r.certificate); err != nil {
		return nil, err
	}
	log, err := os.Create(r.log)
	if err != nil {
		return nil, err
	}
	defer log.Close()
	cmd := exec.Command("docker-registry", "serve", dir+"/config.yml")
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	err = eventually(ctx, "the registry answers", func() bool {
		return lines.Run(ctx, "curl --silent --insecure https://"+outside+"/v2/") == nil
	})
	if err = errors.Join(err, r.stock(ctx, l, dir)); err != nil {
		return nil, err
	}
	_, err = r.blobs() // crane has asked, too
	return r, err
}

// stock pushes the image.
func (r *registry) stock(ctx context.Context, l *lab, dir string) error {
	files := filepath.Join(dir, "image")
	err := errors.Join(os.MkdirAll(files+"/bin", 0o755), os.Mkdir(files+"/data", 0o755))
	for _, name := range []string{"first", "second", "third"} {
		data := make([]byte, 4<<20)
		_, _ = rand.Read(data)
		r.sums[name] = fmt.Sprintf("%x", sha256.Sum256(data))
		err = errors.Join(err, os.WriteFile(files+"/data/"+name, data, 0o644))
	}
	for _, name := range []string{"sh", "sleep", "sha256sum"} {
		err = errors.Join(err, os.Symlink("busybox", files+"/bin/"+name))
	}
	if err != nil {
		return err
	}
	crane, ref := filepath.Join(l.tools, "crane"), outside+":443/library/alpine:3"
	return lines.Run(ctx, "cp "+l.work+"/debian/bin/busybox "+files+"/bin/busybox",
		"tar -czf "+dir+"/layer.tar.gz -C "+files+" .",
		crane+" append --insecure --oci-empty-base --new_layer "+dir+"/layer.tar.gz --new_tag "+ref,
		crane+" mutate --insecure --set-platform linux/"+runtime.GOARCH+" --cmd /bin/sh --tag "+ref+" "+ref)
}

// same compares what sha256sum has printed of a file of the image's data with what was pushed.
func (r *registry) same(printed, file string) error {
	if !strings.HasPrefix(printed, r.sums[file]) {
		return fmt.Errorf("of %s a container read %q, want %s", file, printed, r.sums[file])
	}
	return nil
}

// request is a line of the access log that is of a blob: the program that asked.
var request = regexp.MustCompile(`"GET [^"]*/blobs/[^"]*" \d+ \d+ "[^"]*" "([^"/ ]*)`)

// blobs returns how often each program has asked for a blob since the last call.
func (r *registry) blobs() (who map[string]int, err error) {
	p, err := os.ReadFile(r.log)
	if err != nil {
		return nil, err
	}
	who = make(map[string]int)
	for _, m := range request.FindAllStringSubmatch(string(p[r.printed:]), -1) {
		who[strings.ToLower(m[1])]++
	}
	r.printed = len(p)
	return who, nil
}

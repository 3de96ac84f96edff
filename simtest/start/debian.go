package main

import (
	"archive/tar"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"
)

// steps are the systems that the image's layers are the differences of: what many images
// of a program in Python are made of. Each has the packages of those below it.
var steps = []struct{ name, packages string }{
	{"debian", ""},
	{"tools", "ca-certificates,curl,git,openssh-client,procps"},
	{"python", "python3"},
	{"numpy", "python3-numpy"},
}

// recipe names what the image is made of, in names of files.
func recipe() string { return digest.FromString(fmt.Sprint(steps)).Encoded()[:8] }

// pythonLayers returns the layers of the image that is measured. They are made once.
func pythonLayers(ctx context.Context, folder string) (layers []string, err error) {
	if err := os.MkdirAll(folder, 0o755); err != nil {
		return nil, err
	}
	below, packages := "", ""
	for _, s := range steps {
		packages = strings.Trim(packages+","+s.packages, ",")
		system, layer := filepath.Join(folder, s.name+"-system.tar"), filepath.Join(folder, s.name+".tar")
		if err := once(system, func(to string) error { return bootstrap(ctx, to, packages) }); err != nil {
			return nil, fmt.Errorf("%s: %w", s.name, err)
		}
		if err := once(layer, func(to string) error { return difference(below, system, to) }); err != nil {
			return nil, fmt.Errorf("%s: %w", s.name, err)
		}
		layers, below = append(layers, layer), system
	}
	return layers, nil
}

// once makes a file if it is not there: all of it, or nothing.
func once(name string, write func(to string) error) error {
	if _, err := os.Stat(name); err == nil {
		return nil
	}
	part := name + ".part"
	defer os.Remove(part)
	if err := write(part); err != nil {
		return err
	}
	return os.Rename(part, name)
}

// bootstrap makes a Debian. The same packages give the same bytes.
func bootstrap(ctx context.Context, to, packages string) (err error) {
	args := []string{"--quiet", "--variant=minbase", "--format=tar"}
	if packages != "" {
		args = append(args, "--include="+packages)
	}
	fmt.Fprintln(os.Stderr, "mmdebstrap bookworm", packages)
	for range 3 { // a mirror may fail for a moment
		cmd := exec.CommandContext(ctx, "mmdebstrap", append(args, "bookworm", to, "http://deb.debian.org/debian")...)
		cmd.Env = append(os.Environ(), "SOURCE_DATE_EPOCH=1750000000")
		cmd.Cancel = func() error { return cmd.Process.Signal(unix.SIGTERM) } // it cleans up
		cmd.WaitDelay = 20 * time.Second
		out, failed := cmd.CombinedOutput()
		if err = failed; err == nil || ctx.Err() != nil {
			return err
		}
		err = fmt.Errorf("mmdebstrap: %w\n%s", err, out[max(0, len(out)-2000):])
	}
	return err
}

// state is what a tar says of a name.
type state struct {
	header tar.Header
	sum    [sha256.Size]byte
}

// difference writes what is in one tar and not the same in another, with the directories
// that it is in. Nothing may be missing in it.
func difference(below, system, to string) error {
	before, after := make(map[string]state), make(map[string]state)
	if below != "" {
		if err := states(below, before); err != nil {
			return err
		}
	}
	if err := states(system, after); err != nil {
		return err
	}
	wanted := make(map[string]bool)
	for name, is := range after {
		if was, ok := before[name]; !ok || !same(was, is) {
			for ; name != "."; name = path.Dir(name) {
				wanted[name] = true
			}
		}
	}
	for name := range before {
		if _, ok := after[name]; !ok {
			return fmt.Errorf("%s of the layer below is not there", name)
		}
	}
	out, err := os.Create(to)
	if err != nil {
		return err
	}
	w := tar.NewWriter(out)
	err = eachEntry(system, func(h *tar.Header, content io.Reader) error {
		if !wanted[path.Clean(h.Name)] {
			return nil
		}
		if err := w.WriteHeader(plain(h)); err != nil {
			return err
		}
		_, err := io.Copy(w, content)
		return err
	})
	return errors.Join(err, w.Close(), out.Close())
}

func same(a, b state) bool {
	x, y := a.header, b.header
	return a.sum == b.sum && x.Typeflag == y.Typeflag && x.Linkname == y.Linkname && x.Mode == y.Mode &&
		x.Uid == y.Uid && x.Gid == y.Gid && (x.Typeflag == tar.TypeDir || x.ModTime.Equal(y.ModTime))
}

// plain is a header as any program can read it.
func plain(h *tar.Header) *tar.Header {
	p := &tar.Header{
		Typeflag: h.Typeflag, Name: h.Name, Linkname: h.Linkname, Size: h.Size, Mode: h.Mode, Uid: h.Uid, Gid: h.Gid,
		ModTime: h.ModTime, Devmajor: h.Devmajor, Devminor: h.Devminor, Format: tar.FormatPAX, PAXRecords: make(map[string]string),
	}
	for k, v := range h.PAXRecords {
		if strings.HasPrefix(k, "SCHILY.xattr.") {
			p.PAXRecords[k] = v
		}
	}
	return p
}

// states reads all that a tar has.
func states(name string, all map[string]state) error {
	return eachEntry(name, func(h *tar.Header, content io.Reader) error {
		sum := sha256.New()
		if _, err := io.Copy(sum, content); err != nil {
			return err
		}
		s := state{header: *h}
		sum.Sum(s.sum[:0])
		all[path.Clean(h.Name)] = s
		return nil
	})
}

func eachEntry(name string, do func(h *tar.Header, content io.Reader) error) error {
	f, err := os.Open(name)
	if err != nil {
		return err
	}
	defer f.Close()
	for r := tar.NewReader(f); ; {
		h, err := r.Next()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		if path.Clean(h.Name) == "." || h.Typeflag == tar.TypeXGlobalHeader {
			continue
		}
		if err := do(h, r); err != nil {
			return fmt.Errorf("%s: %s: %w", name, h.Name, err)
		}
	}
}

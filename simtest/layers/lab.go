package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"sync"

	"golang.org/x/sync/errgroup"
)

// registryHost is what the registry is called at nodes; it resolves nowhere.
const registryHost = "registry.test"

// missingError says that something is not installed.
type missingError struct{ what string }

func (e *missingError) Error() string {
	return "MISSING: " + e.what + "; run simtest/e2e/install.sh as root, if that installs it"
}

// tool finds a program that install.sh has built.
func tool(name string) (string, error) {
	path, err := exec.LookPath(filepath.Join(os.Getenv("GRANARY_TOOLS"), name))
	if err != nil {
		return "", &missingError{name + " in $GRANARY_TOOLS"}
	}
	return path, nil
}

// lab is images in every format in a registry, and what is needed to look into them.
type lab struct {
	dir       string // of all that is made
	kept      string // of layers that are kept, or ""
	small     bool   // the images are smaller, which tests can do with
	granary   string // the program
	registry  *registry
	sources   []source
	unpacking sync.Mutex // of layers, for those who make images of directories

	mu        sync.Mutex
	images    map[string]*image // by format
	processes []*process
}

// newLab makes the images, of layers that are kept in $GRANARY_LAYERS from an earlier
// run if there are any, and starts the registry. It is to be closed, even if that
// fails.
func newLab(ctx context.Context, small bool) (*lab, error) {
	l, err := newWorkshop(os.Getenv("GRANARY_LAYERS"), small)
	if err != nil {
		return l, err
	}
	l.granary = filepath.Join(l.dir, "granary")
	if err := buildProgram(ctx, l.granary, "cmd/granary"); err != nil {
		return l, err
	}
	if l.registry, err = l.startRegistry(ctx); err != nil {
		return l, err
	}
	return l, l.each(ctx, func(ctx context.Context, f format) error {
		img, err := l.build(f)
		if err != nil {
			return err
		}
		l.mu.Lock()
		l.images[f.name] = img
		l.mu.Unlock()
		return l.push(ctx, img.name, img)
	})
}

// newWorkshop is a lab that makes layers, and nothing else.
func newWorkshop(kept string, small bool) (l *lab, err error) {
	l = &lab{kept: kept, small: small, images: make(map[string]*image)}
	if err := check(); err != nil {
		return l, err
	}
	if l.dir, err = os.MkdirTemp("", "granary-layers-"); err != nil {
		return l, err
	}
	l.sources, err = l.makeSources()
	return l, err
}

// makeLayers writes the layers of all images to a folder, to be kept there.
func makeLayers(ctx context.Context, to string, small bool) (err error) {
	l, err := newWorkshop(to, small)
	defer func() { err = joined(err, l.close()) }()
	if err != nil {
		return err
	}
	return l.each(ctx, func(_ context.Context, f format) error {
		_, err := l.build(f)
		return err
	})
}

// buildProgram builds one of our programs.
func buildProgram(ctx context.Context, to, name string) error {
	build := exec.CommandContext(ctx, "go", "build", "-o", to, "github.com/granary-oci/granary/"+name)
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		return fmt.Errorf("build: %w\n%s", err, out)
	}
	return nil
}

// each does something for all formats, a few at once.
func (l *lab) each(ctx context.Context, do func(context.Context, format) error) error {
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(runtime.NumCPU())
	for _, f := range formats {
		g.Go(func() error { return do(ctx, f) })
	}
	return g.Wait()
}

// check reports what is not there.
func check() error {
	if os.Geteuid() != 0 {
		return &missingError{"root, to unpack what belongs to others"}
	}
	for _, name := range []string{"docker-registry", "umoci", "tar", "mkfs.erofs", "mksquashfs"} {
		if _, err := exec.LookPath(name); err != nil {
			return &missingError{name}
		}
	}
	_, err := tool("chunked")
	return err
}

// close ends what was started, and removes all that was made.
func (l *lab) close() error {
	var errs []error
	for _, p := range l.processes {
		errs = append(errs, p.end())
	}
	if l.registry != nil {
		errs = append(errs, l.registry.gate.server.Close())
	}
	if l.dir != "" {
		errs = append(errs, os.RemoveAll(l.dir))
	}
	return errors.Join(errs...)
}

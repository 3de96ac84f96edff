package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/granary-oci/granary/cmd/granary/node"
)

// podCmd has what the pods of the Helm chart would take a shell for: their image has
// this program and nothing else.
type podCmd struct {
	Own   podOwnCmd   `cmd:"" help:"Make a node's data directory, and all in it, a user's. Takes root."`
	Check podCheckCmd `cmd:"" help:"Ask a running node whether it is well: a probe."`
	Await podAwaitCmd `cmd:"" help:"Wait until one DNS name has as many addresses as another."`
	Rest  podRestCmd  `cmd:"" help:"Do nothing until told to end."`
}

// podOwnCmd gives a data directory to the user that the node runs as.
type podOwnCmd struct {
	Dir   string `arg:"" name:"dir" help:"The data directory. It is made if it is not there."`
	Owner string `arg:"" name:"owner" help:"UID:GID, in numbers."`
}

func (c *podOwnCmd) Run(*env) error {
	uid, gid, err := parseOwner(c.Owner)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(c.Dir, 0o700); err != nil {
		return err
	}
	dir, err := os.OpenRoot(c.Dir)
	if err != nil {
		return err
	}
	defer dir.Close()
	return own(dir, uid, gid)
}

// parseOwner reads UID:GID. The largest number is not one: chown takes it for none.
func parseOwner(s string) (uid, gid int, err error) {
	u, g, ok := strings.Cut(s, ":")
	user, uerr := strconv.ParseUint(u, 10, 32)
	group, gerr := strconv.ParseUint(g, 10, 32)
	if !ok || uerr != nil || gerr != nil || user == 1<<32-1 || group == 1<<32-1 {
		return 0, 0, fmt.Errorf("owner %q is not UID:GID", s)
	}
	return int(user), int(group), nil
}

// own gives all that is in dir to a user, dir itself last: that it is theirs says that
// all is, so that a directory of many blobs is walked once. No symlink is followed.
func own(dir *os.Root, uid, gid int) error {
	info, err := dir.Stat(".")
	if err != nil {
		return err
	}
	// What is in the store is nobody's business but the node's.
	if err := dir.Chmod(".", 0o700); err != nil {
		return err
	}
	if is, ok := info.Sys().(*syscall.Stat_t); ok && int(is.Uid) == uid && int(is.Gid) == gid {
		return nil
	}
	keeper, snapshots := node.SnapshotDirs("/")
	err = fs.WalkDir(dir.FS(), ".", func(name string, _ fs.DirEntry, err error) error {
		switch {
		case name == filepath.Base(keeper) || name == filepath.Base(snapshots): // root's, and what containers have written
			return fs.SkipDir
		case err != nil || name == ".":
			return err
		}
		return dir.Lchown(name, uid, gid)
	})
	if err != nil {
		return err
	}
	return dir.Lchown(".", uid, gid)
}

// podCheckCmd is a probe of a node whose admin listener only its own pod reaches.
type podCheckCmd struct {
	nodeFlag `embed:""`
	Path     string `arg:"" name:"path" default:"/readyz" help:"What to ask for: /healthz or /readyz."`
}

func (c *podCheckCmd) Run(e *env) error {
	body, err := c.do(e.ctx, http.MethodGet, c.Path)
	if err != nil {
		return err
	}
	return body.Close()
}

const (
	awaitEvery = time.Second
	awaitCalm  = 3 // looks in a row that must agree
)

// podAwaitCmd waits for a pod on each node, as far as DNS tells of pods: which takes no
// right to ask Kubernetes. What DNS tells may be as old as its servers keep answers: in
// clusters half a minute, in which all may have been fewer, and done those of another time.
type podAwaitCmd struct {
	All   string        `arg:"" name:"all" help:"Name of as many addresses as there are to be, such as a headless service that publishes pods that are not ready."`
	Done  string        `arg:"" name:"done" help:"Name of those that are ready."`
	After time.Duration `default:"35s" help:"How long to look before an answer counts: for longer than DNS servers keep one."`
}

func (c *podAwaitCmd) Run(e *env) error {
	done, all, err := c.await(e.ctx, addresses)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(e.stdout, "%d of %d\n", done, all)
	return err
}

// await looks again and again how many addresses the names have.
func (c *podAwaitCmd) await(ctx context.Context, look func(ctx context.Context, name string) (int, error)) (done, all int, err error) {
	tick := time.NewTicker(awaitEvery)
	defer tick.Stop()
	begin := time.Now()
	for calm := 0; ; {
		var derr error
		all, err = look(ctx, c.All)
		done, derr = look(ctx, c.Done)
		calm++
		if err = errors.Join(err, derr); err != nil || done < all || all == 0 || time.Since(begin) < c.After {
			calm = 0
		}
		if calm == awaitCalm {
			return done, all, nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return done, all, errors.Join(fmt.Errorf("%s has %d addresses, and %s has %d", c.All, all, c.Done, done), err)
		}
	}
}

// addresses counts those that a name stands for. A name that is not there has none.
func addresses(ctx context.Context, name string) (int, error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	found, err := net.DefaultResolver.LookupHost(ctx, name)
	var missing *net.DNSError
	if errors.As(err, &missing) && missing.IsNotFound {
		return 0, nil
	}
	return len(found), err
}

// podRestCmd is the container of a pod that has done its work, and is to be seen.
type podRestCmd struct{}

func (podRestCmd) Run(e *env) error {
	<-e.ctx.Done()
	return nil
}

package main

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/granary-oci/granary/fuse"
	"github.com/granary-oci/granary/proxy"
	"github.com/granary-oci/granary/toc"
)

// mountCmd mounts an image until it is told to stop, or somebody unmounts it.
type mountCmd struct {
	imageFlags  `embed:""`
	stackFlags  `embed:""`
	Prefetch    string  `name:"prefetch" enum:"off,profile,all" default:"profile" help:"What the node fetches before it is read: nothing (off), what earlier runs of the image have read or its layers say is read first (profile), or that and then everything (all)."`
	PrefetchAt  percent `name:"prefetch-all-at" default:"30" placeholder:"PERCENT" help:"Share of the content from which on everything is fetched, unless --prefetch is off."`
	Passthrough string  `name:"passthrough" default:"auto" enum:"auto,off" help:"Whether the kernel reads large files that are complete on disk by itself: where it can (auto), or never (off). With it one overlay can be laid over the mount; off is for an overlay over that, and for file systems that are mounted from files in it."`
	Dir         string  `arg:"" name:"dir" help:"Empty directory to mount the image at."`
}

func (c *mountCmd) Run(e *env) error {
	if _, err := fuse.Prepare(c.Dir); err != nil { // before anything is waited for
		return err
	}
	if err := c.checkStack(); err != nil {
		return err
	}
	img, done, err := c.locate(e)
	if err != nil {
		return err
	}
	defer done()
	s := newSession(img, c.Dir, c.connect(e, img))
	s.prefetch, s.rest, s.kernel = c.Prefetch != "off", c.Prefetch == "all", c.KernelMounts
	var beside sync.WaitGroup
	defer beside.Wait()
	ctx, cancel := context.WithCancel(context.WithoutCancel(e.ctx))
	defer cancel()
	beside.Go(func() { s.run(ctx) })
	sent := &nodeContents{img: img, connect: c.connect(e, img), mount: s.id}
	contents, files, stop := c.local(e, sent)
	defer stop()
	fsys, names, err := c.fileSystem(e, img, sent, contents, files)
	if err != nil {
		return fmt.Errorf("%s: %w", img.want, err)
	}
	if c.Prefetch == "profile" {
		beside.Go(func() { s.watch(ctx, fsys.Usage, int(c.PrefetchAt)) })
	}
	begin := time.Now()
	err = fsys.Serve(e.ctx, c.Dir, func() {
		fmt.Fprintf(e.stdout, "%s: mounted at %s: %s, %s of content\n", img.want, c.Dir, names, bytesText(fsys.Usage().Content))
	})
	if err != nil {
		return err
	}
	fmt.Fprintf(e.stdout, "%s: unmounted after %v: %s\n", img.want, time.Since(begin).Round(time.Second), usageText(fsys.Usage()))
	if came, err := s.now(ctx); err != nil {
		fmt.Fprintf(e.stderr, "%s: the node does not say where bytes came from: %v\n", img.want, err)
	} else {
		fmt.Fprintf(e.stdout, "%s: read: %s\n%s: fetched ahead: %s\n", img.want, travelText(came.Demanded), img.want, travelText(came.Ahead))
	}
	return nil
}

// mountable is an image that can be mounted.
type mountable interface {
	Serve(ctx context.Context, dir string, mounted func()) error
	Usage() fuse.Usage
}

// fileSystem returns the image as it is to be mounted, and says what is in it. What is not
// in files is sent by the node.
func (c *mountCmd) fileSystem(e *env, img *image, sent *nodeContents, contents fuse.Contents, files fuse.Files) (f mountable, names string, err error) {
	if c.wanted() {
		if s, names, err := c.stack(e, img, sent, contents, files); s != nil || err != nil {
			return s, names, err
		}
	}
	fmt.Fprintf(e.stderr, "%s: waiting for the tables of contents of %d layers\n", img.want, len(img.layers))
	t, err := img.wait(e)
	if err != nil {
		return nil, "", err
	}
	f, err = fuse.New(fuse.Config{Tree: t, Contents: contents, Files: files, Source: img.want.String(), Log: e.log})
	return f, fmt.Sprintf("%d names", t.Len()), err
}

// wait reads the tables of all layers, and lays them over each other.
func (img *image) wait(e *env) (*toc.Tree, error) {
	if err := img.read(e.ctx); err != nil {
		return nil, err
	}
	return img.tree()
}

// travelText says where bytes came from.
func travelText(t proxy.Travelled) string {
	text := fmt.Sprintf("%s from upstream, %s from members, %s from disk, %s from memory", bytesText(t.Upstream), bytesText(t.Peer), bytesText(t.Disk), bytesText(t.Memory))
	if t.Parent > 0 {
		text = bytesText(t.Parent) + " from parents, " + text
	}
	if t.Layout > 0 {
		text = bytesText(t.Layout) + " from layouts, " + text
	}
	return text
}

// usageText says what of an image was read.
func usageText(u fuse.Usage) string {
	share := 100 * float64(u.Fetched) / float64(max(u.Content, 1))
	return fmt.Sprintf("%s were read; %s of %s of content came, which is %.1f %%", bytesText(u.Read), bytesText(u.Fetched), bytesText(u.Content), share)
}

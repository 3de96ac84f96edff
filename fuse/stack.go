package fuse

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"time"

	"github.com/granary-oci/granary/toc"
)

// Layer is one layer of a [Stack]: one of the two.
type Layer struct {
	// Tree is what overlayfs is to see of the layer, as [toc.Lowers] gives it.
	Tree *toc.Tree
	// Image is an image of a file system, which the kernel mounts.
	Image *Image
}

// Image is a layer that is an image of a file system.
type Image struct {
	Name   string // in the stack alone; at most 180 bytes, and no slash
	Format toc.Format
	Size   int64 // bytes
}

const maxImageName = 180

func (i *Image) valid() bool {
	named := i.Name != "" && i.Name != "." && i.Name != ".." && len(i.Name) <= maxImageName && !strings.ContainsAny(i.Name, "/\x00")
	return named && i.Size >= 0 && (i.Format == toc.EROFS || i.Format == toc.Squashfs)
}

// StackConfig says what is stacked, and how.
type StackConfig struct {
	// Layers are those of the image, the lowest first.
	Layers []Layer
	// Contents are the contents of the trees' files, and Files see [Config].
	Contents Contents
	Files    Files
	// Images are the bytes of images: files of their names.
	Images Contents
	// Upper is a directory that what is written is kept in, in its directory "upper";
	// "work" beside it is overlayfs's own. If it is empty, nothing can be written.
	Upper string
	// Assembler is the command that calls [Assemble] with its standard input.
	Assembler []string
	// AssembleTimeout bounds how long that may take. 0 is 5 minutes.
	AssembleTimeout time.Duration

	Source      string        // see [Config]
	ReadTimeout time.Duration // see [Config]
	Log         *slog.Logger  // see [Config]
}

// withDefaults returns c with its zeros replaced.
func (c StackConfig) withDefaults() StackConfig {
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if c.AssembleTimeout <= 0 {
		c.AssembleTimeout = 5 * time.Minute
	}
	return c
}

// Stack is an image whose layers are mounted one by one, and laid over each other by
// overlayfs: those that are images of file systems by the kernel itself, out of files
// that are served like the contents of all others.
//
// Whoever made such an image has the kernel read what they like, as root.
type Stack struct {
	cfg    StackConfig
	images *FileSystem // nil if there are none
	trees  []*FileSystem
	giveUp context.CancelFunc // all reads, those that are waited for too
}

// until are contents that can be read until a context ends.
type until struct {
	Contents
	end context.Context
}

// ReadAt implements [Contents].
func (u *until) ReadAt(ctx context.Context, f *toc.File, p []byte, off int64) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(u.end, cancel)()
	return u.Contents.ReadAt(ctx, f, p, off)
}

// NewStack returns the stack that cfg describes.
func NewStack(cfg StackConfig) (*Stack, error) {
	cfg = cfg.withDefaults()
	end, giveUp := context.WithCancel(context.Background())
	s := &Stack{cfg: cfg, giveUp: giveUp}
	var images []*Image
	for i, l := range cfg.Layers {
		switch {
		case l.Tree != nil && l.Image == nil:
			f, err := s.fileSystem(l.Tree, &until{cfg.Contents, end}, cfg.Files)
			if err != nil {
				return nil, err
			}
			s.trees = append(s.trees, f)
		case l.Tree == nil && l.Image != nil && l.Image.valid():
			images = append(images, l.Image)
		default:
			return nil, fmt.Errorf("fuse: layer %d is neither a tree nor an image", i+1)
		}
	}
	if len(cfg.Layers) == 0 || len(cfg.Assembler) == 0 {
		return nil, errors.New("fuse: a stack without layers, or without an assembler")
	}
	if len(images) == 0 {
		return s, nil
	}
	tree, err := blobTree(images)
	if err != nil {
		return nil, err
	}
	// With passthrough the kernel would mount no file of it (EROFS, fileio.c): too many
	// file systems would be over each other.
	s.images, err = s.fileSystem(tree, &until{&pieces{from: cfg.Images}, end}, nil)
	return s, err
}

func (s *Stack) fileSystem(t *toc.Tree, from Contents, files Files) (*FileSystem, error) {
	return New(Config{Tree: t, Contents: from, Files: files, Source: s.cfg.Source, ReadTimeout: s.cfg.ReadTimeout, Log: s.cfg.Log})
}

// Usage returns what has been read so far: of images, their bytes.
func (s *Stack) Usage() (all Usage) {
	for _, f := range s.all() {
		u := f.Usage()
		all.Read, all.Fetched, all.Content = all.Read+u.Read, all.Fetched+u.Fetched, all.Content+u.Content
	}
	return all
}

func (s *Stack) all() []*FileSystem {
	if s.images == nil {
		return s.trees
	}
	return append([]*FileSystem{s.images}, s.trees...)
}

// Serve is that of [FileSystem], which takes root.
func (s *Stack) Serve(ctx context.Context, dir string, mounted func()) error {
	if os.Geteuid() != 0 {
		return errors.New("only root may have the kernel mount layers")
	}
	dir, err := Prepare(dir)
	if err != nil {
		return err
	}
	life, err := newLife()
	if err != nil {
		return err
	}
	defer life.end()
	serving, err := s.serve()
	defer serving.end()
	if err == nil {
		err = s.mount(ctx, dir, life, serving)
	}
	if err != nil {
		return fmt.Errorf("mount %s: %w", dir, err)
	}
	mounted()
	select {
	case <-serving.ended:
		return nil
	case <-ctx.Done():
	}
	err = takeAway(dir, s.cfg.Log)
	if err == nil {
		<-serving.ended
	}
	return err
}

// mount mounts the stack at a directory.
func (s *Stack) mount(ctx context.Context, dir string, l *life, v *serving) error {
	defer v.release()
	top, err := s.assemble(ctx, l, v)
	if err != nil {
		return err
	}
	defer top.Close()
	return attach(top, dir)
}

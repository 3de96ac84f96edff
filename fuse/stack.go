package fuse

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	gofuse "github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

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
	// Contents are the contents of the trees' files.
	Contents Contents
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
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.AssembleTimeout <= 0 {
		cfg.AssembleTimeout = 5 * time.Minute
	}
	end, giveUp := context.WithCancel(context.Background())
	s := &Stack{cfg: cfg, giveUp: giveUp}
	var images []*Image
	for i, l := range cfg.Layers {
		switch {
		case l.Tree != nil && l.Image == nil:
			f, err := s.fileSystem(l.Tree, &until{cfg.Contents, end})
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
	s.images, err = s.fileSystem(tree, &until{&pieces{from: cfg.Images}, end})
	return s, err
}

func (s *Stack) fileSystem(t *toc.Tree, from Contents) (*FileSystem, error) {
	return New(Config{Tree: t, Contents: from, Source: s.cfg.Source, ReadTimeout: s.cfg.ReadTimeout, Log: s.cfg.Log})
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
	if err != nil {
		return err
	}
	top, err := s.assemble(ctx, life, serving)
	if err == nil {
		err = attach(top, dir)
		_ = top.Close()
	}
	serving.release()
	if err != nil {
		return fmt.Errorf("mount %s: %w", dir, err)
	}
	mounted()
	select {
	case <-serving.ended:
		return nil
	case <-ctx.Done():
	}
	if err := takeAway(dir, s.cfg.Log); err != nil {
		return err
	}
	<-serving.ended
	return nil
}

// serving are file systems that are served, and mounts of them.
type serving struct {
	mounts []*os.File
	ended  chan struct{} // closed when nobody has any of them mounted, nor uses it
}

// serve begins to serve all file systems, which are mounted nowhere.
func (s *Stack) serve() (v *serving, err error) {
	v = &serving{ended: make(chan struct{})}
	var all sync.WaitGroup
	for _, f := range s.all() {
		mnt, server, ferr := f.apart()
		if err = wrap("fuse", ferr); err != nil {
			break
		}
		v.mounts = append(v.mounts, mnt)
		all.Go(server.Serve)
	}
	go func() { defer close(v.ended); all.Wait() }()
	return v, err
}

// release leaves the file systems to whoever has mounted them.
func (v *serving) release() {
	for _, m := range v.mounts {
		_ = m.Close()
	}
	v.mounts = nil
}

// end waits for a moment for what is not mounted to end. What an assembler that does not
// end keeps ends with this process.
func (v *serving) end() {
	v.release()
	select {
	case <-v.ended:
	case <-time.After(endPatience):
	}
}

// endPatience is how long is waited for an assembler that was killed.
const endPatience = 5 * time.Second

// apart makes the file system known to the kernel, and returns a mount of it.
func (f *FileSystem) apart() (mnt *os.File, server *gofuse.Server, err error) {
	device, err := unix.Open("/dev/fuse", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("/dev/fuse: %w", err)
	}
	c := openFS("fuse")
	for _, o := range [][2]string{
		{"source", cut(f.cfg.Source, maxSource)}, {"subtype", fsName}, {"fd", fmt.Sprint(device)}, {"rootmode", fmt.Sprintf("%o", unix.S_IFDIR)},
		{"user_id", "0"}, {"group_id", "0"}, {"max_read", fmt.Sprint(requestSize)},
	} {
		c.set(o[0], o[1])
	}
	for _, flag := range []string{"default_permissions", "allow_other", "ro"} {
		c.flag(flag)
	}
	if mnt, err = c.mount(untrusted | unix.MOUNT_ATTR_RDONLY); err != nil {
		return nil, nil, errors.Join(err, unix.Close(device))
	}
	if server, err = gofuse.NewServer(f, fmt.Sprintf("/dev/fd/%d", device), f.options()); err != nil {
		return nil, nil, errors.Join(err, mnt.Close())
	}
	return mnt, server, nil
}

// assemble has another process lay the layers over each other, and returns the mount.
func (s *Stack) assemble(ctx context.Context, l *life, v *serving) (*os.File, error) {
	ctx, cancel := context.WithTimeout(ctx, s.cfg.AssembleTimeout)
	defer cancel()
	a := assembly{Work: l.path, Source: s.cfg.Source, Images: s.images != nil}
	if s.cfg.Upper != "" {
		upper, err := filepath.Abs(s.cfg.Upper)
		if err != nil {
			return nil, err
		}
		a.Upper = upper
	}
	for _, layer := range s.cfg.Layers {
		p := part{}
		if layer.Image != nil {
			p = part{layer.Image.Format, layer.Image.Name}
		}
		a.Layers = append(a.Layers, p)
	}
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	ours, theirs := os.NewFile(uintptr(pair[0]), "socket"), os.NewFile(uintptr(pair[1]), "socket")
	defer ours.Close()
	err = s.run(ctx, a, append([]*os.File{theirs}, v.mounts...))
	_ = theirs.Close()
	if err != nil {
		return nil, err
	}
	return receive(ours)
}

// run runs the assembler. One that is killed may wait for what cannot be interrupted: a
// loop device that reads. It does not wait for one that cannot be killed.
func (s *Stack) run(ctx context.Context, a assembly, files []*os.File) error {
	in, err := json.Marshal(a)
	if err != nil {
		return err
	}
	var said bytes.Buffer
	cmd := exec.CommandContext(ctx, s.cfg.Assembler[0], s.cfg.Assembler[1:]...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr, cmd.ExtraFiles = bytes.NewReader(in), &said, &said, files
	cmd.WaitDelay = time.Second
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		return err
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	select {
	case err = <-ended:
	case <-ctx.Done():
		s.giveUp()
		select {
		case err = <-ended:
		case <-time.After(endPatience):
			return fmt.Errorf("process %d, which mounts the layers, does not end: %w", cmd.Process.Pid, ctx.Err())
		}
	}
	switch text := strings.TrimSpace(said.String()); {
	case ctx.Err() != nil && err != nil:
		return fmt.Errorf("mounting the layers: %w", ctx.Err())
	case err != nil && text != "":
		return errors.New(text)
	default:
		return err
	}
}

// receive returns the mount that an assembler which has ended has sent.
func receive(from *os.File) (*os.File, error) {
	p, rights := make([]byte, 1), make([]byte, unix.CmsgSpace(4))
	_, n, _, _, err := unix.Recvmsg(int(from.Fd()), p, rights, unix.MSG_DONTWAIT|unix.MSG_CMSG_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("the mount of the layers: %w", err)
	}
	messages, err := unix.ParseSocketControlMessage(rights[:n])
	if err == nil && len(messages) == 1 {
		fds, err := unix.ParseUnixRights(&messages[0])
		if err == nil && len(fds) == 1 {
			return os.NewFile(uintptr(fds[0]), "stack"), nil
		}
	}
	return nil, errors.Join(errors.New("the mount of the layers was not sent"), err)
}

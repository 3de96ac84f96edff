package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"slices"
	"strings"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"

	"github.com/granary-oci/granary/fuse"
	"github.com/granary-oci/granary/proxy/upstream"
	"github.com/granary-oci/granary/toc"
)

// stackFlags are those of mounts that take more of the kernel than FUSE.
type stackFlags struct {
	KernelMounts bool   `name:"kernel-mounts" help:"Have the kernel mount EROFS and squashfs layers itself, which takes root: whoever made the image has it read what they like."`
	Upper        string `name:"upper" placeholder:"DIR" help:"Keep in this directory what is written to the mount, which takes root; otherwise nothing can be written."`
}

func (f *stackFlags) wanted() bool { return f.KernelMounts || f.Upper != "" }

// check looks at what can be known before anything is waited for.
func (f *stackFlags) check() error {
	if f.wanted() && os.Geteuid() != 0 {
		return errors.New("--kernel-mounts and --upper take root")
	}
	if f.Upper == "" {
		return nil
	}
	info, err := os.Stat(f.Upper)
	if err == nil && !info.IsDir() {
		err = fmt.Errorf("%s is not a directory", f.Upper)
	}
	if err != nil {
		return fmt.Errorf("--upper: %w", err)
	}
	return nil
}

// assembleCmd is what a mount starts, see [fuse.Assemble].
type assembleCmd struct{}

// Run implements the command.
func (assembleCmd) Run() error { return fuse.Assemble(os.Stdin) }

// stack returns the image as a stack of what is mounted layer by layer, or nil if that
// takes no stack.
func (c *mountCmd) stack(e *env, img *image, sent *nodeContents, contents fuse.Contents) (mountable, string, error) {
	formats := make([]toc.Format, len(img.layers)) // "" is one that the kernel does not mount
	if c.KernelMounts {
		if err := img.recognize(e.ctx, sent, formats); err != nil {
			return nil, "", err
		}
	}
	images := len(formats) - count(formats, "")
	if images == 0 && c.Upper == "" {
		return nil, "", nil
	}
	layers, err := img.stacked(e, formats)
	if err != nil {
		return nil, "", err
	}
	s, err := fuse.NewStack(fuse.StackConfig{
		Layers: layers, Contents: contents, Images: blobContents{sent}, Upper: c.Upper,
		Assembler: []string{"/proc/self/exe", "assemble-mount"}, Source: img.want.String(), Log: e.log,
	})
	return s, fmt.Sprintf("%d layers, %d of them mounted by the kernel", len(formats), images), err
}

func count(formats []toc.Format, f toc.Format) (n int) {
	for _, x := range formats {
		if x == f {
			n++
		}
	}
	return n
}

// recognize finds the layers that the kernel can mount, by their first bytes.
func (img *image) recognize(ctx context.Context, contents *nodeContents, formats []toc.Format) error {
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(parallel)
	for i, l := range img.layers {
		g.Go(func() error {
			all, err := toc.Recognize(&blobReader{ctx, blobContents{contents}, imageOf(i, l)}, l.Size)
			if err != nil {
				return explained(err)
			}
			if f := all[0]; f == toc.EROFS || f == toc.Squashfs {
				formats[i] = f
			}
			return nil
		})
	}
	return g.Wait()
}

// stacked returns the layers of a stack. Those that the kernel mounts are asked for their
// tables only if others are over them, which may refer to what is in them.
func (img *image) stacked(e *env, formats []toc.Format) ([]fuse.Layer, error) {
	last := -1 // of those that the kernel does not mount
	for i, f := range formats {
		if f == "" {
			last = i
		}
	}
	fmt.Fprintf(e.stderr, "%s: waiting for the tables of contents of %d layers\n", img.want, last+1)
	if err := img.readFor(e.ctx, formats, last+1); err != nil {
		return nil, err
	}
	if !slices.ContainsFunc(formats, func(f toc.Format) bool { return f != "" }) {
		all, err := img.tree()
		if err != nil {
			return nil, err
		}
		return []fuse.Layer{{Tree: all.Lowest()}}, nil
	}
	var known []*toc.Layer
	for _, t := range img.tables {
		known = append(known, t.Layer)
	}
	trees, err := toc.Lowers(known)
	if err != nil {
		return nil, err
	}
	layers := make([]fuse.Layer, len(trees))
	for i, f := range formats {
		if f == "" {
			layers[i].Tree = trees[i]
			continue
		}
		image := imageOf(i, img.layers[i])
		image.Format = f
		layers[i].Image = image
	}
	return layers, nil
}

// readFor gets the tables of the lowest n layers. Of layers that the kernel mounts there
// may be none.
func (img *image) readFor(ctx context.Context, formats []toc.Format, n int) error {
	img.tables = make([]*table, len(img.layers))
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(parallel)
	for i, l := range img.layers {
		img.tables[i] = &table{desc: l}
		if i >= n {
			continue
		}
		g.Go(func() error {
			t, err := img.table(ctx, l)
			switch {
			case err == nil:
				img.tables[i] = t
			case formats[i] != "" && unreadable(err):
			default:
				return err
			}
			return nil
		})
	}
	return g.Wait()
}

// unreadable reports whether an error is that the node cannot make sense of a layer.
func unreadable(err error) bool {
	var said *upstream.StatusError
	return errors.As(err, &said) && said.Code == http.StatusUnprocessableEntity
}

// imageOf returns a layer as the kernel mounts it, under a name that [blobOf] understands.
func imageOf(i int, l ocispec.Descriptor) *fuse.Image {
	return &fuse.Image{Name: fmt.Sprintf("%d-%s", i+1, l.Digest), Size: l.Size}
}

// blobContents are layers as they are: files of the names that [imageOf] gives.
type blobContents struct{ *nodeContents }

// ReadAt implements [fuse.Contents].
func (b blobContents) ReadAt(ctx context.Context, f *toc.File, p []byte, off int64) error {
	return b.persist(ctx, func(from *upstream.Repository) error {
		return b.getRange(ctx, from, "blobs/"+string(blobOf(f.Name)), nil, f, p, off)
	})
}

// blobOf returns the digest of the layer that has a name.
func blobOf(name string) digest.Digest {
	_, d, _ := strings.Cut(name, "-")
	return digest.Digest(d)
}

// blobReader reads one layer.
type blobReader struct {
	ctx   context.Context
	from  blobContents
	image *fuse.Image
}

// ReadAt implements [io.ReaderAt].
func (r *blobReader) ReadAt(p []byte, off int64) (int, error) {
	n := int(min(int64(len(p)), r.image.Size-off))
	if n <= 0 {
		return 0, io.EOF
	}
	f := &toc.File{Entry: toc.Entry{Name: r.image.Name, Size: r.image.Size}}
	if err := r.from.ReadAt(r.ctx, f, p[:n], off); err != nil {
		return 0, err
	}
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

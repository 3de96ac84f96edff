package main

import (
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"iter"
	"maps"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"
	"unicode"

	"github.com/opencontainers/go-digest"

	"github.com/granary-oci/granary/toc"
)

// tocCmd shows an image's layers.
type tocCmd struct {
	imageFlags `embed:""`
	JSON       bool `name:"json" help:"Print the tables themselves, as JSON: a line for each layer."`
}

func (c *tocCmd) Run(e *env) error {
	img, done, err := c.open(e)
	if err != nil {
		return err
	}
	defer done()
	if c.JSON {
		for _, t := range img.tables {
			if err := toc.EncodeJSON(e.stdout, t.TOC); err != nil {
				return err
			}
			fmt.Fprintln(e.stdout)
		}
		return nil
	}
	w := tabwriter.NewWriter(e.stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "LAYER\tSIZE\tFORMAT\tENTRIES\tCONTENT\tCHECKED BY\tMEDIA TYPE")
	for _, t := range img.tables {
		size := int64(0)
		for e := range t.All() {
			size += e.Size
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%d\t%s\t%s\t%s\n", t.desc.Digest, bytesText(t.desc.Size), t.format, t.Len(), bytesText(size), t.verified, printable(t.desc.MediaType))
	}
	return w.Flush()
}

// lsCmd lists files.
type lsCmd struct {
	imageFlags `embed:""`
	Path       string `arg:"" name:"path" optional:"" default:"/" help:"What to list."`
	Long       bool   `name:"long" short:"l" help:"Show type, mode, links, owner, size, time and target."`
	Recursive  bool   `name:"recursive" short:"R" help:"List all that is below, by full path."`
	JSON       bool   `name:"json" help:"Print a line of JSON for each file."`
}

func (c *lsCmd) Run(e *env) error {
	return c.look(e, func(img *image, t *toc.Tree) error { return c.print(e, img, t) })
}

func (c *lsCmd) print(e *env, img *image, t *toc.Tree) error {
	f, err := t.Resolve(c.Path, true)
	if err != nil {
		return err
	}
	w := tabwriter.NewWriter(e.stdout, 0, 0, 1, ' ', tabwriter.AlignRight)
	for f := range c.list(t, f) {
		switch {
		case c.JSON:
			err = json.NewEncoder(e.stdout).Encode(describe(img, f))
		case c.Long:
			_, err = fmt.Fprintf(w, "%s\t%d\t%d\t%d\t%s\t%s\t %s\n", lsMode(f), f.Links, f.UID, f.GID, sizeColumn(f), f.ModTime.UTC().Format("2006-01-02 15:04"), c.name(f))
		default:
			_, err = fmt.Fprintln(e.stdout, c.name(f))
		}
		if err != nil {
			return err
		}
	}
	return w.Flush()
}

// list returns what is to be listed for a file.
func (c *lsCmd) list(t *toc.Tree, f toc.File) iter.Seq[toc.File] {
	return func(yield func(toc.File) bool) {
		switch {
		case f.Type != toc.Directory:
			yield(f)
		case c.Recursive:
			for below := range t.Below(f.Name) {
				if !yield(below) {
					return
				}
			}
		default:
			for child := range t.Children(f.Name) {
				if !yield(child) {
					return
				}
			}
		}
	}
}

// name returns a file's name as it is listed.
func (c *lsCmd) name(f toc.File) string {
	name := f.Base()
	if c.Recursive {
		name = "/" + f.Name
	}
	name = printable(name)
	switch {
	case c.Long && f.Type == toc.Symlink:
		name += " -> " + printable(f.Link)
	case c.Long && f.Type == toc.Hardlink:
		name += " link to " + printable(f.Link)
	}
	return name
}

// printable returns s with what would command a terminal made visible.
func printable(s string) string {
	if strings.IndexFunc(s, func(r rune) bool { return !unicode.IsPrint(r) }) < 0 {
		return s
	}
	quoted := strconv.QuoteToGraphic(s)
	return quoted[1 : len(quoted)-1]
}

// lsMode returns a file's type and mode as ls(1) shows them.
func lsMode(f toc.File) string {
	kinds := map[toc.Type]byte{toc.Directory: 'd', toc.Regular: '-', toc.Symlink: 'l', toc.CharDevice: 'c', toc.BlockDevice: 'b', toc.FIFO: 'p', toc.Hardlink: 'h'}
	text := []byte{kinds[f.Type]}
	for i, c := range "rwxrwxrwx" {
		if f.Mode&(1<<(8-i)) == 0 {
			c = '-'
		}
		text = append(text, byte(c))
	}
	for i, bit := range []uint32{0o4000, 0o2000, 0o1000} {
		if f.Mode&bit == 0 {
			continue
		}
		at := 3 + 3*i
		mark := "sst"[i]
		if text[at] == '-' {
			mark -= 'a' - 'A'
		}
		text[at] = mark
	}
	return string(text)
}

func sizeColumn(f toc.File) string {
	if f.Type == toc.CharDevice || f.Type == toc.BlockDevice {
		return fmt.Sprintf("%d,%d", f.Major, f.Minor)
	}
	return strconv.FormatInt(max(f.Size, int64(len(f.Link))), 10)
}

// catCmd writes files' contents.
type catCmd struct {
	imageFlags `embed:""`
	Paths      []string `arg:"" name:"path" help:"Files to write."`
}

func (c *catCmd) Run(e *env) error {
	return c.look(e, func(img *image, t *toc.Tree) error {
		for _, path := range c.Paths {
			f, err := t.Resolve(path, true)
			if err != nil {
				return err
			}
			if f.Type != toc.Regular {
				return fmt.Errorf("%q is a %v, which has no content", path, f.Type)
			}
			if err := img.write(e, f); err != nil {
				return fmt.Errorf("%q: %w", path, err)
			}
		}
		return nil
	})
}

// write writes a file's content to the standard output.
func (img *image) write(e *env, f toc.File) error {
	query := img.query()
	query.Set("path", f.Source)
	resp, err := img.from.Get(e.ctx, "_granary/file/"+string(img.layerOf(f)), query, nil)
	if err != nil {
		return explained(err)
	}
	defer resp.Body.Close()
	sum := sha256.New()
	n, err := io.Copy(io.MultiWriter(e.stdout, sum), resp.Body)
	switch {
	case err != nil:
		return err
	case n != f.Size:
		return fmt.Errorf("%d bytes came of %d", n, f.Size)
	case f.Digest.Known() && toc.Digest(sum.Sum(nil)) != f.Digest:
		return fmt.Errorf("what came does not match %s", f.Digest)
	}
	return nil
}

// statCmd shows all that is known of files.
type statCmd struct {
	imageFlags `embed:""`
	Paths      []string `arg:"" name:"path" help:"Files to show; symlinks are not followed."`
	JSON       bool     `name:"json" help:"Print a line of JSON for each file."`
}

func (c *statCmd) Run(e *env) error {
	return c.look(e, func(img *image, t *toc.Tree) error {
		for _, path := range c.Paths {
			f, err := t.Resolve(path, false)
			if err != nil {
				return err
			}
			if c.JSON {
				err = json.NewEncoder(e.stdout).Encode(describe(img, f))
			} else {
				err = show(e.stdout, describe(img, f))
			}
			if err != nil {
				return err
			}
		}
		return nil
	})
}

// fileJSON is a file as commands print it.
type fileJSON struct {
	Name    string            `json:"name"`
	Type    string            `json:"type"`
	Mode    string            `json:"mode"` // octal
	UID     uint32            `json:"uid"`
	GID     uint32            `json:"gid"`
	Size    int64             `json:"size"`
	ModTime time.Time         `json:"modtime"`
	Links   int               `json:"links"`
	Inode   uint64            `json:"inode"` // the same for all names of a file
	Link    string            `json:"link,omitempty"`
	Major   uint32            `json:"major,omitempty"`
	Minor   uint32            `json:"minor,omitempty"`
	Xattrs  map[string][]byte `json:"xattrs,omitempty"` // values in base64
	Digest  digest.Digest     `json:"digest,omitempty"`
	Extents int               `json:"extents,omitempty"`
	Layer   digest.Digest     `json:"layer"`
}

func describe(img *image, f toc.File) fileJSON {
	j := fileJSON{
		Name: "/" + f.Name, Type: f.Type.String(), Mode: fmt.Sprintf("%04o", f.Mode), UID: f.UID, GID: f.GID, Size: f.Size,
		ModTime: f.ModTime, Links: f.Links, Inode: f.Inode, Link: f.Link, Major: f.Major, Minor: f.Minor,
		Digest: f.Digest.OCI(), Extents: len(f.Extents), Layer: img.layerOf(f),
	}
	for k, v := range f.Xattrs {
		if j.Xattrs == nil {
			j.Xattrs = make(map[string][]byte)
		}
		j.Xattrs[k] = []byte(v)
	}
	return j
}

// show prints a file for people.
func show(w io.Writer, j fileJSON) error {
	out := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	line := func(name, value string) { fmt.Fprintf(out, "%s\t%s\n", name, printable(value)) }
	line("name", j.Name)
	line("type", j.Type)
	if j.Link != "" {
		line("target", j.Link)
	}
	if j.Type == "char" || j.Type == "block" {
		line("device", fmt.Sprintf("%d,%d", j.Major, j.Minor))
	}
	line("mode", j.Mode)
	line("owner", fmt.Sprintf("%d:%d", j.UID, j.GID))
	line("size", strconv.FormatInt(j.Size, 10))
	line("modified", j.ModTime.Format(time.RFC3339Nano))
	line("links", strconv.Itoa(j.Links))
	for _, name := range slices.Sorted(maps.Keys(j.Xattrs)) {
		line("xattr "+name, strconv.QuoteToGraphic(string(j.Xattrs[name])))
	}
	if j.Digest != "" {
		line("digest", string(j.Digest))
	}
	line("extents", strconv.Itoa(j.Extents))
	line("layer", string(j.Layer))
	return out.Flush()
}

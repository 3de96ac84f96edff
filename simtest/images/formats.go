package images

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"os/exec"

	"github.com/containerd/stargz-snapshotter/estargz"
	"github.com/opencontainers/go-digest"
)

// Built is what there is to say of a layer in eStargz.
type Built struct{ TOC, DiffID digest.Digest }

// Stargz writes a layer, of which from is the tar, with the module of stargz-snapshotter.
func Stargz(from string, to io.Writer, options ...estargz.Option) (Built, error) {
	f, err := os.Open(from)
	if err != nil {
		return Built{}, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return Built{}, err
	}
	blob, err := estargz.Build(io.NewSectionReader(f, 0, info.Size()), append(options, estargz.WithAllowPrioritizeNotFound(new([]string)))...)
	if err != nil {
		return Built{}, err
	}
	defer blob.Close()
	if _, err := io.Copy(to, blob); err != nil {
		return Built{}, err
	}
	return Built{blob.TOCDigest(), blob.DiffID()}, nil
}

// Unpack unpacks tars over each other, which have no whiteouts.
func Unpack(from, dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	out, err := exec.Command("tar", "-x", "-p", "--numeric-owner", "--xattrs", "--xattrs-include=*", "-C", dir, "-f", from).CombinedOutput()
	if err != nil {
		return fmt.Errorf("unpack %s: %w\n%s", from, err, bytes.TrimSpace(out))
	}
	return nil
}

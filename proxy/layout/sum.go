package layout

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"

	"github.com/granary-oci/granary/chunkstore/chunk"
)

// Of a layer that is compressed in an archive as `docker save` writes them, the config has the
// digest of what it is when it is decompressed. Where nothing says which one it has as it lies
// there, it is read to the end once, before anything of the archive is given out, and what comes
// of decompressing it is held against the config.

// unsummed says that the digest of a layer has to be found out.
type unsummed struct {
	key    string
	at     span
	diffID digest.Digest
	how    string // it is compressed
}

func (u *unsummed) Error() string {
	return fmt.Sprintf("layout: %s: nothing says its digest", u.at.entry)
}

// sums are digests of layers of an archive, by where they begin.
type sums struct {
	key   string
	known map[int64]digest.Digest
}

// sumsKey is another one for each version of an archive. That of one which has just changed
// holds for no later one, with which it may share its stamp.
func sumsKey(info fs.FileInfo) string {
	if v := version(info); v != "" {
		return v
	}
	return "recent " + stamp(info)
}

func (s *sums) of(key string) map[int64]digest.Digest {
	if s.key != key {
		*s = sums{key, make(map[int64]digest.Digest)}
	}
	return s.known
}

// opening is await for what opens a file. What has to be found out of an archive before it can be
// opened may take longer than a single operation.
func opening[T any](ctx context.Context, d *Dir, name string, do func() (T, error)) (T, error) {
	for {
		v, err := await(ctx, d, name, do)
		var u *unsummed
		if !errors.As(err, &u) {
			return v, err
		}
		if err := d.sum(ctx, u); err != nil {
			return v, err
		}
	}
}

// sum finds out the digest of a layer, unless the archive has changed meanwhile.
func (d *Dir) sum(ctx context.Context, u *unsummed) error {
	_, err := d.checks.Do(ctx, fmt.Sprint(u.key, " ", u.at.base), checkFor, func(ctx context.Context) (any, error) {
		file, err := await(ctx, d, savedFile, func() (*os.File, error) {
			file, info, err := d.tar.openWhole()
			if err == nil && sumsKey(info) != u.key {
				file.Close()
				file = nil
			}
			return file, err
		})
		if err != nil || file == nil {
			return nil, err
		}
		defer file.Close()
		r := &patient{ctx: ctx, dir: d, name: u.at.entry, from: u.at.from(file)}
		sum, err := u.read(r)
		if r.err != nil {
			return nil, r.err
		}
		if err != nil {
			return nil, d.tar.corrupt(u.at.entry, u.diffID, u.at.size, err.Error())
		}
		d.tar.mu.Lock()
		defer d.tar.mu.Unlock()
		d.tar.sums.of(u.key)[u.at.base] = sum
		return nil, nil
	})
	return err
}

// patient reads a file of which each part may take its time.
type patient struct {
	ctx  context.Context
	dir  *Dir
	name string
	from io.Reader
	err  error // of the file system; not that it ends
}

// Read implements [io.Reader].
func (r *patient) Read(p []byte) (int, error) {
	q, err := await(r.ctx, r.dir, r.name, func() ([]byte, error) {
		q := make([]byte, min(len(p), chunk.Size)) // nobody else's: whoever waits may leave before it is filled
		n, err := r.from.Read(q)
		if err == io.EOF || n > 0 {
			return q[:n], nil
		}
		return nil, r.dir.explain(r.name, err)
	})
	if r.err = err; err == nil && len(q) == 0 && len(p) > 0 {
		err = io.EOF
	}
	return copy(p, q), err
}

// read returns the digest of a layer. The error says why it is not what its config names.
func (u *unsummed) read(r io.Reader) (digest.Digest, error) {
	whole, plain := digest.SHA256.Hash(), u.diffID.Algorithm().Hash()
	r = io.TeeReader(bufio.NewReaderSize(r, chunk.Size), whole)
	from, err := decompressor(r, u.how)
	if err != nil {
		return "", err
	}
	defer from.Close()
	if _, err := io.Copy(plain, from); err != nil {
		return "", err
	}
	if _, err := io.Copy(io.Discard, r); err != nil { // what the decompressor leaves
		return "", err
	}
	if got := digest.NewDigest(u.diffID.Algorithm(), plain); got != u.diffID {
		return "", fmt.Errorf("decompressed it has digest %s", got)
	}
	return digest.NewDigest(digest.SHA256, whole), nil
}

// maxWindow is as much of what it has made as a decompressor may look back at, in bytes: what
// zstd takes at the most unless it is told to.
const maxWindow = 128 << 20

func decompressor(r io.Reader, how string) (io.ReadCloser, error) {
	if how == "gzip" {
		return gzip.NewReader(r)
	}
	z, err := zstd.NewReader(r, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(maxWindow))
	if err != nil {
		return nil, err
	}
	return z.IOReadCloser(), nil
}

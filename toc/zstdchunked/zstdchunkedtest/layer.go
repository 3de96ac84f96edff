// Package zstdchunkedtest writes layers in zstd:chunked for tests, in the dialect of
// containers/storage.
package zstdchunkedtest

import (
	"archive/tar"
	"bytes"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
)

// Entry is an entry of a layer's table.
type Entry struct {
	Type        string            `json:"type"`
	Name        string            `json:"name"`
	LinkName    string            `json:"linkName,omitempty"`
	Mode        int64             `json:"mode,omitempty"`
	Size        int64             `json:"size,omitempty"`
	UID         int               `json:"uid,omitempty"`
	GID         int               `json:"gid,omitempty"`
	ModTime     *time.Time        `json:"modtime,omitempty"`
	DevMajor    int64             `json:"devMajor,omitempty"`
	DevMinor    int64             `json:"devMinor,omitempty"`
	Xattrs      map[string]string `json:"xattrs,omitempty"`
	Digest      digest.Digest     `json:"digest,omitempty"`
	Offset      int64             `json:"offset,omitempty"`
	EndOffset   int64             `json:"endOffset,omitempty"`
	ChunkSize   int64             `json:"chunkSize,omitempty"`
	ChunkOffset int64             `json:"chunkOffset,omitempty"`
	ChunkDigest digest.Digest     `json:"chunkDigest,omitempty"`
	ChunkType   string            `json:"chunkType,omitempty"`
}

var types = map[byte]string{
	tar.TypeReg: "reg", tar.TypeDir: "dir", tar.TypeSymlink: "symlink", tar.TypeLink: "hardlink",
	tar.TypeChar: "char", tar.TypeBlock: "block", tar.TypeFifo: "fifo",
}

// Layer returns a tar as a layer whose chunks are of so many bytes, and its annotations.
func Layer(tarball io.Reader, chunk int) (layer []byte, annotations map[string]string, err error) {
	w := &writer{chunk: chunk}
	files := tar.NewReader(tarball)
	for {
		h, err := files.Next()
		if err == io.EOF {
			break
		}
		if err == nil {
			err = w.file(h, files)
		}
		if err != nil {
			return nil, nil, err
		}
	}
	w.frame(make([]byte, 1024)) // the end of the tar
	text, err := json.Marshal(map[string]any{"version": 1, "entries": w.entries})
	if err != nil {
		return nil, nil, err
	}
	layer, annotations = Finish(w.layer, text)
	return layer, annotations, nil
}

// Finish adds a table, whatever it says, to the frames of a layer.
func Finish(frames, table []byte) (layer []byte, annotations map[string]string) {
	packed, split := pack(table), pack([]byte("[]"))
	at := len(frames) + 8
	splitAt := at + len(packed) + 8
	layer = skippable(skippable(frames, packed), split)
	layer = skippable(layer, Footer(int64(at), int64(len(packed)), int64(len(table)), 1, int64(splitAt), int64(len(split)), 2))
	return layer, map[string]string{
		"io.github.containers.zstd-chunked.manifest-checksum": digest.FromBytes(packed).String(),
		"io.github.containers.zstd-chunked.manifest-position": fmt.Sprintf("%d:%d:%d:1", at, len(packed), len(table)),
		"io.github.containers.zstd-chunked.tarsplit-position": fmt.Sprintf("%d:%d:%d", splitAt, len(split), 2),
	}
}

// Footer returns the content of a footer that has these numbers.
func Footer(numbers ...int64) []byte {
	var foot []byte
	for _, n := range numbers {
		foot = binary.LittleEndian.AppendUint64(foot, uint64(n))
	}
	return append(foot, "GNUlInUx"...)
}

// skippable adds a frame that decoders skip.
func skippable(layer, p []byte) []byte {
	layer = append(layer[:len(layer):len(layer)], 0x50, 0x2a, 0x4d, 0x18)
	layer = binary.LittleEndian.AppendUint32(layer, uint32(len(p)))
	return append(layer, p...)
}

func pack(p []byte) []byte {
	z, err := zstd.NewWriter(nil, zstd.WithEncoderConcurrency(1))
	if err != nil {
		panic(err)
	}
	return z.EncodeAll(p, nil)
}

type writer struct {
	chunk   int
	layer   []byte
	entries []Entry
}

// frame adds a frame with p, and returns where it begins.
func (w *writer) frame(p []byte) int64 {
	at := int64(len(w.layer))
	w.layer = append(w.layer, pack(p)...)
	return at
}

// file adds an entry of the tar: a frame with the header, and one for each chunk.
func (w *writer) file(h *tar.Header, r io.Reader) error {
	var head bytes.Buffer
	if err := tar.NewWriter(&head).WriteHeader(h); err != nil {
		return err
	}
	w.frame(head.Bytes())
	content, err := io.ReadAll(r)
	if err != nil {
		return err
	}
	entries := []Entry{entry(h)}
	for at := 0; at < len(content); at += w.chunk {
		p := content[at:min(at+w.chunk, len(content))]
		c := Entry{Type: "chunk", Name: h.Name, ChunkOffset: int64(at), ChunkSize: int64(len(p)), ChunkDigest: digest.FromBytes(p), Offset: w.frame(p)}
		if len(bytes.Trim(p, "\x00")) == 0 {
			c.ChunkType = "zeros"
		}
		entries = append(entries, c)
	}
	w.entries = append(w.entries, merge(entries, content, int64(len(w.layer)))...)
	w.frame(make([]byte, -len(content)&511))
	return nil
}

func entry(h *tar.Header) Entry {
	e := Entry{
		Type: types[h.Typeflag], Name: h.Name, LinkName: h.Linkname, Mode: h.Mode, Size: h.Size, UID: h.Uid, GID: h.Gid,
		ModTime: &h.ModTime, DevMajor: h.Devmajor, DevMinor: h.Devminor,
	}
	for k, v := range h.PAXRecords {
		if name, ok := strings.CutPrefix(k, "SCHILY.xattr."); ok {
			if e.Xattrs == nil {
				e.Xattrs = make(map[string]string)
			}
			e.Xattrs[name] = base64.StdEncoding.EncodeToString([]byte(v))
		}
	}
	return e
}

// merge puts the first chunk into the file's own entry. One that is alone has neither a
// size nor a digest of its own.
func merge(entries []Entry, content []byte, end int64) []Entry {
	if len(entries) == 1 {
		return entries
	}
	file, first := &entries[0], entries[1]
	file.Offset, file.EndOffset, file.Digest = first.Offset, end, digest.FromBytes(content)
	if len(entries) > 2 {
		file.ChunkSize, file.ChunkDigest, file.ChunkType = first.ChunkSize, first.ChunkDigest, first.ChunkType
	}
	return append(entries[:1], entries[2:]...)
}

// Command chunked writes a tar, its standard input, as a layer in zstd:chunked with
// the writer of podman, buildah and skopeo. The layer goes to the standard output,
// and its annotations, as JSON, to the file that is named. It is a module of its
// own, for the library brings much that Granary does not need.
//
//	chunked ANNOTATIONS <TAR >LAYER
package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"

	"github.com/containers/storage/pkg/chunked/compressor"
)

func main() {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: chunked ANNOTATIONS <TAR >LAYER")
		os.Exit(2)
	}
	if err := run(os.Stdin, os.Stdout, os.Args[1]); err != nil {
		fmt.Fprintln(os.Stderr, "chunked:", err)
		os.Exit(1)
	}
}

func run(tar io.Reader, layer io.Writer, file string) error {
	annotations := make(map[string]string)
	w, err := compressor.ZstdCompressor(layer, annotations, nil)
	if err != nil {
		return err
	}
	if _, err := io.Copy(w, tar); err != nil {
		return err
	}
	if err := w.Close(); err != nil {
		return err
	}
	p, err := json.Marshal(annotations)
	if err != nil {
		return err
	}
	return os.WriteFile(file, p, 0o644)
}

package catalog

import (
	"encoding/binary"
	"errors"
	"io"
	"io/fs"
	"os"
)

// checkPages looks for a page of a bbolt file that claims to go on beyond the
// file's end: bbolt believes it, and counts to four billion. A page begins with
// its number (8 bytes), its flags and count (2 each), and how many pages it goes
// on for (4), in the order of the machine (bbolt, internal/common/page.go). A file
// that is not there has nothing wrong.
func checkPages(path string) error {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	size := int64(os.Getpagesize())
	header := make([]byte, 16)
	for i := int64(0); i < info.Size()/size; i++ {
		if _, err := f.ReadAt(header, i*size); err != nil && err != io.EOF {
			return err
		}
		more := int64(binary.NativeEndian.Uint32(header[12:]))
		if binary.NativeEndian.Uint64(header) != uint64(i) {
			continue // within a page, or free; bbolt compares the number too
		}
		if i+more >= info.Size()/size {
			return errors.New("damaged: a page goes on beyond the end")
		}
		i += more
	}
	return nil
}

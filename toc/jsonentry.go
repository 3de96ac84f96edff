package toc

import (
	"bytes"
	"encoding/hex"
	"fmt"
	"math"
	"time"
)

// jsonEntry is an entry of a table as JSON, without what is not needed of it.
type jsonEntry struct {
	name, typ, link        string
	mode, uid, gid         int64
	size, major, minor     int64
	modTime                time.Time
	timed, far             bool  // modTime, seconds are there
	seconds                int64 // in place of modTime's
	xattrs                 map[string]string
	offset, endOffset      int64 // of the layer's bytes
	innerOffset            int64
	chunkOffset, chunkSize int64
	chunkType              string
	digest, chunkDigest    Digest
}

// member reads one member of an entry.
func (e *jsonEntry) member(j *jsonReader, key []byte) {
	switch string(key) {
	case "name":
		e.name = string(j.text())
	case "type":
		e.typ = typeName(j.text())
	case "linkName":
		e.link = string(j.text())
	case "mode":
		e.mode = j.integer()
	case "uid":
		e.uid = j.integer()
	case "gid":
		e.gid = j.integer()
	case "size":
		e.size = j.integer()
	case "devMajor":
		e.major = j.integer()
	case "devMinor":
		e.minor = j.integer()
	case "modtime":
		e.readTime(j)
	case "modtimeSeconds":
		e.far, e.seconds = true, j.integer()
	case "xattrs":
		e.readXattrs(j)
	case "offset":
		e.offset = j.integer()
	case "endOffset":
		e.endOffset = j.integer()
	case "innerOffset":
		e.innerOffset = j.integer()
	case "chunkOffset":
		e.chunkOffset = j.integer()
	case "chunkSize":
		e.chunkSize = j.integer()
	case "chunkType":
		e.chunkType = string(j.text())
	case "digest":
		e.digest = readDigest(j)
	case "chunkDigest":
		e.chunkDigest = readDigest(j)
	default:
		j.skip()
	}
}

// typeName returns p as a string, without making one for what every entry has.
func typeName(p []byte) string {
	for _, name := range typeNames {
		if name == string(p) {
			return name
		}
	}
	return string(p)
}

func (e *jsonEntry) readTime(j *jsonReader) {
	p := j.text()
	if e.timed = len(p) > 0; !e.timed {
		return
	}
	if err := e.modTime.UnmarshalText(p); err != nil {
		j.malformed("a time %q", shorten(string(p)))
	}
}

func (e *jsonEntry) readXattrs(j *jsonReader) {
	size := 0
	j.object(func(key []byte) {
		k := string(key)
		v := j.base64()
		if size += len(k) + len(v); size > MaxXattrs {
			j.fail(fmt.Errorf("%w: extended attributes of more than %d bytes", ErrLimit, MaxXattrs))
			return
		}
		if e.xattrs == nil {
			e.xattrs = make(map[string]string)
		}
		e.xattrs[k] = v
	})
}

// readDigest is ParseDigest, but soon done with what every entry has.
func readDigest(j *jsonReader) (d Digest) {
	const prefix = "sha256:"
	p := j.text()
	if len(p) == len(prefix)+2*len(d) && string(p[:len(prefix)]) == prefix && !bytes.ContainsAny(p, "ABCDEF") {
		if _, err := hex.Decode(d[:], p[len(prefix):]); err == nil {
			return d
		}
	}
	d, err := ParseDigest(string(p))
	if err != nil {
		j.malformed("a digest %q", shorten(string(p)))
	}
	return d
}

// entry returns what e says, but for the extents.
func (e *jsonEntry) entry(typ Type) (Entry, error) {
	for _, n := range []int64{e.uid, e.gid, e.major, e.minor} {
		if n < 0 || n > math.MaxUint32 {
			return Entry{}, fmt.Errorf("%w: %d is no owner's or device's number", ErrMalformed, n)
		}
	}
	x := Entry{
		Name: e.name, Type: typ, Mode: uint32(e.mode & 0o7777), UID: uint32(e.uid), GID: uint32(e.gid),
		ModTime: e.time(), Xattrs: e.xattrs,
	}
	switch typ {
	case Regular:
		x.Size, x.Digest = e.size, e.digest
	case Symlink, Hardlink:
		x.Link = e.link
	case CharDevice, BlockDevice:
		x.Major, x.Minor = uint32(e.major), uint32(e.minor)
	}
	return x, nil
}

// time returns the entry's time. What is left out is 1970's beginning, for so eStargz's
// writer has it; the zero of [time.Time] is left to implied directories.
func (e *jsonEntry) time() time.Time {
	switch {
	case e.far:
		return time.Unix(e.seconds, int64(e.modTime.Nanosecond()))
	case !e.timed:
		return time.Unix(0, 0)
	}
	return e.modTime
}

package squashfs

import (
	"fmt"

	"github.com/granary-oci/granary/toc"
)

// The table of attributes begins with 16 bytes (struct squashfs_xattr_id_table):
// where the attributes are (u64), and how many sets of them there are (u32). Then
// comes a table of 16 bytes for each set (struct squashfs_xattr_id): where its first
// is (u64), how many it has (u32), and their size.
//
// An attribute (struct squashfs_xattr_entry) is the prefix (u16), the length of the
// rest of the name (u16) and that; and the length of the value (u32) and that. With
// bit 8 of the prefix, the value is where the length and the value are (u64).
const (
	attrsHeader = 16
	attrAway    = 0x100
)

var attrPrefixes = []string{"user.", "trusted.", "security."}

// attrs returns the set of attributes of an index.
func (w *walker) attrs(index uint32) (map[string]string, error) {
	if set, ok := w.sets[index]; ok || index == noAttrs || w.sb.attrsAt == 0 {
		return set, nil
	}
	p, err := w.m.raw(w.sb.attrsAt, attrsHeader)
	if err != nil {
		return nil, err
	}
	begin, count := le.Uint64(p), le.Uint32(p[8:])
	if index >= count || begin > uint64(w.sb.used) {
		return nil, fmt.Errorf("%w: attributes %d of %d", toc.ErrMalformed, index, count)
	}
	if p, err = w.m.element(w.sb.attrsAt+attrsHeader, int(index), 16); err != nil {
		return nil, err
	}
	set, err := w.readSet(int64(begin), le.Uint64(p), le.Uint32(p[8:]))
	if err != nil {
		return nil, fmt.Errorf("attributes %d: %w", index, err)
	}
	w.sets[index] = set
	return set, nil
}

// readSet reads a number of attributes, the first of which is at ref.
func (w *walker) readSet(begin int64, ref uint64, count uint32) (map[string]string, error) {
	c, err := w.m.at(begin, ref)
	if err != nil {
		return nil, err
	}
	set := make(map[string]string)
	for size := 0; count > 0; count-- {
		name, value, err := w.readAttr(begin, c)
		if err != nil {
			return nil, err
		}
		n := attrsHeader + len(name) + len(value)
		if size += n; size > 2*toc.MaxXattrs {
			return nil, fmt.Errorf("%w: more than %d bytes", toc.ErrLimit, toc.MaxXattrs)
		}
		if err := w.keep(n); err != nil {
			return nil, err
		}
		set[name] = value
	}
	return set, nil
}

func (w *walker) readAttr(begin int64, c *cursor) (name, value string, err error) {
	p, err := c.next(4)
	if err != nil {
		return "", "", err
	}
	prefix := le.Uint16(p)
	if int(prefix&^attrAway) >= len(attrPrefixes) {
		return "", "", fmt.Errorf("%w: prefix %#x", toc.ErrMalformed, prefix)
	}
	if p, err = c.next(int(le.Uint16(p[2:]))); err != nil {
		return "", "", err
	}
	name = attrPrefixes[prefix&^attrAway] + string(p)
	if value, err = readValue(c); err != nil || prefix&attrAway == 0 {
		return name, value, err
	}
	if len(value) != 8 {
		return "", "", fmt.Errorf("%w: a value elsewhere, told in %d bytes", toc.ErrMalformed, len(value))
	}
	if c, err = w.m.at(begin, le.Uint64([]byte(value))); err != nil {
		return "", "", err
	}
	value, err = readValue(c)
	return name, value, err
}

func readValue(c *cursor) (string, error) {
	p, err := c.next(4)
	if err != nil {
		return "", err
	}
	n := le.Uint32(p)
	if n > toc.MaxXattrs {
		return "", fmt.Errorf("%w: a value of %d bytes", toc.ErrLimit, n)
	}
	p, err = c.next(int(n))
	return string(p), err
}

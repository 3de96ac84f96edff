package erofs

import (
	"fmt"

	"github.com/granary-oci/granary/toc"
)

// An inode's attributes begin with 12 bytes (struct erofs_xattr_ibody_header), of
// which the one at 4 is the number of shared ones. Their numbers (u32) follow, which
// tell where they are in units of 4 bytes, and then attributes of its own. Each
// (struct erofs_xattr_entry) is aligned to 4 bytes:
//
//	0  name length   u8    of what follows the prefix
//	1  prefix        u8    its number; with bit 7, that of an infix
//	2  value length  u16
const (
	attrsHeader = 12
	attrHeader  = 4
)

var attrPrefixes = []string{"", "user.", "system.posix_acl_access", "system.posix_acl_default", "trusted.", "lustre.", "security."}

// readAttrs reads the attributes of an inode into its entry.
func (im *image) readAttrs(in *inode) error {
	n := in.end - in.at - in.body
	if n == 0 {
		return nil
	}
	p, err := im.bytes(in.at+in.body, n)
	if err != nil {
		return err
	}
	shared, p := int(p[4]), p[attrsHeader:]
	if len(p) < 4*shared {
		return fmt.Errorf("%w: %d shared attributes in %d bytes", toc.ErrMalformed, shared, len(p))
	}
	in.entry.Xattrs = make(map[string]string)
	for range shared {
		if err := im.readShared(in, le.Uint32(p)); err != nil {
			return err
		}
		p = p[4:]
	}
	for len(p) >= attrHeader {
		used, err := im.addAttr(in, p)
		if err != nil {
			return err
		}
		p = p[min((used+3)&^3, len(p)):]
	}
	return nil
}

// addAttr adds the attribute that p begins with, and returns its length.
func (im *image) addAttr(in *inode, p []byte) (int, error) {
	used := attrSize(p)
	if used > len(p) {
		return 0, fmt.Errorf("%w: an attribute of %d bytes in %d", toc.ErrMalformed, used, len(p))
	}
	prefix, err := im.prefix(p[1])
	if err != nil {
		return 0, err
	}
	named := attrHeader + int(p[0])
	in.entry.Xattrs[prefix+string(p[attrHeader:named])] = string(p[named:used])
	return used, im.keep(used)
}

func attrSize(p []byte) int { return attrHeader + int(p[0]) + int(le.Uint16(p[2:])) }

func (im *image) readShared(in *inode, number uint32) error {
	at := im.attributes + int64(number)*4
	p, err := im.bytes(at, attrHeader)
	if err != nil {
		return err
	}
	if p, err = im.bytes(at, int64(attrSize(p))); err != nil {
		return err
	}
	_, err = im.addAttr(in, p)
	return err
}

// prefix returns what a number stands for at the beginning of names.
func (im *image) prefix(number byte) (string, error) {
	const isInfix = 0x80
	if number&isInfix == 0 {
		if int(number) >= len(attrPrefixes) {
			return "", fmt.Errorf("%w: attributes of prefix %d", toc.ErrMalformed, number)
		}
		return attrPrefixes[number], nil
	}
	if im.infix == nil {
		if err := im.readInfixes(); err != nil {
			return "", err
		}
	}
	i := int(number &^ isInfix)
	if i >= len(im.infix) {
		return "", fmt.Errorf("%w: attributes of infix %d of %d", toc.ErrMalformed, i, len(im.infix))
	}
	return im.infix[i], nil
}

// readInfixes reads the infixes: a length (u16), a prefix's number, and the infix,
// aligned to 4 bytes. They are in the packed inode if there is one.
func (im *image) readInfixes() error {
	im.infix = []string{}
	if im.incompat&incompatInfixes == 0 {
		return nil
	}
	at := im.infixesAt
	if im.incompat&incompatFragments != 0 && im.packed > 0 && im.compat&compatPlainInfixes == 0 {
		start, err := im.packedAt()
		if err != nil {
			return err
		}
		at += start
	}
	for range im.infixes {
		p, err := im.bytes(at, 2)
		if err != nil {
			return err
		}
		n := int64(le.Uint16(p))
		if p, err = im.bytes(at+2, n); err != nil {
			return err
		}
		if n < 1 || int(p[0]) >= len(attrPrefixes) {
			return fmt.Errorf("%w: an infix of %d bytes", toc.ErrMalformed, n)
		}
		im.infix = append(im.infix, attrPrefixes[p[0]]+string(p[1:]))
		at = (at + 2 + n + 3) &^ 3
	}
	return nil
}

// packedAt returns where the content of the packed inode begins, which is one run.
func (im *image) packedAt() (int64, error) {
	in, err := im.readInode(im.packed)
	if err != nil {
		return 0, err
	}
	all, err := im.extents(in)
	if err != nil {
		return 0, fmt.Errorf("packed inode: %w", err)
	}
	if len(all) != 1 || all[0].Offset != 0 {
		return 0, fmt.Errorf("packed inode of %d runs: %w", len(all), toc.ErrUnsupported)
	}
	return all[0].Start, nil
}

package gzip

import (
	"encoding/binary"
	"hash/crc32"
	"math/rand/v2"
)

// deflater writes deflate by hand, as no compressor would (RFC 1951).
type deflater struct {
	b     []byte
	bits  uint // that are free in the last byte
	out   []byte
	begin int // of the member, in out
	fixed bool
}

// put writes n bits of v, the lowest first.
func (d *deflater) put(v, n uint) {
	for ; n > 0; n, v = n-1, v>>1 {
		if d.bits == 0 {
			d.b, d.bits = append(d.b, 0), 8
		}
		d.b[len(d.b)-1] |= byte(v&1) << (8 - d.bits)
		d.bits--
	}
}

// code writes n bits of v, the highest first, as codes are (section 3.1.1).
func (d *deflater) code(v, n uint) {
	for n > 0 {
		n--
		d.put(v>>n, 1)
	}
}

func bit(b bool) uint {
	if b {
		return 1
	}
	return 0
}

// stored writes a stored block.
func (d *deflater) stored(p []byte, final bool) {
	d.put(bit(final), 1)
	d.put(0, 2)
	d.bits = 0
	d.b = binary.LittleEndian.AppendUint16(d.b, uint16(len(p)))
	d.b = binary.LittleEndian.AppendUint16(d.b, ^uint16(len(p)))
	d.b = append(d.b, p...)
	d.out = append(d.out, p...)
}

// block begins a block with the fixed codes, or one that brings its own: 226 symbols of
// 8 bits and 60 of 9, and 2 distances of 4 bits and 28 of 5.
func (d *deflater) block(fixed, final bool) {
	d.fixed = fixed
	d.put(bit(final), 1)
	if fixed {
		d.put(1, 2)
		return
	}
	d.put(2, 2)
	d.put(286-257, 5)
	d.put(30-1, 5)
	d.put(19-4, 4)
	// Lengths 8, 9, 5 and 4 take codes of two bits each; by section 3.2.2 those are 4: 0,
	// 5: 1, 8: 2 and 9: 3.
	for _, symbol := range []int{16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15} {
		d.put(2*bit(symbol == 4 || symbol == 5 || symbol == 8 || symbol == 9), 3)
	}
	for _, run := range []struct{ n, code uint }{{226, 2}, {60, 3}, {2, 0}, {28, 1}} {
		for range run.n {
			d.code(run.code, 2)
		}
	}
}

// symbol writes a literal, the end of a block, or a length.
func (d *deflater) symbol(s uint) {
	switch {
	case !d.fixed && s < 226:
		d.code(s, 8)
	case !d.fixed:
		d.code(2*226+s-226, 9)
	case s < 144:
		d.code(0x30+s, 8)
	case s < 256:
		d.code(0x190+s-144, 9)
	case s < 280:
		d.code(s-256, 7)
	default:
		d.code(0xc0+s-280, 8)
	}
}

func (d *deflater) end() { d.symbol(256) }

func (d *deflater) literal(b byte) {
	d.symbol(uint(b))
	d.out = append(d.out, b)
}

// match writes a reference, of a length from 3 to 10 or 258.
func (d *deflater) match(length, distance int) {
	if length == 258 {
		d.symbol(285)
	} else {
		d.symbol(uint(257 + length - 3))
	}
	s, extra, base := uint(0), uint(0), 1 // section 3.2.5
	for s < 29 && base+1<<extra <= distance {
		base += 1 << extra
		s++
		extra = max(s, 2)/2 - 1
	}
	switch {
	case d.fixed:
		d.code(s, 5)
	case s < 2:
		d.code(s, 4)
	default:
		d.code(2*2+s-2, 5)
	}
	d.put(uint(distance-base), extra)
	for range length {
		d.out = append(d.out, d.out[len(d.out)-distance])
	}
}

// open begins a gzip member (RFC 1952), and close ends it.
func (d *deflater) open() {
	d.b, d.bits = append(d.b, "\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\x03"...), 0
	d.begin = len(d.out)
}

func (d *deflater) close() {
	content := d.out[d.begin:]
	d.b = binary.LittleEndian.AppendUint32(d.b, crc32.ChecksumIEEE(content))
	d.b = binary.LittleEndian.AppendUint32(d.b, uint32(len(content)))
}

// member writes a member of several blocks in which there is everything that deflate
// allows, most of it far from what compressors write.
func (d *deflater) member(rnd *rand.Rand, blocks int) {
	d.open()
	for i := range blocks {
		final := i == blocks-1
		switch kind := rnd.IntN(8); kind {
		case 0:
			p := make([]byte, []int{0, 1, 300, 5000, 40_000}[rnd.IntN(5)])
			for i := range p {
				p[i] = byte(rnd.Uint32())
			}
			d.stored(p, final)
		case 1:
			d.block(true, final)
			d.end()
		default:
			d.block(kind&1 > 0, final)
			for range []int{1, 30, 3000}[rnd.IntN(3)] {
				d.any(rnd)
			}
			d.end()
		}
	}
	d.close()
}

// any writes a literal, or a reference: as far back as can be, right before, or anywhere.
func (d *deflater) any(rnd *rand.Rand) {
	farthest := min(maxWindow, len(d.out)-d.begin)
	length := 3 + rnd.IntN(8)
	if rnd.IntN(50) == 0 {
		length = 258
	}
	switch kind := rnd.IntN(8); {
	case farthest == 0 || kind < 3:
		d.literal(byte(rnd.Uint32()))
	case kind == 3:
		d.match(length, farthest)
	case kind == 4:
		d.match(length, 1+rnd.IntN(min(4, farthest)))
	default:
		d.match(length, 1+rnd.IntN(farthest))
	}
}

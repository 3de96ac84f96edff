package leads

import (
	"bytes"
	"encoding/binary"
)

// object64 is an object file of 64 bits, little-endian, with what is looked at and nothing
// else.
type object64 struct {
	interp    string
	needed    []string
	runpath   string
	constants string
}

// String returns the file: its header, up to four program headers, and then the
// interpreter, the table of strings, the dynamic section and constants. All is loaded at
// an address that is 0x10000 more than its offset.
func (o object64) String() string {
	const base, headers, each, all = 0x10000, 64, 56, 4
	data := bytes.NewBuffer(make([]byte, headers+each*all))
	at := func() uint64 { return uint64(data.Len()) }
	type program struct {
		kind, flags                        uint32
		offset, address, physical, in, mem uint64
		align                              uint64
	}
	var programs []program
	add := func(kind, flags uint32, start uint64) {
		programs = append(programs, program{kind: kind, flags: flags, offset: start, address: base + start, in: at() - start, mem: at() - start})
	}
	if o.interp != "" {
		start := at()
		data.WriteString(o.interp + "\x00")
		add(segmentInterp, readable, start)
	}
	strings := at()
	var dynamic []uint64
	entry := func(tag uint64, s string) {
		dynamic = append(dynamic, tag, at()-strings)
		data.WriteString(s + "\x00")
	}
	for _, name := range o.needed {
		entry(dynamicNeeded, name)
	}
	if o.runpath != "" {
		entry(dynamicRunpath, o.runpath)
	}
	dynamic = append(dynamic, dynamicStrings, base+strings, 0, 0)
	start := at()
	_ = binary.Write(data, binary.LittleEndian, dynamic)
	add(segmentDynamic, readable|2, start)
	add(segmentLoad, readable|1, 0)
	if o.constants != "" {
		start := at()
		data.WriteString(o.constants)
		add(segmentLoad, readable, start)
	}
	p := data.Bytes()
	copy(p, "\x7fELF\x02\x01\x01")
	binary.LittleEndian.PutUint64(p[32:], headers)
	binary.LittleEndian.PutUint16(p[54:], each)
	binary.LittleEndian.PutUint16(p[56:], uint16(len(programs)))
	var table bytes.Buffer
	_ = binary.Write(&table, binary.LittleEndian, programs)
	copy(p[headers:], table.Bytes())
	return string(p)
}

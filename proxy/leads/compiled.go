package leads

import (
	"encoding/binary"
	"errors"
	"slices"
	"strings"
)

// A compiled module (PEP 3147, PEP 552) is
//
//	4 bytes  the version of the format
//	4 bytes  flags: bit 0, it is checked by the hash of its source, not by its time;
//	         bit 1, that is done each time
//	8 bytes  the hash, or time and size
//	         a code object, as Python's module marshal writes it
//
// all little-endian. What the code object imports is imported as the module is read:
// functions have code objects of their own.
const (
	compiledHead = 16
	checkedEach  = 3 // flags
)

// Instructions are a number and an operand, a byte each. Those that import have had the
// same numbers from Python 3.8 to 3.12, and their operands are positions of names. Of
// other versions, all names that the outermost level uses are taken to be imported, which
// are not many more.
const (
	opImportName = 108
	opImportFrom = 109
	opExtended   = 144 // the upper bits of the next operand

	version38  = 3400 // of the format, or a little less
	version312 = 3531
)

// frozen are the modules of the standard library that Python has in itself since 3.11,
// and reads from no file.
var frozen = map[string]bool{
	"abc": true, "codecs": true, "io": true, "_collections_abc": true, "_sitebuiltins": true, "genericpath": true,
	"ntpath": true, "posixpath": true, "os": true, "site": true, "stat": true, "zipimport": true, "runpy": true,
	"_bootstrap": true, "_bootstrap_external": true, "importlib._bootstrap": true, "importlib._bootstrap_external": true,
}

// isFrozen reports whether a name is that of a frozen module, or of something in one.
func isFrozen(name string) bool {
	for ; name != ""; name = name[:max(0, strings.LastIndexByte(name, '.'))] {
		if frozen[name] {
			return true
		}
	}
	return false
}

// Types of marshal (CPython, Python/marshal.c), of which all versions since 3.8 write
// the same.
const (
	mNull, mNone, mFalse, mTrue, mStop, mEllipsis = '0', 'N', 'F', 'T', 'S', '.'
	mInt, mInt64, mFloat, mFloatText, mComplex    = 'i', 'I', 'g', 'f', 'y'
	mComplexText, mLong, mBytes, mInterned        = 'x', 'l', 's', 't'
	mText, mASCII, mASCIIInterned                 = 'u', 'a', 'A'
	mShort, mShortInterned                        = 'z', 'Z'
	mTuple, mSmallTuple, mList, mSet, mFrozenSet  = '(', ')', '[', '<', '>'
	mDict, mSlice, mCode, mRef                    = '{', ':', 'c', 'r'

	mRemembered = 0x80 // it may be referred to
)

const (
	maxMarshalDepth   = 200
	maxMarshalObjects = 1 << 18
)

// compiled is what a compiled module says of others.
type compiled struct {
	names   []string
	checked bool // its source is read too
}

// readCompiled reads a compiled module.
func readCompiled(p []byte) (c compiled, ok bool) {
	if len(p) < compiledHead+1 || p[2] != '\r' || p[3] != '\n' {
		return c, false
	}
	c.checked = binary.LittleEndian.Uint32(p[4:])&checkedEach == checkedEach
	m := marshal{p: p[compiledHead:]}
	if m.next()&^mRemembered != mCode {
		return c, false
	}
	m.remember(p[compiledHead], "")
	m.numbers = m.numbersOfCode()
	code, names := m.outermost()
	if m.err != nil {
		return c, false
	}
	if version := binary.LittleEndian.Uint16(p); version > version38 && version <= version312 {
		names = importedBy(code, names)
	}
	if m.numbers == numbersSince311 {
		names = slices.DeleteFunc(names, isFrozen)
	}
	c.names = names
	return c, true
}

// importedBy returns which of the names that instructions use are imported.
func importedBy(code []byte, names []string) (imported []string) {
	operand, from := 0, ""
	for ; len(code) >= 2; code = code[2:] {
		operand |= int(code[1])
		op := code[0]
		if op == opExtended && operand < maxNames {
			operand <<= 8
			continue
		}
		name := ""
		if operand < len(names) {
			name = names[operand]
		}
		switch operand = 0; {
		case len(imported) == maxNames:
			return imported
		case op == opImportName:
			from, imported = name, append(imported, name)
		case op == opImportFrom && from != "":
			imported = append(imported, from+"."+name)
		case op == opImportFrom:
			imported = append(imported, name)
		}
	}
	return imported
}

var errMarshal = errors.New("not what marshal writes")

// marshal is read in one pass. Its first error stays.
type marshal struct {
	p       []byte
	err     error
	numbers int      // that a code object begins with
	texts   []string // what may be referred to: "" unless it is a text
	objects int
	depth   int
}

func (m *marshal) fail() { m.p, m.err = nil, errMarshal }

func (m *marshal) take(n int) []byte {
	if n < 0 || n > len(m.p) {
		m.fail()
		return nil
	}
	p := m.p[:n]
	m.p = m.p[n:]
	return p
}

func (m *marshal) next() byte {
	if p := m.take(1); p != nil {
		return p[0]
	}
	return 0
}

func (m *marshal) number() int {
	if p := m.take(4); p != nil {
		return int(int32(binary.LittleEndian.Uint32(p)))
	}
	return 0
}

// remember gives an object its number, if it is to have one: those that begin first
// come first.
func (m *marshal) remember(kind byte, text string) {
	if kind&mRemembered != 0 {
		m.texts = append(m.texts, text)
	}
}

// numbersSince311 is how many numbers a code object begins with since Python 3.11; before,
// there were numbersBefore.
const numbersSince311, numbersBefore = 5, 6

// numbersOfCode returns how many numbers a code object begins with: what follows is its
// instructions, which are bytes.
func (m *marshal) numbersOfCode() int {
	for _, n := range []int{numbersSince311, numbersBefore} {
		if at := 4 * n; at < len(m.p) && m.p[at]&^mRemembered == mBytes {
			return n
		}
	}
	return 0
}

// outermost reads a code object behind its type, as far as its instructions and the names
// that these use.
func (m *marshal) outermost() (code []byte, names []string) {
	if m.take(4 * m.numbers); m.numbers == 0 {
		m.fail()
	}
	m.remember(m.next(), "")
	code = m.take(m.number())
	m.object() // constants
	return code, m.tuple()
}

// code reads a code object behind its type.
func (m *marshal) code() {
	m.take(4 * m.numbers)
	for range 8 {
		m.object() // instructions, constants, names, those of variables, of the file and of the code
	}
	m.number() // the first line
	m.object() // the lines
	if m.numbers == numbersSince311 {
		m.object() // what handles exceptions
	}
}

// tuple reads a tuple of texts.
func (m *marshal) tuple() (texts []string) {
	kind := m.next()
	m.remember(kind, "")
	n := 0
	switch kind &^ mRemembered {
	case mTuple:
		n = m.number()
	case mSmallTuple:
		n = int(m.next())
	default:
		m.fail()
	}
	for range min(n, maxNames) {
		text := m.object()
		if len(text) > maxName {
			text = "" // which has its position
		}
		texts = append(texts, text)
	}
	return texts
}

// object reads any object, and returns it if it is a text.
func (m *marshal) object() (text string) {
	if m.objects++; m.objects > maxMarshalObjects || m.depth > maxMarshalDepth {
		m.fail()
	}
	kind := m.next()
	if m.err != nil {
		return ""
	}
	switch kind &^ mRemembered {
	case mText, mASCII, mASCIIInterned, mInterned:
		text = string(m.take(m.number()))
		m.remember(kind, text)
	case mShort, mShortInterned:
		text = string(m.take(int(m.next())))
		m.remember(kind, text)
	case mRef:
		if i := m.number(); i >= 0 && i < len(m.texts) {
			text = m.texts[i]
		}
	default:
		m.remember(kind, "")
		m.depth++
		m.other(kind &^ mRemembered)
		m.depth--
	}
	return text
}

// other reads an object that is no text.
func (m *marshal) other(kind byte) {
	switch kind {
	case mNull, mNone, mFalse, mTrue, mStop, mEllipsis:
	case mInt:
		m.take(4)
	case mInt64, mFloat:
		m.take(8)
	case mComplex:
		m.take(16)
	case mFloatText:
		m.take(int(m.next()))
	case mComplexText:
		m.take(int(m.next()))
		m.take(int(m.next()))
	case mLong:
		digits := m.number()
		m.take(2 * max(digits, -digits))
	case mBytes:
		m.take(m.number())
	case mTuple, mList, mSet, mFrozenSet:
		m.several(m.number())
	case mSmallTuple:
		m.several(int(m.next()))
	case mSlice:
		m.several(3)
	case mDict:
		for m.err == nil && len(m.p) > 0 && m.p[0] != mNull {
			m.several(2)
		}
		m.next()
	case mCode:
		m.code()
	default:
		m.fail()
	}
}

func (m *marshal) several(n int) {
	if n < 0 || n > len(m.p) {
		m.fail()
	}
	for ; n > 0 && m.err == nil; n-- {
		m.object()
	}
}

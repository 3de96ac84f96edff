package content

import (
	"errors"
	"fmt"
	"strings"
)

// Limits of a Range header. Clients of lazy images ask for up to 1,024 ranges at
// once; ranges that overlap so much that the answer outgrows the content more
// than twice are an attack (RFC 9110, section 17.15).
const (
	maxRanges   = 2048
	maxOverlaps = 2
)

var (
	errMalformed     = errors.New("range is malformed")
	errUnsatisfiable = errors.New("range is not satisfiable")
	errTooMuch       = errors.New("too many ranges, or too much overlap")
)

// parseRange reads a Range header (RFC 9110, section 14.1) for content of size
// bytes. ignore says that it is not for us, because the unit is unknown. A set
// of ranges of which some cannot be satisfied is answered with the others, and
// is an error when there are none. A malformed set is an error too: the RFC
// would allow to ignore it, but a client that gets the whole of a large blob for
// a slip of a few bytes is worse off.
func parseRange(header string, size int64) (parts []Part, ignore bool, err error) {
	unit, set, ok := strings.Cut(header, "=")
	if !ok || !strings.EqualFold(strings.TrimSpace(unit), "bytes") {
		return nil, true, nil
	}
	var sum int64
	for i, spec := range strings.Split(set, ",") {
		if i >= maxRanges {
			return nil, false, errTooMuch
		}
		spec = strings.Trim(spec, " \t")
		if spec == "" {
			continue // empty elements of a list are allowed (section 5.6.1)
		}
		p, satisfiable, err := parseSpec(spec, size)
		if err != nil {
			return nil, false, err
		}
		if satisfiable {
			parts = append(parts, p)
			if sum += p.Length; len(parts) > 1 && sum/maxOverlaps > size {
				return nil, false, errTooMuch
			}
		}
	}
	if len(parts) == 0 {
		return nil, false, errUnsatisfiable
	}
	return parts, false, nil
}

// parseSpec reads one range: a-b, a- or -n.
func parseSpec(spec string, size int64) (p Part, satisfiable bool, err error) {
	first, last, ok := strings.Cut(spec, "-")
	if !ok {
		return Part{}, false, fmt.Errorf("%w: %.40q", errMalformed, spec)
	}
	if first == "" {
		n, err := position(last)
		if err != nil || n == 0 || size == 0 {
			return Part{}, false, err
		}
		n = min(n, size)
		return Part{Offset: size - n, Length: n}, true, nil
	}
	a, err := position(first)
	if err != nil {
		return Part{}, false, err
	}
	if last == "" {
		return Part{Offset: a, Length: size - a, OpenEnd: true, Complete: true}, a < size, nil
	}
	b, err := position(last)
	if err != nil {
		return Part{}, false, err
	}
	if b < a {
		return Part{}, false, fmt.Errorf("%w: %.40q ends before it begins", errMalformed, spec)
	}
	if a >= size {
		return Part{}, false, nil
	}
	b = min(b, size-1)
	return Part{Offset: a, Length: b - a + 1, Complete: a == 0 && b == size-1}, true, nil
}

// position reads a number of digits only. One that is too large for any content
// is as good as the largest.
func position(s string) (int64, error) {
	if s == "" {
		return 0, errMalformed
	}
	var n int64
	for _, c := range []byte(s) {
		if c < '0' || c > '9' {
			return 0, fmt.Errorf("%w: %.40q is not a number", errMalformed, s)
		}
		n = min(n*10+int64(c-'0'), 1<<59) // beyond any size, and far enough from overflow
	}
	return n, nil
}

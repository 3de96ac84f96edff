package compat

import (
	"cmp"
	"fmt"
	"regexp"
	"strconv"
	"strings"
)

// version is a version's numbers, as in 6.1.0; what follows them (-18-amd64) is left out.
type version []int

var leadingNumbers = regexp.MustCompile(`^[0-9]{1,9}(\.[0-9]{1,9}){0,7}`)

// parseVersion returns nil for what does not begin with a number.
func parseVersion(s string) (v version) {
	for part := range strings.SplitSeq(leadingNumbers.FindString(s), ".") {
		n, err := strconv.Atoi(part)
		if err != nil {
			return nil
		}
		v = append(v, n)
	}
	return v
}

// bound is a comparison that a version has to stand.
type bound struct {
	op string
	to version
}

var (
	boundGrammar = regexp.MustCompile(`^(>=|<=|==|!=|>|<|=)?\s*([0-9]{1,9}(?:\.[0-9]{1,9}){0,7})$`)
	accepts      = map[string]func(order int) bool{
		">=": func(o int) bool { return o >= 0 },
		"<=": func(o int) bool { return o <= 0 },
		">":  func(o int) bool { return o > 0 },
		"<":  func(o int) bool { return o < 0 },
		"=":  func(o int) bool { return o == 0 },
		"==": func(o int) bool { return o == 0 },
		"!=": func(o int) bool { return o != 0 },
		"":   func(o int) bool { return o == 0 },
	}
)

// versionRange is bounds that all hold, as in >=2.31, <=2.37.
type versionRange []bound

func parseRange(bounds []string) (r versionRange, err error) {
	for _, s := range bounds {
		m := boundGrammar.FindStringSubmatch(s)
		if m == nil {
			return nil, fmt.Errorf("%.40q is no range of versions", s)
		}
		r = append(r, bound{m[1], parseVersion(m[2])})
	}
	return r, nil
}

// has reports whether a version is in the range. A bound counts as far as it goes: 6.1.55 is
// a 6.1, so <=6.1 has it, and >6.1 does not.
func (r versionRange) has(v version) bool {
	for _, b := range r {
		if !accepts[b.op](v.compare(b.to)) {
			return false
		}
	}
	return true
}

// compare compares as many numbers as the other has. Those that v lacks are zero.
func (v version) compare(other version) int {
	for i, n := range other {
		mine := 0
		if i < len(v) {
			mine = v[i]
		}
		if order := cmp.Compare(mine, n); order != 0 {
			return order
		}
	}
	return 0
}

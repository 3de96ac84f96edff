package tarball

import (
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/granary-oci/granary/toc"
	"github.com/granary-oci/granary/toc/tarhead"
)

const xattrPrefix = "SCHILY.xattr."

// records are those of a PAX header (POSIX.1-2024, pax, "pax Extended Header").
type records map[string]string

// parseRecords reads a sequence of records. The numbers of a GNU sparse map of version
// 0.0, one to a record with keys that repeat, are joined as version 0.1 has them.
func parseRecords(p []byte) (records, error) {
	all := make(records)
	var numbers []string
	for s := string(p); s != ""; {
		key, value, rest, ok := tarhead.CutRecord(s)
		if !ok {
			return nil, fmt.Errorf("%w: a PAX record that is none", toc.ErrMalformed)
		}
		s = rest
		if key != sparseOffset && key != sparseLength {
			all[key] = value
			continue
		}
		if offset := len(numbers)%2 == 0; offset != (key == sparseOffset) || strings.Contains(value, ",") {
			return nil, fmt.Errorf("%w: PAX records of a sparse map out of order", toc.ErrMalformed)
		}
		numbers = append(numbers, value)
	}
	if len(numbers) > 0 {
		all[sparseMap] = strings.Join(numbers, ",")
	}
	return all, nil
}

// amend puts the records in place of what the header says. An empty one leaves
// it as it is.
func (r records) amend(h *header) error {
	text := func(key string, to *string) {
		if v := r[key]; v != "" {
			*to = v
		}
	}
	bad := ""
	number := func(key string, to *int64) {
		if v := r[key]; v != "" {
			n, err := strconv.ParseInt(v, 10, 64)
			if err != nil {
				bad = key
			}
			*to = n
		}
	}
	text("path", &h.name)
	text("linkpath", &h.link)
	number("uid", &h.uid)
	number("gid", &h.gid)
	number("size", &h.size)
	if v := r["mtime"]; v != "" {
		t, ok := parseTime(v)
		if !ok {
			bad = "mtime"
		}
		h.modTime = t
	}
	if bad != "" || h.size < 0 {
		return fmt.Errorf("%w: PAX record %q=%.40q", toc.ErrMalformed, bad, r[bad])
	}
	return nil
}

// parseTime reads seconds since 1970 with a fraction, of which digits behind the
// ninth are cut off.
func parseTime(s string) (time.Time, bool) {
	whole, fraction, _ := strings.Cut(s, ".")
	seconds, err := strconv.ParseInt(whole, 10, 64)
	if err != nil || strings.Trim(fraction, "0123456789") != "" {
		return time.Time{}, false
	}
	nanos, _ := strconv.ParseInt((fraction + "000000000")[:9], 10, 64)
	if strings.HasPrefix(whole, "-") {
		nanos = -nanos
	}
	return time.Unix(seconds, nanos), true
}

// xattrs returns the extended attributes, or nil.
func (r records) xattrs() map[string]string {
	var attrs map[string]string
	for key, value := range r {
		if name, ok := strings.CutPrefix(key, xattrPrefix); ok {
			if attrs == nil {
				attrs = make(map[string]string)
			}
			attrs[name] = value
		}
	}
	return attrs
}

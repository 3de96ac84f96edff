package lazy

import (
	"bytes"
	"io"
	"slices"
	"testing"
)

func FuzzParseSpans(f *testing.F) {
	f.Add([]byte{})
	f.Add([]byte{5, 2, 'a', 'b', 0, 1, 'c'})
	f.Add([]byte{5, 2, 'a'})
	f.Add([]byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1, 1, 'a'})
	f.Fuzz(func(t *testing.T, p []byte) {
		all, err := parseSpans(p)
		if err != nil {
			return
		}
		if !slices.IsSortedFunc(all, func(x, y span) int { return int(x.offset>>1 - y.offset>>1) }) {
			t.Errorf("out of order: %v", all)
		}
		o := &opening{from: bytes.NewReader(nil), size: 1 << 62, kept: all}
		for i, s := range all {
			if i+1 < len(all) && all[i+1].offset == s.offset {
				continue // which is as long
			}
			got := make([]byte, len(s.bytes))
			if n, err := o.ReadAt(got, s.offset); n != len(got) || err != nil && err != io.EOF || !bytes.Equal(got, s.bytes) {
				t.Errorf("at %d: %q, %v; want %q", s.offset, got[:n], err, s.bytes)
			}
		}
	})
}

package content

import "testing"

func FuzzParseRange(f *testing.F) {
	for _, s := range []string{"bytes=0-", "bytes=-0", "bytes=1-2,3-4", "bytes=500-0", "chars=1-2", "bytes=,", "bytes=99999999999999999999-", "bytes=-"} {
		f.Add(s, int64(1000))
	}
	f.Fuzz(func(t *testing.T, header string, size int64) {
		if size < 0 {
			return
		}
		parts, ignore, err := parseRange(header, size)
		if (err != nil || ignore) != (len(parts) == 0) || len(parts) > maxRanges {
			t.Fatalf("%d parts, ignore %v, %v", len(parts), ignore, err)
		}
		for _, p := range parts {
			if p.Offset < 0 || p.Length <= 0 || p.Length > size-p.Offset {
				t.Fatalf("%+v of %d bytes", p, size)
			}
		}
	})
}

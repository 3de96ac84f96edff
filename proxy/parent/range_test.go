package parent

import (
	"net/http"
	"testing"
)

func TestWhatAnswersARange(t *testing.T) {
	for _, c := range []struct {
		asked  string
		status int
		answer string
		length int64
		ok     bool
	}{
		{"", 200, "", 9, true},
		{"bytes=5-", 206, "bytes 5-9/10", 5, true},
		{"bytes=5-7", 206, "bytes 5-7/10", 3, true},
		{"bytes=5-7", 206, "bytes 5-7/10", -1, true},
		{"bytes=5-7", 206, "bytes 5-7/10", 4, false},
		{"bytes=5-7", 206, "bytes 5-7/10", 2, false},
		{"bytes=5-7", 206, "bytes 5-70/100", 3, false},
		{"bytes=5-7", 206, "bytes 0-7/10", 3, false},
		{"bytes=5-7", 206, "", 3, false},
		{"bytes=5-7", 200, "", 3, false},
	} {
		resp := &http.Response{StatusCode: c.status, Header: http.Header{"Content-Range": {c.answer}}, ContentLength: c.length}
		if got := parseRange(c.asked).answeredBy(resp); got != c.ok {
			t.Errorf("%q is answered by %d %q and %d bytes: %v", c.asked, c.status, c.answer, c.length, got)
		}
	}
}

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
		ok     bool
	}{
		{"", 200, "", true},
		{"bytes=5-", 206, "bytes 5-9/10", true},
		{"bytes=5-7", 206, "bytes 5-7/10", true},
		{"bytes=5-7", 206, "bytes 5-70/100", false},
		{"bytes=5-7", 206, "bytes 0-7/10", false},
		{"bytes=5-7", 206, "", false},
		{"bytes=5-7", 200, "", false},
	} {
		resp := &http.Response{StatusCode: c.status, Header: http.Header{"Content-Range": {c.answer}}}
		if got := answersRange(c.asked, resp); got != c.ok {
			t.Errorf("%q is answered by %d %q: %v", c.asked, c.status, c.answer, got)
		}
	}
}

package upstream

import (
	"net/http"
	"net/url"
	"testing"
)

func FuzzNextPage(f *testing.F) {
	for _, s := range []string{
		`</v2/a/tags/list?last=b&n=1>; rel="next"`, `<https://x/y?z>; rel=next`, `<>; rel="next"`, `</a>; rel="prev", </b?c=d>; rel="next"`, `<`, `>;rel=next,`, `<%zz>; rel=next`,
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, link string) {
		if next := NextPage(http.Header{"Link": {link}}); next != nil {
			if _, err := url.ParseQuery(next.Encode()); err != nil {
				t.Errorf("%q: %v", link, err)
			}
		}
	})
}

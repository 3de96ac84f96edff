package proxy

import (
	"net/http"
	"net/url"
	"testing"

	"github.com/granary-oci/granary/proxy/ref"
)

func FuzzNextPage(f *testing.F) {
	for _, s := range []string{
		`</v2/a/tags/list?last=b&n=1>; rel="next"`, `<https://x/y?z>; rel=next`, `<>; rel="next"`, `</a>; rel="prev", </b?c=d>; rel="next"`, `<`, `>;rel=next,`, `<%zz>; rel=next`,
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, link string) {
		if next := nextPage(http.Header{"Link": {link}}); next != nil {
			if _, err := url.ParseQuery(next.Encode()); err != nil {
				t.Errorf("%q: %v", link, err)
			}
		}
	})
}

func FuzzTagRule(f *testing.F) {
	for _, s := range []string{"a=pin", "*=ttl=5m", "a*b:*=revalidate", "=", "a=ttl=-1s", "**=pin"} {
		f.Add(s, "a.test/app:v1")
	}
	f.Fuzz(func(t *testing.T, s, name string) {
		r, err := ParseTagRule(s)
		if err != nil {
			return
		}
		if r.Policy.TTL < 0 || r.Pattern == "" {
			t.Errorf("%q: %+v", s, r)
		}
		r.Pattern.Match(name)
		if !ref.Pattern("*").Match(name) || !(r.Pattern + "*").Match(string(r.Pattern)) {
			t.Errorf("%q does not match itself", r.Pattern)
		}
	})
}

// FuzzReferrers: whatever an index looks like, each referrer is as it was sent.
func FuzzReferrers(f *testing.F) {
	for _, s := range []string{`{"manifests":[{"digest":"sha256:x","artifactType":"a","size":1,"unknown":{}}]}`, `{}`, `null`, `[]`, `{"manifests":[null,1]}`} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, p []byte) {
		all, err := parseReferrers(p)
		if err != nil {
			return
		}
		for _, r := range all {
			if len(r.JSON) == 0 || len(r.JSON) > len(p) {
				t.Errorf("%+v", r)
			}
		}
	})
}

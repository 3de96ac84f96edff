package upstream

import (
	"fmt"
	"reflect"
	"strings"
	"testing"
)

func TestParseChallenges(t *testing.T) {
	type params = map[string]string
	ch := func(scheme string, p params) challenge {
		if p == nil {
			p = params{}
		}
		return challenge{scheme, p}
	}
	for name, c := range map[string]struct {
		fields []string
		want   []challenge
	}{
		"none":           {nil, nil},
		"empty":          {[]string{"", " , ,"}, nil},
		"scheme alone":   {[]string{"Negotiate"}, []challenge{ch("negotiate", nil)}},
		"bearer":         {[]string{`Bearer realm="https://a/t",service="s",scope="repository:a/b:pull,push"`}, []challenge{ch("bearer", params{"realm": "https://a/t", "service": "s", "scope": "repository:a/b:pull,push"})}},
		"case":           {[]string{`bEARER Realm="A"`}, []challenge{ch("bearer", params{"realm": "A"})}},
		"spaces":         {[]string{"  Bearer   realm = \"a\" \t,  service\t=b  "}, []challenge{ch("bearer", params{"realm": "a", "service": "b"})}},
		"escapes":        {[]string{`Basic realm="a\"b\\c\d, x=y"`}, []challenge{ch("basic", params{"realm": `a"b\cd, x=y`})}},
		"two in one":     {[]string{`Basic realm="x", Bearer realm="y",service="z"`}, []challenge{ch("basic", params{"realm": "x"}), ch("bearer", params{"realm": "y", "service": "z"})}},
		"two fields":     {[]string{`Basic realm="x"`, `Bearer realm="y"`}, []challenge{ch("basic", params{"realm": "x"}), ch("bearer", params{"realm": "y"})}},
		"bare first":     {[]string{`Negotiate, Bearer realm="y"`}, []challenge{ch("negotiate", nil), ch("bearer", params{"realm": "y"})}},
		"token68":        {[]string{`Negotiate YWJj/+==, Basic realm=x`}, []challenge{ch("negotiate", nil), ch("basic", params{"realm": "x"})}},
		"token68 at end": {[]string{`NTLM TlRMTVNTUAAC`}, []challenge{ch("ntlm", nil)}},
		"unquoted URL":   {[]string{`Bearer realm=https://a/t?x=y,service=s`}, []challenge{ch("bearer", params{"realm": "https://a/t?x=y", "service": "s"})}},
		"twice":          {[]string{`Bearer realm="a",realm="b"`}, []challenge{ch("bearer", params{"realm": "a"})}},
		"empty members":  {[]string{`,, Bearer realm="a",, ,service="b",`}, []challenge{ch("bearer", params{"realm": "a", "service": "b"})}},
		"empty value":    {[]string{`Bearer realm="a",scope=""`}, []challenge{ch("bearer", params{"realm": "a", "scope": ""})}},
		"open quote":     {[]string{`Basic realm="x", Bearer realm="y`, `Digest realm="z"`}, []challenge{ch("basic", params{"realm": "x"}), ch("digest", params{"realm": "z"})}},
		"open escape":    {[]string{`Bearer realm="y\`}, nil},
		"garbage":        {[]string{`"Bearer"`, `=`, `Bearer@ realm="x"`, "\x00"}, nil},
		"long value":     {[]string{`Bearer realm="` + strings.Repeat("x", maxChallengeValue+1) + `"`}, nil},
	} {
		if got := parseChallenges(c.fields); !reflect.DeepEqual(got, c.want) {
			t.Errorf("%s: got %v, want %v", name, got, c.want)
		}
	}
}

func TestChallengesAreBounded(t *testing.T) {
	if n := len(parseChallenges([]string{strings.Repeat("Basic realm=x, ", 1000)})); n != maxChallenges {
		t.Errorf("%d challenges", n)
	}
	var b strings.Builder
	for i := range 1000 {
		fmt.Fprintf(&b, "p%d=x,", i)
	}
	if got := parseChallenges([]string{"Bearer " + b.String()}); len(got) != 0 {
		t.Errorf("a challenge with 1000 parameters is %d challenges", len(got))
	}
}

func FuzzChallenges(f *testing.F) {
	for _, s := range []string{
		`Bearer realm="https://a/t",service="s",scope="repository:a/b:pull"`, `Basic realm="a\"b"`, `Negotiate abc==, Basic realm=x`,
		`Bearer realm="open`, `,,= "`, "Digest a = b", `A B="\`, "Bearer\trealm=x",
	} {
		f.Add(s, s)
	}
	f.Fuzz(func(t *testing.T, a, b string) {
		all := parseChallenges([]string{a, b})
		if len(all) > maxChallenges {
			t.Errorf("%d challenges", len(all))
		}
		for _, c := range all {
			if c.scheme == "" || c.scheme != strings.ToLower(c.scheme) || len(c.params) > maxChallengeParam {
				t.Errorf("challenge %q has %d parameters", c.scheme, len(c.params))
			}
		}
		// whatever was read means the same when it is written by the book
		var fields []string
		for _, c := range all {
			fields = append(fields, written(c))
		}
		again := parseChallenges(fields)
		if len(all) > 0 && !reflect.DeepEqual(again, all) {
			t.Errorf("%q is %v, and written as %q it is %v", []string{a, b}, all, fields, again)
		}
	})
}

// written returns c as a field, with every value quoted.
func written(c challenge) string {
	s, sep := c.scheme, " "
	for name, v := range c.params {
		s += sep + name + `="` + strings.NewReplacer(`\`, `\\`, `"`, `\"`).Replace(v) + `"`
		sep = ", "
	}
	return s
}

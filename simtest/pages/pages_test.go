package pages

import (
	"reflect"
	"testing"
)

const text = "# Page\n```sh\nfirst\n```\n## One\n```sh\na \\\nb\n# c\n```\n### Below\n```toml\n[t]\n```\n```sh\nd\n```\n## Two\n```sh\ne\n```\n"

func TestSectionsHaveTheirCommands(t *testing.T) {
	for title, want := range map[string][][]string{
		"Page":  {{"first"}, {"a  b", "# c"}, {"d"}, {"e"}},
		"One":   {{"a  b", "# c"}, {"d"}},
		"Below": {{"d"}},
		"Two":   {{"e"}},
	} {
		s, err := Page(text).Section(title)
		if got := s.Commands(); err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%s: %q, %v; want %q", title, got, err, want)
		}
	}
	if s, err := Page(text).Section("Three"); err == nil {
		t.Errorf("there is %q", s)
	}
	if got := Page(text).Blocks("toml"); !reflect.DeepEqual(got, []string{"[t]\n"}) {
		t.Errorf("%q", got)
	}
}

package main

import (
	"fmt"
	"net/http"
	"slices"
	"testing"
	"time"

	"github.com/dustin/go-humanize"

	"github.com/granary-oci/granary/cmd/granary/node"
)

// tryParents has a node ask each of its parents.
func tryParents(t *testing.T, n *node.Node) {
	t.Helper()
	resp, err := http.Post(n.AdminURL()+"/api/v1/reach", "", nil)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
}

// spared is what the page is to say of what was asked for, moved and saved, by link and by image.
func spared(s node.Status) map[string][]string {
	all := make(map[string][]string)
	words := func(asked, moved, saved int64) []string {
		return []string{humanize.IBytes(uint64(asked)), humanize.IBytes(uint64(moved)), humanize.IBytes(uint64(saved))}
	}
	for _, l := range s.Links {
		if l.Month.Asked > 0 {
			all[l.Link] = words(l.Month.Asked, l.Month.In, l.Month.Saved)
		}
	}
	for _, i := range s.Images {
		if i.Tag != "" {
			all[i.Ref()] = words(i.Asked, i.Moved, i.Saved)
		}
	}
	return all
}

// TestThePageShowsWhatCrossesLinks compares parents and links with the status, in numbers and in words.
func TestThePageShowsWhatCrossesLinks(t *testing.T) {
	l := begin(t, newSite, 16<<20, "a", "b")
	n := l.members[0]
	p := open(t, n.AdminURL())
	if err := l.pull(t.Context(), "ghcr.io/shop/small:v1", l.members...); err != nil {
		t.Fatal(err)
	}
	pulled := make(chan error, 1)
	go func() { pulled <- l.pull(t.Context(), "ghcr.io/shop/checkout:v2.4.1", l.members...) }()
	p.until(`document.querySelector(".flow.parents") && document.querySelector(".picture svg").textContent.includes("Parents") && document.getElementById("flows").textContent.includes("parents to ")`)
	if err := <-pulled; err != nil {
		t.Fatal(err)
	}
	tryParents(t, n)
	type parent struct {
		Name, State, Error string
		Received           int64
	}
	const script = `({
		Parents: [...document.querySelectorAll("#parents > li")].map(e => ({Name: e.dataset.key, State: e.dataset.state, Received: +e.dataset.received, Error: e.lastElementChild.textContent})),
		Links: Object.fromEntries([...document.querySelectorAll("#links > tr")].map(e => [e.dataset.key, [...e.querySelectorAll("td")].map(c => c.textContent)])),
		Spared: Object.fromEntries([...document.querySelectorAll(".spared tbody > tr")].map(e => [e.firstElementChild.textContent, [...e.querySelectorAll("td")].map(c => c.textContent)])),
		Columns: [...document.querySelectorAll(".spared:not([hidden]) thead")].map(e => e.textContent),
	})`
	var missed string
	for begin := time.Now(); time.Since(begin) < 30*time.Second; time.Sleep(200 * time.Millisecond) {
		shown := value[struct {
			Parents []parent
			Links   map[string][]string
			Spared  map[string][]string
			Columns []string
		}](p, script)
		s := ask(t, n)
		missed = ""
		for i, want := range s.Parents {
			if i >= len(shown.Parents) || shown.Parents[i] != (parent{want.Name, want.State, want.Error, want.Received}) {
				missed = fmt.Sprintf("parents %+v, want %+v", shown.Parents, s.Parents)
			}
		}
		words := func(in, out int64) string {
			return "in " + humanize.IBytes(uint64(in)) + "out " + humanize.IBytes(uint64(out))
		}
		for _, w := range s.Links {
			want := []string{words(w.Hour.In, w.Hour.Out), words(w.Today.In, w.Today.Out), words(w.Month.In, w.Month.Out)}
			if !slices.Equal(shown.Links[w.Link], want) {
				missed = fmt.Sprintf("%s: %q, want %q", w.Link, shown.Links[w.Link], want)
			}
		}
		for name, want := range spared(s) {
			if !slices.Equal(shown.Spared[name], want) {
				missed = fmt.Sprintf("%s: %q, want %q", name, shown.Spared[name], want)
			}
		}
		if !slices.Equal(shown.Columns, []string{"LinkAsked forMovedSaved", "ImageAsked forMovedSaved"}) || shown.Spared["ghcr.io/shop/checkout:v2.4.1"] == nil {
			missed = fmt.Sprintf("%q, of %v", shown.Columns, shown.Spared)
		}
		if len(s.Parents) != 2 || s.Parents[0].State != "up" || s.Parents[0].Received == 0 || s.Parents[1].State != "down" || len(s.Links) < 2 {
			missed = fmt.Sprintf("the status has %+v and %+v", s.Parents, s.Links)
		}
		if missed == "" {
			p.silent()
			return
		}
	}
	t.Errorf("the page and the status differ: %s", missed)
}

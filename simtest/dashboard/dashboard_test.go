package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/dustin/go-humanize"

	"github.com/granary-oci/granary/cmd/granary/node"
)

// unavailable skips a test, but not in CI.
func unavailable(t *testing.T, why string) {
	t.Helper()
	if os.Getenv("CI") == "true" {
		t.Fatal(why)
	}
	t.Skip(why)
}

// page is a dashboard in a browser.
type page struct {
	*testing.T
	*browser
}

// tools returns the directory with browser and axe-core, or skips the test.
func tools(t *testing.T) string {
	t.Helper()
	dir := os.Getenv("GRANARY_TOOLS")
	for _, name := range []string{"browser", "axe.min.js"} {
		if _, err := os.Stat(filepath.Join(dir, name)); dir == "" || err != nil {
			unavailable(t, "MISSING: "+name+" in $GRANARY_TOOLS")
		}
	}
	if _, err := exec.LookPath("chromium"); err != nil {
		unavailable(t, "MISSING: chromium")
	}
	return dir
}

func open(t *testing.T, url string) *page {
	t.Helper()
	b, err := startBrowser(filepath.Join(tools(t), "browser"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(b.close)
	p := &page{t, b}
	p.step(step{Width: 1280, Height: 900, Still: true})
	p.step(step{Open: url})
	return p
}

func (p *page) step(s step) json.RawMessage {
	p.Helper()
	v, err := p.do(s)
	if err != nil {
		text, _ := p.do(step{Run: "document.body.innerText + document.activeElement.outerHTML.slice(0, 300)"})
		p.Fatalf("%+v: %v\n%s\n%s", s, err, text, p.problems)
	}
	return v
}

func (p *page) until(script string)   { p.Helper(); p.step(step{Until: script}) }
func (p *page) press(keys ...string)  { p.Helper(); p.step(step{Keys: keys}) }
func (p *page) text(js string) string { p.Helper(); return value[string](p, js) }

func value[T any](p *page, js string) (v T) {
	p.Helper()
	if err := json.Unmarshal(p.step(step{Run: js}), &v); err != nil {
		p.Fatalf("%s: %v", js, err)
	}
	return v
}

// silent fails the test if the page has logged anything, as it would of what its policy forbids.
func (p *page) silent() {
	p.Helper()
	p.step(step{Run: "1"})
	for _, s := range p.problems {
		p.Errorf("the page has logged: %s", s)
	}
}

// focus presses Tab until an element that a selector finds has the focus.
func (p *page) focus(selector string) {
	p.Helper()
	for range 60 {
		if value[bool](p, fmt.Sprintf("document.activeElement.matches(%q)", selector)) {
			return
		}
		p.press("Tab")
	}
	p.Fatalf("Tab never comes to %s", selector)
}

func startLab(t *testing.T, rate int64, zones ...string) *lab {
	t.Helper()
	return begin(t, newLab, rate, zones...)
}

func begin(t *testing.T, newLab func(context.Context, int64, ...string) (*lab, error), rate int64, zones ...string) *lab {
	t.Helper()
	tools(t)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	l, err := newLab(ctx, rate, zones...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(l.close)
	return l
}

func ask(t *testing.T, n *node.Node) (s node.Status) {
	t.Helper()
	resp, err := http.Get(n.AdminURL() + "/api/v1/status")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if err := json.NewDecoder(resp.Body).Decode(&s); err != nil {
		t.Fatal(err)
	}
	return s
}

// figures are numbers that only grow while images are pulled, by a name, and when they were looked up.
type figures struct {
	At   time.Time
	Each map[string]int64
}

// told returns those of a status, which is as new as this moment.
func told(s node.Status) figures {
	f := make(map[string]int64)
	for source, n := range s.Served {
		f["served."+source] = n
	}
	for _, i := range s.UnderWay {
		f["image "+i.Ref] = i.Here
	}
	for _, m := range s.Cluster.Members {
		f["member "+string(m.ID)] = m.Received
	}
	return figures{time.Now(), f}
}

// shown returns those of the page.
func (p *page) shown() figures {
	return value[figures](p, `(() => {
		const f = {};
		for (const e of document.querySelectorAll("[data-field^='served.']")) f[e.dataset.field] = +e.dataset.value;
		for (const e of document.querySelectorAll("#pulls > li")) f["image " + e.querySelector(".ref").textContent] = +e.dataset.here;
		for (const e of document.querySelectorAll("#members > li")) f["member " + e.dataset.key] = +e.dataset.received;
		return {At: document.body.dataset.at, Each: f};
	})()`)
}

// TestThePageShowsWhatTheStatusSays compares the two while three members pull an image: what is shown is
// no less than what was said before the page was told, and no more than what is said then.
func TestThePageShowsWhatTheStatusSays(t *testing.T) {
	l := startLab(t, 16<<20, "a", "a", "b")
	p := open(t, l.members[0].AdminURL())
	p.until(`document.querySelectorAll("#members > li").length === 3 && document.getElementById("live-text").textContent === "Live"`)
	const image = "ghcr.io/shop/checkout:v2.4.1"
	pulled := make(chan error, 1)
	go func() { pulled <- l.pull(t.Context(), image, l.members...) }()
	p.until(`document.querySelectorAll("#pulls .layers li").length === 6 && document.querySelectorAll(".flow").length > 1`)

	said, compared, err := []figures{told(ask(t, l.members[0]))}, 0, error(nil)
	for over := false; !over; {
		select {
		case err = <-pulled:
			over = true
		case <-time.After(500 * time.Millisecond):
		}
		now := p.shown()
		after := told(ask(t, l.members[0]))
		compared += p.between(said, now, after)
		said = append(said, after)
	}
	if err != nil {
		t.Fatal(err)
	}
	if compared == 0 {
		t.Error("nothing was compared while it changed")
	}
	p.until(`document.getElementById("pulls-lead").textContent.startsWith("Nothing")`)
	p.settled(l.members[0])
	p.silent()
}

// between reports what is shown and was not said: less than the last of said that is older, or more than after.
// It returns how much was compared that changes.
func (p *page) between(said []figures, now, after figures) (compared int) {
	p.Helper()
	var before figures
	for _, f := range said {
		if f.At.Before(now.At) {
			before = f
		}
	}
	for name, n := range now.Each {
		least, was := before.Each[name]
		most, is := after.Each[name]
		if was && is && (n < least || n > most) {
			p.Errorf("%s: %d is shown, where the status said %d and now says %d", name, n, least, most)
		}
		if was && is && most > least {
			compared++
		}
	}
	return compared
}

// settled compares all there is, in numbers and in words, once nothing changes any more.
func (p *page) settled(n *node.Node) {
	p.Helper()
	var s node.Status
	var missed string
	for begin := time.Now(); time.Since(begin) < 30*time.Second; time.Sleep(200 * time.Millisecond) {
		s = ask(p.T, n)
		missed = ""
		fields := value[map[string][2]string](p, `Object.fromEntries([...document.querySelectorAll("[data-field]")].map(e => [e.dataset.field, [e.dataset.value, e.textContent]]))`)
		want := map[string]int64{"savings.bytes": s.Savings.Bytes, "savings.requests": s.Savings.Requests, "savings.pulls": s.Savings.Pulls}
		for source, n := range s.Served {
			if source != "layout" && source != "parent" || n > 0 {
				want["served."+source] = n
			}
		}
		if len(fields) != len(want) {
			missed = fmt.Sprintf("fields %v, want %v", fields, want)
		}
		for name, n := range want {
			text := humanize.IBytes(uint64(n))
			if name == "savings.requests" || name == "savings.pulls" {
				text = humanize.Comma(n)
			}
			if got := fields[name]; got != [2]string{strconv.FormatInt(n, 10), text} {
				missed = fmt.Sprintf("%s is %q, want %d and %q", name, got, n, text)
			}
		}
		stored := value[map[string]int64](p, `Object.fromEntries([...document.querySelectorAll("#images > li")].map(e => [e.querySelector(".ref").textContent, +e.dataset.stored]))`)
		for _, h := range n.Images(p.Context()).Images {
			if stored[h.Ref()] != h.Stored {
				missed = fmt.Sprintf("of %s %d bytes are shown, want %d", h.Ref(), stored[h.Ref()], h.Stored)
			}
		}
		states := value[map[string]string](p, `Object.fromEntries([...document.querySelectorAll("#members > li")].map(e => [e.dataset.key, e.dataset.state]))`)
		for _, m := range s.Cluster.Members {
			if states[string(m.ID)] != m.State {
				missed = fmt.Sprintf("%s is %q, want %q", m.ID, states[string(m.ID)], m.State)
			}
		}
		if missed == "" {
			return
		}
	}
	p.Errorf("the page and the status differ: %s", missed)
}

// TestEverybodyCanReadThePage runs axe-core on it, on large and small screens, light and dark, and with each
// dialog open.
func TestEverybodyCanReadThePage(t *testing.T) {
	axe, err := os.ReadFile(filepath.Join(tools(t), "axe.min.js"))
	if err != nil {
		t.Fatal(err)
	}
	l := begin(t, newSite, 64<<20, "a", "b")
	tryParents(t, l.members[0])
	p := open(t, l.members[0].AdminURL())
	if err := l.pull(t.Context(), "ghcr.io/shop/small:v1", l.members...); err != nil {
		t.Fatal(err)
	}
	if err := l.pull(t.Context(), "docker.io/library/redis:8", l.members[1]); err != nil {
		t.Fatal(err)
	}
	// A pull is shown for a few seconds, and the page may take longer to look.
	pulling, stop := context.WithCancel(t.Context())
	var again sync.WaitGroup
	again.Go(func() {
		for pulling.Err() == nil {
			if err := l.pull(pulling, "ghcr.io/shop/small:v1", l.members[0]); err != nil && pulling.Err() == nil {
				t.Error(err)
			}
			time.Sleep(500 * time.Millisecond)
		}
	})
	defer again.Wait()
	defer stop()
	p.until(`document.querySelectorAll("#images > li").length > 0 && document.querySelectorAll("#pulls > li").length > 0 && document.querySelectorAll("#parents > li").length === 2 && document.querySelectorAll("#links > tr").length > 0`)
	p.step(step{Run: string(axe) + ";1"})
	const run = `axe.run(document, {resultTypes: ["violations"]}).then(r => r.violations.map(v => v.id + ": " + v.help + ": " + v.nodes.map(n => n.html + " " + n.failureSummary).join("; ")))`
	p.step(step{Run: `document.getElementById("pause").setAttribute("aria-pressed", "perhaps"); 1`})
	if len(value[[]string](p, run)) == 0 {
		t.Error("axe finds nothing, not even what is wrong")
	}
	p.step(step{Run: `document.getElementById("pause").setAttribute("aria-pressed", "false"); 1`})
	for _, view := range []step{{Width: 1280, Height: 900}, {Width: 1280, Height: 900, Dark: true}, {Width: 360, Height: 780}, {Width: 360, Height: 780, Dark: true}} {
		view.Still = true
		p.step(view)
		for name, set := range map[string]string{
			"page":    `document.querySelector("details").open = true`,
			"preheat": `document.getElementById("preheat-any").click()`,
			"evict":   `document.querySelector("#images [aria-label^=Evict]").click()`,
			"token":   `document.getElementById("token-dialog").showModal()`,
		} {
			p.step(step{Run: set + ";1"})
			if wide := value[[2]int](p, `[document.documentElement.scrollWidth, document.documentElement.clientWidth]`); wide[0] > wide[1] {
				t.Errorf("%s at %d pixels: %d pixels wide", name, view.Width, wide[0])
			}
			for _, v := range value[[]string](p, run) {
				t.Errorf("%s at %d pixels, dark %v: %s", name, view.Width, view.Dark, v)
			}
			p.step(step{Run: `for (const d of document.querySelectorAll("dialog")) d.close(); 1`})
		}
	}
	p.silent()
}

// TestTheKeyboardIsEnough does all there is to do on the page with it.
func TestTheKeyboardIsEnough(t *testing.T) {
	l := startLab(t, 64<<20, "a", "b")
	p := open(t, l.members[0].AdminURL())
	p.until(`document.getElementById("live-text").textContent === "Live"`)
	p.press("Tab")
	if !value[bool](p, `document.activeElement.matches(".skip")`) {
		t.Error("the first thing is not the link to the content")
	}
	p.focus("#pause")
	p.press("Space")
	p.until(`document.getElementById("live-text").textContent === "Paused"`)
	p.press("Enter")
	p.until(`document.getElementById("live-text").textContent === "Live"`)

	p.focus("summary")
	p.press("Enter")
	p.until(`document.querySelector("details").open`)

	p.focus("#preheat-any")
	p.press("Enter")
	p.until(`document.getElementById("preheat-dialog").open`)
	p.press("Escape")
	p.until(`!document.getElementById("preheat-dialog").open && document.activeElement.id === "preheat-any"`)
	p.press("Enter")
	p.focus("#preheat-form [name=ref]")
	p.press("ghcr.io/shop/small:v1", "Tab")
	p.press("ArrowDown") // All members
	p.focus("#preheat-form .primary")
	p.press("Enter")
	p.until(`[...document.querySelectorAll("#preheats .state")].some(e => e.textContent === "done")`)
	p.until(`document.querySelectorAll("#images > li").length === 1`)
	for _, m := range l.members {
		if all := m.Images(t.Context()).Images; len(all) != 1 || all[0].Stored < 3<<20 {
			t.Errorf("after a preheat on all members one has %+v", all)
		}
	}

	p.focus("#preheat-any")
	p.press("Enter")
	p.focus("#preheat-form [name=ref]")
	p.press("ghcr.io/shop/small:v1")
	p.focus("#preheat-form [name=at]")
	p.press(time.Now().Add(time.Hour).Format(time.RFC3339), "Enter")
	p.until(`[...document.querySelectorAll("#preheats .state")].some(e => e.textContent === "scheduled")`)
	p.focus("#preheats [aria-label='End the preheat of ghcr.io/shop/small:v1']:not([hidden])")
	p.press("Enter")
	p.until(`document.getElementById("end-preheat-dialog").open`)
	p.press("Escape")
	p.press("Enter")
	p.focus("#end-preheat-form .primary")
	p.press("Enter")
	p.until(`![...document.querySelectorAll("#preheats .state")].some(e => e.textContent === "scheduled") && [...document.querySelectorAll("#preheats button")].every(b => b.hidden)`)

	p.focus("#images [aria-label='Preheat ghcr.io/shop/small:v1']")
	p.press("Enter")
	p.until(`document.querySelector("#preheat-form [name=ref]").value === "ghcr.io/shop/small:v1"`)
	p.press("Escape")
	p.focus("#images [aria-label='Evict ghcr.io/shop/small:v1']")
	p.press("Space")
	p.until(`document.getElementById("evict-dialog").open`)
	p.focus("#evict-form [name=all]")
	p.press("Space")
	p.focus("#evict-form .primary")
	p.press("Enter")
	p.until(`document.querySelectorAll("#images > li").length === 0 && document.getElementById("said").textContent.includes("freed")`)
	for _, m := range l.members {
		for begin := time.Now(); len(m.Images(t.Context()).Images) != 0; time.Sleep(100 * time.Millisecond) {
			if time.Since(begin) > 30*time.Second {
				t.Fatalf("after the eviction a member has %+v", m.Images(t.Context()).Images)
			}
		}
	}

	p.focus("#preheat-any")
	p.press("Enter")
	p.focus("#preheat-form [name=ref]")
	p.press("NO NAME", "Enter")
	p.until(`document.querySelector("#preheat-form .error").textContent.includes("NO NAME")`)
	p.press("Escape")
	p.problems = nil // the browser notes that the node has refused something
}

// TestThePageAsksForAToken and keeps it where other tabs and sites do not get it.
func TestThePageAsksForAToken(t *testing.T) {
	l := startLab(t, 64<<20)
	file := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(file, []byte("the-token-of-this-node\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	n, err := l.start("", func(c *node.Config) { c.AdminTokenFile = file })
	if err != nil {
		t.Fatal(err)
	}
	p := open(t, n.AdminURL())
	p.until(`document.getElementById("token-dialog").open`)
	p.focus("#token-form [name=token]")
	p.press("a wrong token", "Enter")
	p.until(`!document.querySelector("#token-form .error").hidden`)
	if strings.Contains(p.text("document.body.innerText"), "GiB") {
		t.Error("something is shown before there is a token")
	}
	p.step(step{Run: `document.querySelector("#token-form [name=token]").value = ""; 1`})
	p.focus("#token-form [name=token]")
	p.press("the-token-of-this-node", "Enter")
	p.until(`document.getElementById("live-text").textContent === "Live" && document.querySelectorAll("#members > li").length === 1`)
	if left := p.text(`document.cookie + JSON.stringify(localStorage) + location.href`); strings.Contains(left, "the-token") {
		t.Errorf("the token is left in %s", left)
	}
}

// Command browser drives a headless Chromium: it reads one step a line from the standard input,
// as JSON, and answers each with a line of JSON when it is done.
//
// It is a module of its own, to keep chromedp out of the product's.
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"os"
	"time"

	"github.com/chromedp/cdproto/cdp"
	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/chromedp"
	"github.com/chromedp/chromedp/kb"
)

// step is what the browser is to do; of its fields one or two are set.
type step struct {
	Open       string   `json:"open,omitempty"`       // a URL
	Width      int64    `json:"width,omitempty"`      // of the window, in CSS pixels
	Height     int64    `json:"height,omitempty"`     //
	Dark       bool     `json:"dark,omitempty"`       // with Width: the reader prefers that
	Still      bool     `json:"still,omitempty"`      // with Width: and no motion
	Run        string   `json:"run,omitempty"`        // JavaScript, whose value or promised value is the answer
	Until      string   `json:"until,omitempty"`      // JavaScript that is to become true
	Keys       []string `json:"keys,omitempty"`       // names of keys, or text to type
	Screenshot string   `json:"screenshot,omitempty"` // a file for a picture of the whole page
}

// answer is what came of a step.
type answer struct {
	Value    json.RawMessage `json:"value,omitempty"`
	Error    string          `json:"error,omitempty"`
	Problems []string        `json:"problems,omitempty"` // that the page has logged since the last step
}

var keys = map[string]string{
	"Tab": kb.Tab, "Enter": kb.Enter, "Escape": kb.Escape, "Space": " ", "ArrowDown": kb.ArrowDown, "ArrowUp": kb.ArrowUp,
}

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "browser:", err)
		os.Exit(1)
	}
}

func run() error {
	options := append(chromedp.DefaultExecAllocatorOptions[:], chromedp.NoSandbox, chromedp.Flag("disable-dev-shm-usage", true))
	if path := os.Getenv("CHROMIUM"); path != "" {
		options = append(options, chromedp.ExecPath(path))
	}
	ctx, cancel := chromedp.NewExecAllocator(context.Background(), options...)
	defer cancel()
	ctx, cancel = chromedp.NewContext(ctx)
	defer cancel()
	problems := make(chan string, 1000)
	if err := chromedp.Do(ctx, chromedp.Navigate("about:blank")); err != nil {
		return err
	}
	go note(problems, chromedp.Console(ctx)) // ends with ctx
	answers := json.NewEncoder(os.Stdout)
	lines := bufio.NewScanner(os.Stdin)
	lines.Buffer(nil, 16<<20)
	for lines.Scan() {
		var s step
		if err := json.Unmarshal(lines.Bytes(), &s); err != nil {
			return err
		}
		var a answer
		value, err := s.do(ctx)
		if a.Value = value; err != nil {
			a.Error = err.Error()
		}
		for len(problems) > 0 {
			a.Problems = append(a.Problems, <-problems)
		}
		if err := answers.Encode(a); err != nil {
			return err
		}
	}
	return lines.Err()
}

// note keeps what a page should not have to say: exceptions, errors and warnings.
func note(problems chan<- string, console iter.Seq2[chromedp.ConsoleMessage, error]) {
	for m, err := range console {
		if err != nil {
			return
		}
		level := string(m.Type)
		if (m.IsException() || level == "error" || level == "warning") && len(problems) < cap(problems) {
			problems <- m.String() + " " + m.URL
		}
	}
}

const (
	stepFor  = time.Minute
	untilFor = 30 * time.Second
)

func (s step) do(ctx context.Context) (value json.RawMessage, err error) {
	ctx, cancel := context.WithTimeout(ctx, stepFor)
	defer cancel()
	switch {
	case s.Open != "":
		return nil, chromedp.Do(ctx, chromedp.Navigate(s.Open))
	case s.Width != 0:
		if err := chromedp.Do(ctx, chromedp.EmulateViewport(s.Width, s.Height)); err != nil {
			return nil, err
		}
		_, err := chromedp.Run(ctx, s.prefers())
		return nil, err
	case s.Run != "":
		p, err := chromedp.Run(ctx, chromedp.Evaluate[[]byte](s.Run, chromedp.EvalAwaitPromise, chromedp.EvalAsValue))
		return json.RawMessage(p), err
	case s.Until != "":
		return nil, until(ctx, s.Until)
	case s.Screenshot != "":
		p, err := chromedp.Run(ctx, chromedp.FullScreenshot(100))
		if err != nil {
			return nil, err
		}
		return nil, os.WriteFile(s.Screenshot, p, 0o644)
	}
	for _, k := range s.Keys {
		if named := keys[k]; named != "" {
			k = named
		}
		if err := chromedp.Do(ctx, chromedp.KeyEvent(k)); err != nil {
			return nil, err
		}
	}
	return nil, nil
}

// prefers sets what the reader's system says of them.
func (s step) prefers() chromedp.Action[cdp.Empty] {
	scheme, motion := "light", "no-preference"
	if s.Dark {
		scheme = "dark"
	}
	if s.Still {
		motion = "reduce"
	}
	return func(ctx context.Context, t *chromedp.Target) (cdp.Empty, error) {
		_, err := cdp.Call(ctx, t, emulation.SetEmulatedMedia, emulation.SetEmulatedMediaParams{Features: []*emulation.MediaFeature{
			{Name: "prefers-color-scheme", Value: scheme}, {Name: "prefers-reduced-motion", Value: motion},
		}})
		return cdp.Empty{}, err
	}
}

// until waits for JavaScript to be true.
func until(ctx context.Context, script string) error {
	var said error
	for begin := time.Now(); time.Since(begin) < untilFor; time.Sleep(50 * time.Millisecond) {
		var ok bool
		if ok, said = chromedp.Run(ctx, chromedp.Evaluate[bool]("!!("+script+")")); ok {
			return nil
		}
		if ctx.Err() != nil {
			break
		}
	}
	return errors.Join(fmt.Errorf("never: %s", script), said)
}

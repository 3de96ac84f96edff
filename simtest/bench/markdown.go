package main

import (
	"bytes"
	"fmt"
	"io"
	"math"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"
)

// markdown writes all of it as a document.
func (r *report) markdown(w io.Writer) error {
	var b bytes.Buffer
	fmt.Fprintf(&b, "# Benchmarks\n\nBy `%s` on %s: %s.\n\n", r.command(), r.Date.Format(time.DateOnly), r.Machine)
	b.WriteString("Values are medians of the rounds; ratios are medians of those of each round, in which systems took turns.\n")
	for _, g := range r.Groups {
		fmt.Fprintf(&b, "\n## %s: %s\n\n", g.Name, g.Title)
		if g.Missing != "" {
			fmt.Fprintf(&b, "Not run: %s.\n", oneLine(g.Missing))
			continue
		}
		b.WriteString("| | system | median | unit | least to most | rounds | beside |\n|---|---|--:|---|--:|--:|---|\n")
		for _, t := range g.told() {
			b.WriteString(t.row())
		}
		if g.Error != "" {
			fmt.Fprintf(&b, "| the group | | FAILED | | | | %s |\n", oneLine(g.Error))
		}
		fmt.Fprintf(&b, "\nIt took %.0f s, from %s on, of commit %s. The machine's load was %s.\n", g.Seconds, g.Begun.Format("2006-01-02 15:04"), g.Commit, g.Load)
	}
	_, err := w.Write(b.Bytes())
	return err
}

func (r *report) command() string {
	if r.Scale == usual {
		return "go run ./simtest/bench"
	}
	return "go run ./simtest/bench -" + string(r.Scale)
}

func (t told) row() string {
	if t.Missing != "" {
		return fmt.Sprintf("| %s | %s | not measured | %s | | | %s |\n", oneLine(t.Name), oneLine(t.System), t.Unit, oneLine(t.Missing))
	}
	spread := ""
	if len(t.Values) > 1 {
		spread = number(t.Least) + " to " + number(t.Most)
	}
	return fmt.Sprintf("| %s | %s | %s | %s | %s | %d | %s |\n", oneLine(t.Name), oneLine(t.System), number(t.Median), t.Unit, spread, len(t.Values), oneLine(t.beside()))
}

// number has as many digits as say something: copies of an image are one and some thousandths.
func number(v float64) string {
	switch abs := math.Abs(v); {
	case abs >= 99.95 || v == math.Trunc(v):
		return fmt.Sprintf("%.0f", v)
	case abs >= 9.9995:
		return fmt.Sprintf("%.1f", v)
	case abs >= 0.9995:
		return fmt.Sprintf("%.3f", v)
	}
	return fmt.Sprintf("%.3g", v)
}

// oneLine makes a text one that a cell of a table can have: a bar would end it.
func oneLine(s string) string {
	const long = 400
	s = strings.Join(strings.Fields(strings.ReplaceAll(s, "|", `\|`)), " ")
	if r := []rune(s); len(r) > long {
		s = string(r[:long]) + "…"
	}
	return s
}

// What a document quotes stands between these lines.
const (
	quoteBegins = "<!-- what follows is written by: go run ./simtest/bench -readme README.md -->\n"
	quoteEnds   = "<!-- as far as here -->\n"
)

// quoted are the rows for README.md.
func (r *report) quoted() string {
	var b strings.Builder
	fmt.Fprintf(&b, "By `%s` on %s: %s; a load of up to %s before a group began.\nMedians, beside the others in the same run; [all of it](simtest/bench/results.md).\n\n", r.command(), r.Date.Format(time.DateOnly), r.Machine, number(r.load()))
	b.WriteString("| | Granary | beside |\n|---|--:|---|\n")
	for _, o := range r.Groups {
		for _, t := range o.ours() {
			if quotes(o.Name, t.what()) {
				fmt.Fprintf(&b, "| %s | %s %s | %s |\n", oneLine(t.what()), number(t.Median), t.Unit, oneLine(t.beside()))
			}
		}
	}
	return b.String()
}

// load is the most that the machine had in the minute before a group.
func (r *report) load() (most float64) {
	for _, o := range r.Groups {
		if v, err := strconv.ParseFloat(o.Load, 64); err == nil {
			most = max(most, v)
		}
	}
	return most
}

// what names a measurement, and the system where there are several of ours.
func (t told) what() string {
	if t.System == granary {
		return t.Name
	}
	return t.Name + ": " + strings.TrimLeft(strings.TrimPrefix(t.System, granary), ", ")
}

// quotes reports whether README.md has a row of a group.
func quotes(name, what string) bool {
	return slices.ContainsFunc(groups, func(g group) bool { return g.name == name && slices.Contains(g.quotes, what) })
}

// quoteIn writes the rows into a document.
func (r *report) quoteIn(file string) error {
	p, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	before, _, after, err := aroundQuote(string(p))
	if err != nil {
		return fmt.Errorf("%s: %w", file, err)
	}
	return os.WriteFile(file, []byte(before+r.quoted()+after), 0o644)
}

// aroundQuote cuts a document: the marks belong to what stands around.
func aroundQuote(text string) (before, quote, after string, err error) {
	before, rest, begins := strings.Cut(text, quoteBegins)
	quote, after, ends := strings.Cut(rest, quoteEnds)
	if !begins || !ends {
		return "", "", "", fmt.Errorf("the lines %q and %q are not there", quoteBegins, quoteEnds)
	}
	return before + quoteBegins, quote, quoteEnds + after, nil
}

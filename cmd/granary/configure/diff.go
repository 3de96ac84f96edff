package configure

import (
	"bytes"
	"fmt"
	"strings"
)

const (
	diffContext = 3
	maxDiff     = 4 << 20 // cells of the table that finds equal lines; beyond, all differ
)

// Diff returns what would be written as a unified diff.
func (p *Plan) Diff() string {
	var all strings.Builder
	for _, c := range p.Changes {
		if c.was == c.is && bytes.Equal(c.old, c.new) {
			continue
		}
		from, to := c.File, c.File
		if !c.was {
			from = "/dev/null"
		}
		if !c.is {
			to = "/dev/null"
		}
		fmt.Fprintf(&all, "--- %s\n+++ %s\n", from, to)
		for _, h := range hunks(lineDiff(lines(c.old), lines(c.new))) {
			h.write(&all)
		}
	}
	return all.String()
}

// lines splits a text after each newline.
func lines(text []byte) (all []string) {
	for l := range bytes.Lines(text) {
		all = append(all, string(l))
	}
	return all
}

// change is a line that is in both texts (' '), or in the old or the new one alone.
type change struct {
	kind byte // ' ', '-' or '+'
	line string
}

// lineDiff compares two texts by their longest common subsequence.
func lineDiff(a, b []string) (all []change) {
	for len(a) > 0 && len(b) > 0 && a[0] == b[0] {
		all, a, b = append(all, change{' ', a[0]}), a[1:], b[1:]
	}
	var tail []change
	for len(a) > 0 && len(b) > 0 && a[len(a)-1] == b[len(b)-1] {
		tail = append(tail, change{' ', a[len(a)-1]})
		a, b = a[:len(a)-1], b[:len(b)-1]
	}
	common := commonTable(a, b)
	for len(a) > 0 || len(b) > 0 {
		switch {
		case len(a) > 0 && len(b) > 0 && a[0] == b[0]:
			all, a, b = append(all, change{' ', a[0]}), a[1:], b[1:]
		case len(a) > 0 && (len(b) == 0 || common(len(a)-1, len(b)) >= common(len(a), len(b)-1)):
			all, a = append(all, change{'-', a[0]}), a[1:]
		default:
			all, b = append(all, change{'+', b[0]}), b[1:]
		}
	}
	for i := range tail {
		all = append(all, tail[len(tail)-1-i])
	}
	return all
}

// commonTable returns how many lines the last m and n lines of a and b have in common.
func commonTable(a, b []string) func(m, n int) int {
	width := len(b) + 1
	if (len(a)+1)*width > maxDiff {
		return func(int, int) int { return 0 }
	}
	table := make([]int, (len(a)+1)*width)
	for m := 1; m <= len(a); m++ {
		for n := 1; n <= len(b); n++ {
			if a[len(a)-m] == b[len(b)-n] {
				table[m*width+n] = table[(m-1)*width+n-1] + 1
			} else {
				table[m*width+n] = max(table[(m-1)*width+n], table[m*width+n-1])
			}
		}
	}
	return func(m, n int) int { return table[m*width+n] }
}

// hunk is a part of a diff, with the lines before it in each text.
type hunk struct {
	before  [2]int
	changes []change
}

// hunks returns the parts of a diff that have changes, with lines around them.
func hunks(all []change) (parts []hunk) {
	near := make([]bool, len(all))
	for i, c := range all {
		if c.kind != ' ' {
			for j := max(0, i-diffContext); j < min(len(all), i+diffContext+1); j++ {
				near[j] = true
			}
		}
	}
	var at [2]int
	for i, c := range all {
		if near[i] {
			if i == 0 || !near[i-1] {
				parts = append(parts, hunk{before: at})
			}
			last := &parts[len(parts)-1]
			last.changes = append(last.changes, c)
		}
		if c.kind != '+' {
			at[0]++
		}
		if c.kind != '-' {
			at[1]++
		}
	}
	return parts
}

func (h hunk) write(w *strings.Builder) {
	var count [2]int
	for _, c := range h.changes {
		if c.kind != '+' {
			count[0]++
		}
		if c.kind != '-' {
			count[1]++
		}
	}
	begin := h.before
	for i := range begin {
		if count[i] > 0 {
			begin[i]++ // a range of no lines is named by the line before it
		}
	}
	fmt.Fprintf(w, "@@ -%d,%d +%d,%d @@\n", begin[0], count[0], begin[1], count[1])
	for _, c := range h.changes {
		w.WriteByte(c.kind)
		w.WriteString(c.line)
		if !strings.HasSuffix(c.line, "\n") {
			w.WriteString("\n\\ No newline at end of file\n")
		}
	}
}

package main

import (
	"fmt"
	"html"
	"strings"
)

// cost is something that is plotted of each row.
type cost struct {
	file, what string
	of         func(result) float64
}

var costs = []cost{
	{"bound", "time of 99 % ÷ bound", result.ratio},
	{"registry", "copies that left the registry", func(r result) float64 { return r.Registry }},
	{"uplink", "use of all uplinks, in %", func(r result) float64 { return 100 * r.Uplink }},
	{"in-vain", "bytes that came in vain, in %", func(r result) float64 { return 100 * r.Duplicate }},
	{"messages", "messages of a node for each stripe", func(r result) float64 { return r.Control }},
}

const (
	barHeight = 16
	barLeft   = 330 // of the bars, beside their names
	barWidth  = 420 // of the longest
)

// bars draws the costs of each row, one below the other, as SVG.
func (r report) bars() string {
	var b strings.Builder
	y := top
	for _, c := range costs {
		most := 0.0
		for _, row := range r.Rows {
			most = max(most, c.of(row))
		}
		fmt.Fprintf(&b, `<text x="%d" y="%d" font-size="12">%s</text>`+"\n", 20, y+12, html.EscapeString(c.what))
		for i, row := range r.Rows {
			y += barHeight + 4
			width := 0.0
			if most > 0 {
				width = barWidth * c.of(row) / most
			}
			fmt.Fprintf(&b, `<text x="%d" y="%d" text-anchor="end">%s</text>`, barLeft-8, y+12, html.EscapeString(row.Name))
			fmt.Fprintf(&b, `<rect x="%d" y="%d" width="%.1f" height="%d" fill="hsl(%d,70%%,45%%)"/>`, barLeft, y, width, barHeight, i*360/len(r.Rows))
			fmt.Fprintf(&b, `<text x="%.1f" y="%d">%.4g</text>`+"\n", barLeft+width+6, y+12, c.of(row))
		}
		y += 2*barHeight + 4
	}
	return fmt.Sprintf(`<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d" font-family="sans-serif" font-size="11">`+"\n"+
		`<rect width="100%%" height="100%%" fill="white"/><text x="20" y="20" font-size="13">%s</text>`+"\n%s</svg>\n", plotWidth, y, html.EscapeString(r.Title), b.String())
}

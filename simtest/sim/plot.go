package main

import (
	"fmt"
	"html"
	"math"
	"os"
	"path/filepath"
	"strings"
)

// plot is lines in a frame, drawn as SVG.
type plot struct {
	title, x, y string
	logX        bool
	lines       []curve
}

type curve struct {
	name   string
	points [][2]float64
}

const (
	plotWidth, plotHeight = 900, 480
	left, right           = 70, 330
	top, bottom           = 40, 50
)

// plot writes the plots of a scenario: how many nodes had all by when, and what it has cost, as it grows with how many there are or,
// where they differ otherwise, in bars.
func (r report) plot(dir string, grows bool) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	times := plot{title: r.Title, x: "seconds", y: "share of the nodes that have all"}
	for _, row := range r.Rows {
		c := curve{name: row.Name}
		for i := 0; i <= 100 && len(row.Times) > 0; i++ {
			c.points = append(c.points, [2]float64{row.quantile(float64(i) / 100).Seconds(), float64(i) / 100})
		}
		times.lines = append(times.lines, c)
	}
	all := map[string]string{"times": times.svg()}
	for _, c := range costs {
		if grows {
			all[c.file] = r.growth(c.what, c.of).svg()
		}
	}
	if !grows {
		all["costs"] = r.bars()
	}
	for name, svg := range all {
		if err := os.WriteFile(filepath.Join(dir, fmt.Sprintf("scenario%d-%s.svg", r.Scenario, name)), []byte(svg), 0o644); err != nil {
			return err
		}
	}
	return nil
}

// growth plots something against how many nodes there are: a line for all rows that differ in nothing else.
func (r report) growth(what string, of func(result) float64) plot {
	p := plot{title: r.Title, x: "nodes", y: what, logX: true}
	for _, row := range r.Rows {
		_, name, _ := strings.Cut(row.Name, "nodes, ")
		if len(p.lines) == 0 || p.lines[len(p.lines)-1].name != name {
			i := len(p.lines) - 1
			for i >= 0 && p.lines[i].name != name {
				i--
			}
			if i < 0 {
				p.lines = append(p.lines, curve{name: name})
				i = len(p.lines) - 1
			}
		}
		for i := range p.lines {
			if p.lines[i].name == name {
				p.lines[i].points = append(p.lines[i].points, [2]float64{float64(row.Nodes), of(row)})
			}
		}
	}
	return p
}

func (p plot) svg() string {
	var b strings.Builder
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d" font-family="sans-serif" font-size="11">`+"\n", plotWidth, plotHeight)
	fmt.Fprintf(&b, `<rect width="100%%" height="100%%" fill="white"/><text x="%d" y="20" font-size="13">%s</text>`+"\n", left, html.EscapeString(p.title))
	x, y := p.scales()
	p.axes(&b, x, y)
	for i, c := range p.lines {
		color := fmt.Sprintf("hsl(%d,70%%,40%%)", i*360/max(len(p.lines), 1))
		var at []string
		for _, q := range c.points {
			at = append(at, fmt.Sprintf("%.1f,%.1f", x.of(q[0]), y.of(q[1])))
		}
		fmt.Fprintf(&b, `<polyline fill="none" stroke="%s" stroke-width="1.5" points="%s"/>`+"\n", color, strings.Join(at, " "))
		row := top + 8 + i*14
		fmt.Fprintf(&b, `<text x="%d" y="%d" fill="%s">%s</text>`+"\n", plotWidth-right+12, row, color, html.EscapeString(c.name))
	}
	b.WriteString("</svg>\n")
	return b.String()
}

// scale is where values are on an axis.
type scale struct {
	log      bool
	low, top float64 // values
	from, to float64 // places
}

func (s scale) of(v float64) float64 {
	low, high := s.low, s.top
	if s.log {
		low, high, v = math.Log10(low), math.Log10(high), math.Log10(v)
	}
	return s.from + (s.to-s.from)*(v-low)/(high-low)
}

// scales returns those of both axes, from nothing or, of a logarithm, from the least.
func (p plot) scales() (x, y scale) {
	x = scale{log: p.logX, from: left, to: plotWidth - right}
	y = scale{from: plotHeight - bottom, to: top}
	least := math.Inf(1)
	for _, c := range p.lines {
		for _, q := range c.points {
			x.top, y.top, least = max(x.top, q[0]), max(y.top, q[1]), min(least, q[0])
		}
	}
	if p.logX && !math.IsInf(least, 1) {
		x.low = least
	}
	if x.top <= x.low {
		x.top = x.low + 1
	}
	if y.top == 0 {
		y.top = 1
	}
	return x, y
}

// axes draws the frame, with five values on each axis.
func (p plot) axes(b *strings.Builder, x, y scale) {
	fmt.Fprintf(b, `<path d="M%d %dV%dH%d" fill="none" stroke="black"/>`+"\n", left, top, plotHeight-bottom, plotWidth-right)
	for i := range 6 {
		share := float64(i) / 5
		v := y.low + share*(y.top-y.low)
		fmt.Fprintf(b, `<text x="%d" y="%.1f" text-anchor="end">%.3g</text>`+"\n", left-6, y.of(v)+4, v)
		if v = x.low + share*(x.top-x.low); x.log {
			v = x.low * math.Pow(x.top/x.low, share)
		}
		fmt.Fprintf(b, `<text x="%.1f" y="%d" text-anchor="middle">%.4g</text>`+"\n", x.of(v), plotHeight-bottom+16, v)
	}
	fmt.Fprintf(b, `<text x="%d" y="%d">%s</text><text x="%d" y="34">%s</text>`+"\n", (left+plotWidth-right)/2, plotHeight-12, p.x, left, html.EscapeString(p.y))
}

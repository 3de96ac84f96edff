// Package pages reads the blocks of code of the documents, so that what tests run is what
// readers are told to. What a block means it leaves to those who run it.
package pages

import (
	"fmt"
	"os"
	"regexp"
	"strings"
)

// Page is the text of a document, or of a section of it.
type Page string

// Read reads a document.
func Read(path string) (Page, error) {
	p, err := os.ReadFile(path)
	return Page(p), err
}

// Section reads a section of a document.
func Section(path, title string) (Page, error) {
	p, err := Read(path)
	if err != nil {
		return "", err
	}
	s, err := p.Section(title)
	if err != nil {
		return "", fmt.Errorf("%s: %w", path, err)
	}
	return s, nil
}

// Section returns what is below a heading, up to the next that is not below it.
func (p Page) Section(title string) (Page, error) {
	begin, level, at, code := -1, 0, 0, false
	for line := range strings.Lines(string(p)) {
		text := strings.TrimLeft(line, "#")
		depth := len(line) - len(text)
		code = code != strings.HasPrefix(line, "```")
		switch heading := depth > 0 && !code; {
		case heading && begin < 0 && strings.TrimSpace(text) == title:
			begin, level = at+len(line), depth
		case heading && begin >= 0 && depth <= level:
			return p[begin:at], nil
		}
		at += len(line)
	}
	if begin < 0 {
		return "", fmt.Errorf("there is no section %q", title)
	}
	return p[begin:], nil
}

// Blocks returns the blocks of code in a language.
func (p Page) Blocks(language string) (all []string) {
	for _, m := range regexp.MustCompile("(?ms)^```"+regexp.QuoteMeta(language)+"\n(.*?)^```").FindAllStringSubmatch(string(p), -1) {
		all = append(all, m[1])
	}
	return all
}

// Commands returns the lines of each block of shell. One that goes on in the next is one.
func (p Page) Commands() (all [][]string) {
	for _, block := range p.Blocks("sh") {
		all = append(all, strings.Split(strings.TrimSpace(strings.ReplaceAll(block, "\\\n", " ")), "\n"))
	}
	return all
}

package leads

import (
	"path"
	"strings"
)

// maxLine is how much of a script's first line the kernel reads, in bytes
// (BINPRM_BUF_SIZE of Linux).
const maxLine = 256

// programDirs are where env finds a script's interpreter in most images.
var programDirs = []string{"/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"}

// script finds a script's interpreter, "#!/bin/sh" or "#!/usr/bin/env [-S] python3", and
// what it imports if that is Python.
func (s *search) script(name string, p []byte) {
	line, _, _ := strings.Cut(string(p[len("#!"):min(len(p), maxLine)]), "\n")
	words := strings.Fields(line)
	if len(words) == 0 || !path.IsAbs(words[0]) {
		return
	}
	s.add(words[0])
	program := path.Base(words[0])
	if program == "env" {
		program = s.named(words[1:])
	}
	if strings.HasPrefix(program, "python") {
		s.imports(folder(name), importsOf(p))
	}
}

// named adds the program that env is told to run, and returns its name.
func (s *search) named(words []string) string {
	for _, word := range words {
		if !strings.HasPrefix(word, "-") && !strings.Contains(word, "=") {
			s.program(word, nil)
			return word
		}
	}
	return ""
}

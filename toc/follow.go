package toc

import (
	"fmt"
	"path"
	"strings"
)

// maxFollow bounds the symlinks on the way to one name, as the kernel does.
const maxFollow = 40

// follower says where directories lead, by name. What it has been asked it remembers.
type follower struct {
	// target returns what the symlink of a clean name refers to, if there is one.
	target func(name string) (string, bool)
	led    map[string]lead // by a directory's name
	text   int             // bytes of the names that it has made
}

// lead is where a directory's name leads.
type lead struct {
	to       string
	followed int // symlinks on the way
}

// move returns the name of what is called name. The symlinks on the way to the
// directory that it is in are followed, and it itself is not.
func (f *follower) move(name string) (string, error) {
	dir := parent(name)
	l, err := f.follow(dir)
	if err != nil {
		return "", fmt.Errorf("entry %q: %w", shorten(name), err)
	}
	if l.to == dir {
		return name, nil
	}
	moved := join(l.to, name[len(dir)+1:])
	if err := f.made(moved); err != nil {
		return "", fmt.Errorf("entry %q: %w", shorten(name), err)
	}
	return moved, nil
}

// made counts a name, and reports whether it or all are too long.
func (f *follower) made(name string) error {
	f.text += len(name)
	switch {
	case len(name) > MaxName || strings.Count(name, "/") >= MaxDepth:
		return fmt.Errorf("%w: a name that symlinks make longer than %d bytes", ErrLimit, MaxName)
	case f.text > MaxText:
		return fmt.Errorf("%w: names that symlinks make longer than %d bytes", ErrLimit, MaxText)
	}
	return nil
}

// follow returns where a directory's name leads. It never leads out of the root, and may
// lead to what is not there. Each directory on the way is looked for once.
func (f *follower) follow(dir string) (lead, error) {
	if dir == "" {
		return lead{}, nil
	}
	if l, seen := f.led[dir]; seen {
		return l, nil
	}
	in := parent(dir)
	l, err := f.follow(in)
	if err != nil {
		return l, err
	}
	if l.to == in {
		l.to = dir // no copy: most names lead where they say
	} else {
		l.to = join(l.to, dir[strings.LastIndexByte(dir, '/')+1:])
	}
	if link, ok := f.target(l.to); ok {
		l.to = parent(l.to)
		err = l.through(link, f.target)
	}
	if err == nil && l.to != dir {
		err = f.made(l.to)
	}
	if err != nil {
		return l, err
	}
	if f.led == nil {
		f.led = make(map[string]lead)
	}
	f.led[dir] = l
	return l, nil
}

// through follows what a symlink in a directory refers to.
func (l *lead) through(link string, target func(string) (string, bool)) error {
	for rest, ok := "", true; ok || rest != ""; {
		if ok {
			if l.followed++; l.followed > maxFollow || len(link)+len(rest) > 2*MaxName {
				return fmt.Errorf("%w: more than %d symlinks on the way", ErrMalformed, maxFollow)
			}
			if path.IsAbs(link) {
				l.to = ""
			}
			rest, ok = link+"/"+rest, false
		}
		var element string
		element, rest, _ = strings.Cut(rest, "/")
		switch element {
		case "", ".":
			continue
		case "..":
			l.to = parent(l.to)
			continue
		}
		next := join(l.to, element)
		if link, ok = target(next); !ok {
			l.to = next
		}
	}
	return nil
}

func join(dir, name string) string {
	if dir == "" {
		return name
	}
	return dir + "/" + name
}

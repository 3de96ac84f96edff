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
	led    map[string]string // directories as they are named: where they lead
	text   int               // bytes of the names that it has made
}

// move returns the name of what is called name. The symlinks on the way to the
// directory that it is in are followed, and it itself is not.
func (f *follower) move(name string) (string, error) {
	dir := parent(name)
	to, seen := f.led[dir]
	if !seen {
		var err error
		if to, err = follow(dir, f.target); err != nil {
			return "", fmt.Errorf("entry %q: %w", shorten(name), err)
		}
		if f.led == nil {
			f.led = make(map[string]string)
		}
		f.led[dir] = to
	}
	if to == dir {
		return name, nil
	}
	moved := join(to, name[len(dir)+1:])
	f.text += len(moved)
	switch {
	case len(moved) > MaxName || strings.Count(moved, "/") >= MaxDepth:
		return "", fmt.Errorf("entry %q: %w: a name that symlinks make longer than %d bytes", shorten(name), ErrLimit, MaxName)
	case f.text > MaxText:
		return "", fmt.Errorf("entry %q: %w: names that symlinks make longer than %d bytes", shorten(name), ErrLimit, MaxText)
	}
	return moved, nil
}

// follow returns where a directory's name leads. It never leads out of the root, and may
// lead to what is not there.
func follow(dir string, target func(string) (string, bool)) (string, error) {
	at, rest, followed := "", dir, 0
	for rest != "" {
		var element string
		element, rest, _ = strings.Cut(rest, "/")
		switch element {
		case "", ".":
			continue
		case "..":
			at = parent(at)
			continue
		}
		var next string
		if followed == 0 { // no copy: most names lead where they say
			next = dir[:len(dir)-len(rest)-min(1, len(rest))]
		} else {
			next = join(at, element)
		}
		link, ok := target(next)
		if !ok {
			at = next
			continue
		}
		if followed++; followed > maxFollow || len(link)+len(rest) > 2*MaxName {
			return "", fmt.Errorf("%w: more than %d symlinks on the way", ErrMalformed, maxFollow)
		}
		if path.IsAbs(link) {
			at = ""
		}
		rest = link + "/" + rest
	}
	return at, nil
}

func join(dir, name string) string {
	if dir == "" {
		return name
	}
	return dir + "/" + name
}

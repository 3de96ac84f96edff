package configure

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// Plan is what is to be written. Nothing is before [Plan.Apply].
type Plan struct {
	// Changes are the files that change, and those that stay as they are.
	Changes []Change
	// Problems are what keeps the runtime from using the mirror, or may.
	Problems []Problem
	// After says what makes the runtime take the change up.
	After string

	writes []write // in this order
}

// Change is what becomes of a file.
type Change struct {
	File   string // as the machine calls it
	Action Action
	Detail string // for people

	old, new []byte
	was, is  bool // whether it exists
}

// Action is what is done to a file.
type Action string

// What is done to files.
const (
	Write   Action = "write"
	Keep    Action = "keep" // it is as it is to be
	Restore Action = "restore"
	Remove  Action = "remove"
	Refuse  Action = "refuse" // it cannot be undone
)

// Refused reports whether something could not be undone.
func (p *Plan) Refused() bool {
	return slices.ContainsFunc(p.Changes, func(c Change) bool { return c.Action == Refuse })
}

// New plans that a runtime has the mirror for the registries named, and for no others
// that an earlier call has named. Nothing is changed if the error is not nil.
func New(o Options) (*Plan, error) {
	s, err := newSetup(o)
	if err != nil {
		return nil, err
	}
	p := &Plan{After: s.after()}
	targets, problems, err := s.targets()
	if err != nil {
		return nil, err
	}
	var names []string
	for _, t := range targets {
		if err := p.add(s, t); err != nil {
			return nil, err
		}
		names = append(names, t.path)
	}
	if err := p.undoOthers(s, names); err != nil {
		return nil, err
	}
	more, err := s.inspect()
	p.Problems = append(problems, more...)
	return p, err
}

// Undo plans that a runtime's files are as they were before any [New]. Of the options
// only those are used that say where the files are.
func Undo(o Options) (*Plan, error) {
	o.Registries, o.Mirror = nil, "http://localhost"
	s, err := newSetup(o)
	if err != nil {
		return nil, err
	}
	p := &Plan{After: s.after()}
	return p, p.undoOthers(s, nil)
}

// undoOthers plans that all files which have a record, but those named, are restored.
func (p *Plan) undoOthers(s *setup, but []string) error {
	for _, pattern := range s.recordPlaces() {
		records, err := s.host.glob(pattern)
		if err != nil {
			return err
		}
		for _, r := range records {
			name := strings.TrimSuffix(r, recordSuffix)
			if slices.Contains(but, name) {
				continue
			}
			if err := p.undo(s, name); err != nil {
				return err
			}
		}
	}
	return nil
}

// add plans that a file has what it is to have.
func (p *Plan) add(s *setup, t target) error {
	f, err := s.host.read(t.path)
	if err != nil {
		return err
	}
	was, recorded, err := s.host.record(t.path)
	if err != nil {
		return err
	}
	before, existed := f.text, f.there
	var edited error
	if was != nil {
		if before, existed, edited = was.base(f, s.decode); edited != nil {
			before, existed = f.text, f.there
		}
	}
	text, pieces, err := edit(t.format, before)
	if err != nil {
		return fmt.Errorf("%s: %w", t.path, err)
	}
	c := Change{File: t.path, Action: Write, old: f.text, was: f.there, new: text, is: existed || len(pieces) > 0}
	if c.was == c.is && bytes.Equal(c.old, c.new) {
		c.Action, c.Detail = Keep, "the mirror is in it"
	}
	if edited != nil && len(pieces) == 0 {
		c.Detail = "the mirror is in it; " + edited.Error()
		p.Changes = append(p.Changes, c)
		return nil
	}
	p.Changes = append(p.Changes, c)
	if len(pieces) == 0 { // somebody else has put it there
		p.write(f, c, nil, recorded)
		return nil
	}
	now := &record{Version: recordVersion, Note: recordNote, Existed: existed, Before: before, After: []string{sum(text)}, Pieces: pieces}
	switch {
	case was == nil:
		if now.Made, err = s.host.missing(filepath.Dir(f.path)); err != nil {
			return err
		}
	case c.Action == Keep:
		now.Made = was.Made
		if was.Existed == now.Existed && bytes.Equal(was.Before, now.Before) { // else what was written then was of another text
			now.After = was.After
		}
	default:
		now.Made = was.Made
		if edited == nil { // until the file is written it is what it is now, and is undone the same
			now.After = append(now.After, sum(f.text))
		}
	}
	p.write(f, c, now, recorded)
	return nil
}

// undo plans that a file is as it was.
func (p *Plan) undo(s *setup, name string) error {
	was, recorded, err := s.host.record(name)
	if err != nil {
		return err
	}
	f, err := s.host.read(name)
	if err != nil {
		return err
	}
	text, there, err := was.base(f, s.decode)
	c := Change{File: name, Action: Restore, old: f.text, was: f.there, new: text, is: there}
	switch {
	case err != nil:
		c.Action, c.new, c.is = Refuse, f.text, f.there
		c.Detail = fmt.Sprintf("%v: take the mirror out by hand, and remove %s", err, name+recordSuffix)
		p.Changes = append(p.Changes, c)
		return nil
	case !f.there:
		c.Action, c.Detail = Keep, "somebody has removed it"
	case bytes.Equal(f.text, text):
		c.Action, c.Detail = Keep, "it is as it was"
	case !there:
		c.Action = Remove
	case !was.wrote(f.text):
		c.Detail = "it has been edited since; only what was added is taken out"
	}
	p.Changes = append(p.Changes, c)
	p.write(f, c, nil, recorded)
	p.writes[len(p.writes)-1].unmake = was.Made
	return nil
}

// write plans the writes of a file and of its record, nil for none, so that a crash
// between them loses nothing: the record is there for as long as the file needs it.
func (p *Plan) write(f *file, c Change, r *record, recorded *file) {
	ofFile := write{file: f, new: c.new, is: c.is}
	if f.there { // what is in the file is in the record, for the same eyes
		recorded.mode, recorded.uid, recorded.gid = f.mode, f.uid, f.gid
	}
	ofRecord := write{file: recorded}
	if r != nil {
		ofRecord.new, ofRecord.is = r.encode(), true
		p.writes = append(p.writes, ofRecord, ofFile)
		return
	}
	p.writes = append(p.writes, ofFile, ofRecord)
}

// missing counts the directories that have to be made for a path.
func (h host) missing(dir string) (n int, err error) {
	for ; dir != h.root && dir != "/"; dir = filepath.Dir(dir) {
		info, err := os.Stat(dir)
		if err == nil && !info.IsDir() {
			return 0, fmt.Errorf("%s: it is not a directory", strings.TrimPrefix(dir, strings.TrimSuffix(h.root, "/")))
		}
		if err == nil {
			break
		}
		if !errors.Is(err, os.ErrNotExist) {
			return 0, err
		}
		n++
	}
	if n > maxMade {
		return 0, fmt.Errorf("%s: more than %d directories would have to be made", dir, maxMade)
	}
	return n, nil
}

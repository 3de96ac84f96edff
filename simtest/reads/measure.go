package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"time"
)

// measure is something that is done in a tree, and how many units of it.
type measure struct {
	name, unit string
	units      float64
	do         func(dir string) error
	fresh      bool // the tree is mounted anew before
}

func (l *lab) measures() []measure {
	megabytes, random := float64(l.big)/1e6, float64(l.random)
	return []measure{
		{"one file of 256 MiB in order, first", "MB/s", megabytes, readInOrder, true},
		{"again", "MB/s", megabytes, readInOrder, false},
		{"its 4 KiB in any order, first", "reads/s", random, l.readRandom, true},
		{"4 KiB again", "reads/s", random, l.readRandom, false},
		{"find -size, first", "files/s", float64(l.small), l.find, true},
		{"find -size again", "files/s", float64(l.small), l.find, false},
		{"20,000 files of 2 KiB, first", "files/s", float64(l.cat), l.readSmall, true},
		{"small files again", "files/s", float64(l.cat), l.readSmall, false},
	}
}

// measure takes all measures of a system.
func (l *lab) measure(ctx context.Context, s *system, results map[string]map[string][]float64) (err error) {
	unmount := func() error { return nil }
	defer func() { err = errors.Join(err, unmount()) }()
	for _, m := range l.measures() {
		if m.fresh {
			if err := unmount(); err != nil {
				return err
			}
			if unmount, err = s.mount(ctx, l.mnt); err != nil {
				unmount = func() error { return nil }
				return err
			}
		}
		begin := time.Now()
		if err := m.do(l.mnt); err != nil {
			return fmt.Errorf("%s: %w", m.name, err)
		}
		if results[m.name] == nil {
			results[m.name] = make(map[string][]float64)
		}
		results[m.name][s.name] = append(results[m.name][s.name], m.units/time.Since(begin).Seconds())
	}
	return nil
}

func readInOrder(dir string) error {
	f, err := os.Open(filepath.Join(dir, bigFile))
	if err != nil {
		return err
	}
	defer f.Close()
	for p := make([]byte, 1<<20); ; {
		if _, err := f.Read(p); err == io.EOF {
			return nil
		} else if err != nil {
			return err
		}
	}
}

func (l *lab) readRandom(dir string) error {
	f, err := os.Open(filepath.Join(dir, bigFile))
	if err != nil {
		return err
	}
	defer f.Close()
	random := rand.New(rand.NewPCG(1, 2))
	p := make([]byte, 4096)
	for range l.random {
		if _, err := f.ReadAt(p, random.Int64N(int64(l.big)/4096)*4096); err != nil {
			return err
		}
	}
	return nil
}

// find looks at each file, as find(1) does for its size.
func (l *lab) find(dir string) error {
	found := 0
	err := filepath.WalkDir(dir, func(_ string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		found++
		_, err = e.Info()
		return err
	})
	if err == nil && found < l.small {
		err = fmt.Errorf("there are %d files", found)
	}
	return err
}

func (l *lab) readSmall(dir string) error {
	for i := range l.cat {
		if p, err := os.ReadFile(filepath.Join(dir, smallFile(i))); err != nil || len(p) != smallSize {
			return fmt.Errorf("%s: %d bytes, %w", smallFile(i), len(p), err)
		}
	}
	return nil
}

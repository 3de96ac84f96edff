package main

import (
	"context"
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	"github.com/granary-oci/granary/simtest/pages"
)

// Pages of deploy, of which the commands are run.
const (
	readme   = "README.md"
	upgrades = "upgrade.md"
)

// commandsOf returns the commands of a page that take a cluster.
func commandsOf(name string) ([]string, error) {
	page, err := pages.Read(filepath.Join("deploy", name))
	return slices.DeleteFunc(slices.Concat(page.Commands()...), func(line string) bool {
		return !strings.HasPrefix(line, "helm ") && !strings.HasPrefix(line, "kubectl ")
	}), err
}

// page runs a command of a page as it is written there; more is added to it.
func (l *lab) page(ctx context.Context, page, line string, more ...string) (string, error) {
	commands, err := commandsOf(page)
	if err != nil {
		return "", err
	}
	if !slices.Contains(commands, line) {
		return "", fmt.Errorf("deploy/%s has no command %q any more", page, line)
	}
	l.ran[line] = true
	return l.do(ctx, strings.Join(append([]string{line}, more...), " "))
}

// allRan looks for commands of the pages that no step has run.
func allRan(_ context.Context, l *lab) error {
	for _, page := range []string{readme, upgrades} {
		commands, err := commandsOf(page)
		if err != nil {
			return err
		}
		for _, c := range commands {
			if !l.ran[c] {
				return fmt.Errorf("deploy/%s: %s", page, c)
			}
		}
		fmt.Printf("  %d of deploy/%s\n", len(commands), page)
	}
	return nil
}

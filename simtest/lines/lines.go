// Package lines runs commands that are written as lines of words, without a shell.
package lines

import (
	"context"
	"fmt"
	"os/exec"
	"strings"
)

// Run runs one after the other, up to the first that fails: the error has what that printed.
func Run(ctx context.Context, lines ...string) error {
	for _, line := range lines {
		args := strings.Fields(line)
		if out, err := exec.CommandContext(ctx, args[0], args[1:]...).CombinedOutput(); err != nil {
			return fmt.Errorf("%s: %w: %s", line, err, out)
		}
	}
	return nil
}

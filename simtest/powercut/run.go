package powercut

import (
	"bufio"
	"fmt"
	"io"
	"os/exec"
)

// Run runs a program that works on the file system. Each line that it prints is
// a mark, which it waits to have answered with a line on its standard input:
// marks holds how many operations there had been at each.
//
// The program must not be this process if it maps files: a page fault cannot be
// answered while the collector waits for the thread that has it.
func (r *Recording) Run(cmd *exec.Cmd) (marks []int, err error) {
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	lines := bufio.NewScanner(out)
	for lines.Scan() {
		marks = append(marks, r.Len())
		if _, err := io.WriteString(in, "\n"); err != nil {
			break
		}
	}
	if err := cmd.Wait(); err != nil {
		return marks, fmt.Errorf("powercut: %s: %w", cmd.Path, err)
	}
	return marks, nil
}

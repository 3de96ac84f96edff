package images

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"time"

	"golang.org/x/sys/unix"
)

// Once makes a file if it is not there: all of it, or nothing.
func Once(name string, write func(to string) error) error {
	if _, err := os.Stat(name); err == nil {
		return nil
	}
	part := name + ".part"
	defer os.Remove(part)
	if err := write(part); err != nil {
		return err
	}
	return os.Rename(part, name)
}

// System is a Debian, bookworm.
type System struct {
	Packages string // with those of minbase, separated by commas
	Epoch    int    // seconds since 1970, which no file is younger than
	Security bool   // with its security updates
}

// Bootstrap makes a Debian, as a tar. The same packages give the same bytes.
func Bootstrap(ctx context.Context, to string, s System) (err error) {
	args := []string{"--quiet", "--variant=minbase", "--format=tar"}
	if s.Packages != "" {
		args = append(args, "--include="+s.Packages)
	}
	args = append(args, "bookworm", to, "http://deb.debian.org/debian")
	if s.Security {
		args = append(args, "deb http://deb.debian.org/debian-security bookworm-security main")
	}
	fmt.Fprintln(os.Stderr, "mmdebstrap bookworm", s.Packages)
	for range 3 { // a mirror may fail for a moment
		cmd := exec.CommandContext(ctx, "mmdebstrap", args...)
		cmd.Env = append(os.Environ(), fmt.Sprint("SOURCE_DATE_EPOCH=", s.Epoch))
		cmd.Cancel = func() error { return cmd.Process.Signal(unix.SIGTERM) } // it cleans up
		cmd.WaitDelay = 20 * time.Second
		out, failed := cmd.CombinedOutput()
		if err = failed; err == nil || ctx.Err() != nil {
			return err
		}
		err = fmt.Errorf("mmdebstrap: %w\n%s", err, out[max(0, len(out)-2000):])
	}
	return err
}

package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/granary-oci/granary/simtest/lines"
)

// home is where who follows the pages has what they begin with: the binary and the folder
// deploy.
const home = "/root/granary"

// machine is a Debian that systemd has booted.
type machine struct {
	*lab
	name, address string
	dir           string // what is its own: what it has changed of the Debian's files, its log
	nspawn        *exec.Cmd
	init          string // the process ID of its systemd, here
	ended         chan struct{}
}

func (l *lab) newMachine(name, address string) *machine {
	return &machine{lab: l, name: name, address: address, dir: filepath.Join(l.work, name)}
}

// changed is where a file of the machine's is that is not, or no more, the Debian's.
func (m *machine) changed(name string) string { return filepath.Join(m.dir, "changed", name) }

// write makes a file of the machine's before it is booted.
func (m *machine) write(name, text string) error {
	return errors.Join(os.MkdirAll(filepath.Dir(m.changed(name)), 0o755), os.WriteFile(m.changed(name), []byte(text), 0o644))
}

// state is where the machine's programs keep what they have: in a directory that is no
// overlay, for overlays are made in it.
const state = "/var/lib"

// lay lays the machine's own files over the Debian's.
func (m *machine) lay(ctx context.Context) error {
	debian := filepath.Join(m.work, "debian")
	authorities, err := os.ReadFile(filepath.Join(debian, "etc/ssl/certs/ca-certificates.crt"))
	certificate, cerr := os.ReadFile(m.registry.certificate)
	err = errors.Join(err, cerr,
		m.write("etc/hostname", m.name+"\n"),
		m.write("etc/hosts", fmt.Sprintf("127.0.0.1 localhost\n%s registry-1.docker.io\n44.0.0.11 one one.example.com\n44.0.0.12 two two.example.com\n", outside)),
		m.write("etc/systemd/network/10-host0.network", fmt.Sprintf("[Match]\nName=host0\n[Network]\nAddress=%s/24\n", m.address)),
		m.write("etc/ssl/certs/ca-certificates.crt", string(append(authorities, certificate...))),
		os.MkdirAll(m.changed(home), 0o700), os.Mkdir(filepath.Join(m.dir, "scratch"), 0o700), os.Mkdir(m.root(), 0o755))
	if err != nil {
		return err
	}
	if err := lines.Run(ctx, "cp -r deploy "+m.changed(home), "cp "+filepath.Join(m.work, binary)+" "+m.changed(home),
		"cp -a "+filepath.Join(debian, state)+" "+filepath.Join(m.dir, "state")); err != nil {
		return err
	}
	options := fmt.Sprintf("lowerdir=%s,upperdir=%s,workdir=%s", debian, m.changed("/"), filepath.Join(m.dir, "scratch"))
	return unix.Mount("overlay", m.root(), "overlay", 0, options)
}

// root is where the machine's files are, from here.
func (m *machine) root() string { return filepath.Join(m.dir, "root") }

// boot starts the machine and waits until its systemd has started everything.
func (m *machine) boot(ctx context.Context) error {
	cgroup := filepath.Join(m.cgroup, m.name)
	if err := os.MkdirAll(cgroup, 0o755); err != nil {
		return err
	}
	at, err := os.Open(cgroup)
	if err != nil {
		return err
	}
	defer at.Close()
	log, err := os.Create(filepath.Join(m.dir, "console.log"))
	if err != nil {
		return err
	}
	defer log.Close()
	args := []string{"--quiet", "--boot", "--directory=" + m.root(), "--machine=" + m.name, "--hostname=" + m.name, "--network-bridge=br0", "--resolv-conf=off",
		"--register=no", "--keep-unit", "--capability=all", "--bind=/dev/fuse", "--bind=" + filepath.Join(m.dir, "state") + ":" + state}
	m.nspawn = exec.Command("systemd-nspawn", args...)
	// A container in the machine calls what nspawn's own filter would refuse.
	m.nspawn.Env = append(os.Environ(), "SYSTEMD_SECCOMP=0")
	m.nspawn.Stdout, m.nspawn.Stderr = log, log
	m.nspawn.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(at.Fd()), Setpgid: true}
	if err := m.nspawn.Start(); err != nil {
		return err
	}
	m.ended = make(chan struct{})
	go func() { _ = m.nspawn.Wait(); close(m.ended) }()
	is := ""
	err = eventually(ctx, "it has booted", func() bool {
		pid := m.nspawn.Process.Pid
		children, _ := os.ReadFile(fmt.Sprintf("/proc/%d/task/%[1]d/children", pid))
		m.init = strings.TrimSpace(string(children))
		out, _ := exec.CommandContext(ctx, "nsenter", m.enter("systemctl", "is-system-running")...).Output()
		is = strings.TrimSpace(string(out))
		return is == "running" || is == "degraded" || !m.runs()
	})
	if err != nil || is != "running" {
		printed, _ := os.ReadFile(log.Name())
		return fmt.Errorf("it is %q: %v\n%s", is, err, printed[max(0, len(printed)-4000):])
	}
	return nil
}

func (m *machine) runs() bool {
	select {
	case <-m.ended:
		return false
	default:
		return true
	}
}

// end shuts the machine down, if it has been booted.
func (m *machine) end() error {
	if m.ended == nil {
		return nil
	}
	_ = m.nspawn.Process.Signal(syscall.SIGTERM)
	select {
	case <-m.ended:
	case <-time.After(30 * time.Second):
		_ = m.nspawn.Process.Kill()
		<-m.ended
		return errors.New("it did not shut down")
	}
	return nil
}

// enter returns nsenter's arguments for a program that is to run on the machine.
func (m *machine) enter(args ...string) []string {
	return append([]string{"--target", m.init, "--mount", "--uts", "--ipc", "--net", "--pid", "--cgroup", "--root", "--wd=/"}, args...)
}

// run runs a line of shell on the machine, as its root, as a service of its systemd, and
// returns what it printed.
func (m *machine) run(ctx context.Context, line string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "nsenter", m.enter("systemd-run", "--quiet", "--pipe", "--wait", "--collect",
		"--property=WorkingDirectory="+home, "--setenv=HOME=/root", "bash", "-eo", "pipefail", "-s")...)
	cmd.Stdin = strings.NewReader(line + "\n")
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	err := cmd.Run()
	return out.String(), err
}

// do runs a line, and shows both it and what it printed.
func (m *machine) do(ctx context.Context, line string) (string, error) {
	fmt.Printf("%s$ %s\n", m.name, line)
	out, err := m.run(ctx, line)
	lines := strings.SplitAfter(strings.TrimRight(out, "\n"), "\n")
	if few := 12; err == nil && !m.verbose && len(lines) > few {
		lines = append(lines[:few:few], fmt.Sprintf("… %d more lines", len(lines)-few))
	}
	if out != "" {
		fmt.Println("    " + strings.Join(lines, "    "))
	}
	if err != nil {
		return out, fmt.Errorf("machine %s: %s: %w", m.name, line, err)
	}
	return out, nil
}

// all runs lines, up to the first that fails.
func (m *machine) all(ctx context.Context, lines ...string) error {
	for _, line := range lines {
		if _, err := m.do(ctx, line); err != nil {
			return err
		}
	}
	return nil
}

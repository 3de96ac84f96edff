package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/granary-oci/granary/simtest/pages"
)

// steps are what is done, in order.
var steps = []struct {
	what string
	do   func(context.Context, *lab) error
}{
	{"a node is installed", install},
	{"Docker pulls through it", docker},
	{"podman and CRI-O pull through it", others},
	{"the node is killed", killed},
	{"the machine is booted again", bootedAgain},
	{"machines share", share},
	{"the node is upgraded", upgrade},
	{"containers run from mounts that outlive the node", snapshotter},
	{"all is taken back", undo},
}

// The blocks of recipe 2.
const (
	blockInstall = iota
	blockDocker
	blockOthers
	blockCluster
	blockSnapshotter
	blocks
)

// recipe returns the commands of a block of recipe 2.
func recipe(block int) ([]string, error) {
	section, err := pages.Section("deploy/README.md", "Recipe 2: a mirror for Docker, podman and CRI-O on a machine")
	if err != nil {
		return nil, err
	}
	all := section.Commands()
	if len(all) != blocks {
		return nil, fmt.Errorf("recipe 2 has %d blocks of commands, and this program knows %d", len(all), blocks)
	}
	return all[block], nil
}

// follow runs a block of recipe 2.
func (m *machine) follow(ctx context.Context, block int) error {
	lines, err := recipe(block)
	if err != nil {
		return err
	}
	return m.all(ctx, lines...)
}

func install(ctx context.Context, l *lab) error {
	if err := l.one.follow(ctx, blockInstall); err != nil {
		return err
	}
	// Who pastes a block does not wait.
	if _, err := l.one.do(ctx, "sudo systemctl restart granary && granary status"); err != nil {
		return err
	}
	user, err := l.one.do(ctx, `ps -o user= -p "$(systemctl show --property=MainPID --value granary)"`)
	if err == nil && strings.TrimSpace(user) == "root" {
		err = errors.New("the node runs as root")
	}
	return err
}

// docker follows the recipe where there is no daemon.json, as Debian's Docker comes.
func docker(ctx context.Context, l *lab) error {
	if err := l.one.follow(ctx, blockDocker); err != nil {
		return err
	}
	if _, err := l.one.do(ctx, "docker pull alpine:3"); err != nil {
		return err
	}
	out, err := l.one.do(ctx, "docker run --rm --network=none alpine:3 sha256sum /data/first")
	return errors.Join(err, l.registry.same(out, "first"), l.asked("granary"))
}

func others(ctx context.Context, l *lab) error {
	if err := l.one.follow(ctx, blockOthers); err != nil {
		return err
	}
	if err := l.one.all(ctx, "podman pull docker.io/library/alpine:3", "cri /run/crio/crio.sock docker.io/library/alpine:3", "granary doctor"); err != nil {
		return err
	}
	return l.asked() // the node had it all
}

// asked compares who asked the registry for blobs since it was last looked at with those
// who should have.
func (l *lab) asked(want ...string) error {
	who, err := l.registry.blobs()
	if err != nil {
		return err
	}
	fmt.Printf("    requests for blobs at the registry: %v\n", who)
	for name := range who {
		if !slices.Contains(want, name) {
			err = errors.Join(err, fmt.Errorf("%s asked the registry", name))
		}
	}
	for _, name := range want {
		if who[name] == 0 {
			err = errors.Join(err, fmt.Errorf("%s did not ask the registry", name))
		}
	}
	return err
}

// mainPID returns the process of the node's service.
func (m *machine) mainPID(ctx context.Context) (int, error) {
	out, err := m.run(ctx, "systemctl show --property=MainPID --value granary")
	if err != nil {
		return 0, err
	}
	return strconv.Atoi(strings.TrimSpace(out))
}

// comesBack waits until the node is another process than it was, and answers.
func (m *machine) comesBack(ctx context.Context, was int) error {
	return eventually(ctx, "the node has come back", func() bool {
		pid, err := m.mainPID(ctx)
		if err != nil || pid == 0 || pid == was {
			return false
		}
		_, err = m.run(ctx, "granary status")
		return err == nil
	})
}

// kill kills the node, and returns which process it was.
func (m *machine) kill(ctx context.Context) (was int, err error) {
	if was, err = m.mainPID(ctx); err == nil {
		_, err = m.do(ctx, fmt.Sprintf("kill -9 %d", was))
	}
	return was, err
}

func killed(ctx context.Context, l *lab) error {
	was, err := l.one.kill(ctx)
	if err != nil {
		return err
	}
	if err := l.one.comesBack(ctx, was); err != nil {
		return err
	}
	if err := l.one.all(ctx, "systemctl show --property=NRestarts,Result,SubState granary", "docker rmi alpine:3", "docker pull alpine:3"); err != nil {
		return err
	}
	return l.asked() // the store is as it was
}

// bootedAgain ends the machine and starts it: what is enabled comes without a word.
func bootedAgain(ctx context.Context, l *lab) error {
	if err := errors.Join(l.one.end(), l.one.boot(ctx)); err != nil {
		return err
	}
	out, err := l.one.do(ctx, "granary status >/dev/null; docker rmi alpine:3; docker pull alpine:3; journalctl --boot | grep -i cycle || true")
	if err == nil && strings.Contains(out, "ordering cycle") {
		err = errors.New("units wait for each other")
	}
	return errors.Join(err, l.asked())
}

// share makes a cluster of both machines. What the recipe leaves to the reader is to give
// the second machine the first one's secret.
func share(ctx context.Context, l *lab) error {
	if err := errors.Join(l.one.follow(ctx, blockCluster), l.two.follow(ctx, blockInstall)); err != nil {
		return err
	}
	secret, err := l.one.run(ctx, "cat /etc/granary/secret")
	if err != nil {
		return err
	}
	lines, err := recipe(blockCluster)
	if err != nil {
		return err
	}
	if !strings.HasPrefix(lines[0], "openssl rand ") {
		return fmt.Errorf("the first command does not make the secret: %s", lines[0])
	}
	given := fmt.Sprintf("echo %s | sudo install -m 0400 /dev/stdin /etc/granary/secret", strings.TrimSpace(secret))
	if err := l.two.all(ctx, append([]string{given}, lines[1:]...)...); err != nil {
		return err
	}
	for _, pair := range [][2]*machine{{l.one, l.two}, {l.two, l.one}} {
		err := eventually(ctx, pair[0].name+" knows "+pair[1].name, func() bool {
			out, err := pair[0].run(ctx, "granary peers")
			return err == nil && strings.Contains(out, pair[1].address)
		})
		if err != nil {
			return err
		}
	}
	if err := l.two.all(ctx, "granary peers", "granary pull alpine:3", "granary status"); err != nil {
		return err
	}
	return l.asked() // the first machine has it all
}

// upgrade follows the page with a binary that differs from the one before by what the
// program does not read.
func (m *machine) upgrade(ctx context.Context) error {
	section, err := pages.Section("deploy/upgrade.md", "On a machine")
	if err != nil {
		return err
	}
	if _, err := m.do(ctx, "echo another >>"+binary); err != nil {
		return err
	}
	if err := m.all(ctx, slices.Concat(section.Commands()...)...); err != nil {
		return err
	}
	_, err = m.do(ctx, `granary status >/dev/null; cmp /proc/"$(systemctl show --property=MainPID --value granary)"/exe `+binary)
	return err
}

func upgrade(ctx context.Context, l *lab) error {
	if err := l.one.upgrade(ctx); err != nil {
		return err
	}
	if err := l.one.all(ctx, "docker rmi alpine:3", "docker pull alpine:3", "granary peers"); err != nil {
		return err
	}
	return l.asked()
}

// snapshotter runs a container from a mount, and upgrades and kills the node that has made
// it. The container reads what it has not read before. It has no share of the CPU set, for
// where the system has cgroups of version 1 for that, the machine has none.
func snapshotter(ctx context.Context, l *lab) error {
	if err := l.two.follow(ctx, blockSnapshotter); err != nil {
		return err
	}
	if err := l.two.all(ctx, "systemctl restart containerd",
		"ctr image pull --snapshotter granary docker.io/library/alpine:3 >/dev/null",
		"ctr run --detach --cpu-shares 0 --snapshotter granary docker.io/library/alpine:3 test sleep 1000",
		"grep -w fuse /proc/mounts"); err != nil {
		return err
	}
	if err := l.reads(ctx, "first"); err != nil {
		return err
	}
	if err := errors.Join(l.two.upgrade(ctx), l.reads(ctx, "second")); err != nil {
		return err
	}
	was, err := l.two.kill(ctx)
	if err = errors.Join(err, l.reads(ctx, "third")); err != nil { // it waits
		return err
	}
	if err := l.two.comesBack(ctx, was); err != nil {
		return err
	}
	// As snapshotter.conf says of a unit that is stopped for good. The node may then be again
	// what it was before.
	return l.two.all(ctx, "ctr task delete --force test >/dev/null", "systemctl stop granary", "pgrep --full 'granary mounter'", "systemctl kill --signal=TERM granary",
		"for i in $(seq 50); do pgrep --full 'granary mounter' >/dev/null || exit 0; sleep 0.1; done; exit 1",
		"rm /etc/systemd/system/granary.service.d/snapshotter.conf; systemctl daemon-reload; systemctl start granary; granary status | grep store")
}

// reads has the container read a file of the image.
func (l *lab) reads(ctx context.Context, file string) error {
	out, err := l.two.do(ctx, fmt.Sprintf("ctr task exec --exec-id %s test sha256sum /data/%[1]s", file))
	return errors.Join(err, l.registry.same(out, file))
}

func undo(ctx context.Context, l *lab) error {
	if err := l.one.all(ctx, "sudo granary configure docker --undo", "sudo granary configure podman --undo", "sudo systemctl reload docker"); err != nil {
		return err
	}
	left, err := l.one.do(ctx, "find /etc/docker /etc/containers -type f -newer /etc/granary/config.yaml -o -name '*granary*'")
	if err == nil && left != "" {
		err = errors.New("there is still something")
	}
	return err
}

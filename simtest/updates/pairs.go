package main

import (
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// pair is what two versions of something unpack to: a tar each.
type pair struct{ older, newer []byte }

// set is a row of pairs that are got in the same way.
type set struct {
	name string
	// names of what there is, each with its two versions, unless these are to be found out.
	names    []string
	versions [2]string
	find     func(ctx context.Context, name string) (older, newer string, err error)
	// fetch gets a version of something as a file in dir, and tar unpacks that.
	fetch func(ctx context.Context, dir, name, version string) error
	tar   func(ctx context.Context, file string) ([]byte, error)
}

var sets = []set{
	{
		name:  "Debian",
		names: []string{"openjdk-17-jre-headless", "postgresql-15", "libc6", "git", "libpython3.11-stdlib", "libssl3", "libperl5.36", "systemd", "apache2-bin"},
		find:  debianVersions, fetch: fetchDebian, tar: unpackDebian,
	},
	{name: "next", names: []string{"next"}, versions: [2]string{"14.1.4", "14.2.5"}, fetch: fetchNPM, tar: gunzip},
	{name: "typescript", names: []string{"typescript"}, versions: [2]string{"5.4.5", "5.5.4"}, fetch: fetchNPM, tar: gunzip},
}

// get gets the set's pairs, and says which versions these are of.
func (s *set) get(ctx context.Context, dir string) (all []pair, err error) {
	for _, name := range s.names {
		older, newer := s.versions[0], s.versions[1]
		if s.find != nil {
			if older, newer, err = s.find(ctx, name); err != nil {
				return nil, err
			}
		}
		fmt.Fprintf(os.Stderr, "%s %s, %s\n", name, older, newer)
		var p pair
		if p.older, err = s.version(ctx, dir, name, older); err != nil {
			return nil, err
		}
		if p.newer, err = s.version(ctx, dir, name, newer); err != nil {
			return nil, err
		}
		all = append(all, p)
	}
	return all, nil
}

// version returns the tar of a version, which is fetched unless it is there.
func (s *set) version(ctx context.Context, dir, name, version string) ([]byte, error) {
	dir = filepath.Join(dir, name, strings.ReplaceAll(version, ":", "%3a"))
	file, err := only(dir)
	if errors.Is(err, os.ErrNotExist) {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return nil, err
		}
		if err := s.fetch(ctx, dir, name, version); err != nil {
			return nil, errors.Join(err, os.RemoveAll(dir))
		}
		file, err = only(dir)
	}
	if err != nil {
		return nil, err
	}
	return s.tar(ctx, file)
}

// only returns the file that a directory has.
func only(dir string) (string, error) {
	files, err := os.ReadDir(dir)
	if err != nil {
		return "", err
	}
	if len(files) != 1 {
		return "", fmt.Errorf("%s: %d files", dir, len(files))
	}
	return filepath.Join(dir, files[0].Name()), nil
}

// debianVersions returns the oldest and newest version of a package that the mirrors have.
func debianVersions(ctx context.Context, name string) (older, newer string, err error) {
	out, err := output(ctx, "", "apt-cache", "madison", name) // the newest first
	if err != nil {
		return "", "", err
	}
	var versions []string
	for line := range strings.Lines(string(out)) {
		if fields := strings.Split(line, "|"); len(fields) == 3 && strings.HasSuffix(strings.TrimSpace(fields[2]), "Packages") {
			versions = append(versions, strings.TrimSpace(fields[1]))
		}
	}
	if len(versions) < 2 || versions[0] == versions[len(versions)-1] {
		return "", "", fmt.Errorf("%s: the mirrors have no two versions: %q", name, versions)
	}
	return versions[len(versions)-1], versions[0], nil
}

func fetchDebian(ctx context.Context, dir, name, version string) error {
	_, err := output(ctx, dir, "apt-get", "-qq", "download", name+"="+version)
	return err
}

func unpackDebian(ctx context.Context, file string) ([]byte, error) {
	return output(ctx, "", "dpkg-deb", "--fsys-tarfile", file)
}

func fetchNPM(ctx context.Context, dir, name, version string) error {
	_, err := output(ctx, dir, "npm", "pack", "--silent", name+"@"+version)
	return err
}

func gunzip(_ context.Context, file string) ([]byte, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	z, err := gzip.NewReader(f)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	return io.ReadAll(z)
}

// output returns what a program prints; the error has what it complains about.
func output(ctx context.Context, dir string, args ...string) ([]byte, error) {
	var complaints bytes.Buffer
	cmd := exec.CommandContext(ctx, args[0], args[1:]...)
	cmd.Dir, cmd.Stderr = dir, &complaints
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("%s: %w: %s", strings.Join(args, " "), err, &complaints)
	}
	return out, nil
}

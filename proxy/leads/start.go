package leads

import (
	"path"
	"slices"
	"strings"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/granary-oci/granary/toc"
)

// loaders are the interpreters of executables that most systems have: of glibc, and of
// musl, which are named for the machine.
var loaders = []string{
	"/lib64/ld-linux-x86-64.so.2", "/lib/ld-linux-aarch64.so.1", "/lib/ld-linux-riscv64-lp64d.so.1", "/lib64/ld64.so.2",
	"/lib/ld64.so.1", "/lib/ld-linux-armhf.so.3", "/lib/ld-linux.so.2", "/lib/ld-musl-x86_64.so.1", "/lib/ld-musl-aarch64.so.1",
}

// libc is the library that all programs need, of glibc.
const libc = "libc.so.6"

// Start returns what is read of an image before anything leads to it: the program that
// its configuration says is run, files that are named to that, and what programs are
// loaded by.
func (f *Finder) Start(config ocispec.ImageConfig) []toc.File {
	s := &search{Finder: f}
	args := slices.Concat(config.Entrypoint, config.Cmd)
	for i, arg := range args[:min(len(args), maxArgs)] {
		switch {
		case arg == "" || strings.HasPrefix(arg, "-"):
		case path.IsAbs(arg):
			s.add(arg)
		case i > 0 || strings.Contains(arg, "/"):
			s.add(path.Join("/", config.WorkingDir, arg))
		default:
			s.program(arg, config.Env)
		}
	}
	for _, name := range loaders {
		if s.loader(name) {
			s.library(libc, s.learned(&s.libraries))
			break // others are for programs of other machines
		}
	}
	return s.found
}

// maxArgs is how many words of a command are looked at.
const maxArgs = 16

// program adds the program of a name, from where the environment says programs are.
func (s *search) program(name string, env []string) {
	dirs := programDirs
	for _, variable := range env {
		if list, ok := strings.CutPrefix(variable, "PATH="); ok {
			dirs = strings.Split(list, ":")
		}
	}
	for _, dir := range dirs[:min(len(dirs), maxDirs)] {
		if _, ok := s.add(dir + "/" + name); ok {
			return
		}
	}
}

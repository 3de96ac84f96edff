package configure

import "fmt"

// State is what a runtime's files say of the mirror.
type State struct {
	// Present says whether the machine seems to have the runtime. Podman and CRI-O have
	// the same files, so these do not tell.
	Present bool
	// Mirrored are the files that have the mirror.
	Mirrored []string
	// Problems are what keeps the runtime from using it, or may.
	Problems []Problem
}

// signs are what a machine has that has a runtime.
var signs = map[string][]string{
	Containerd: {"/etc/containerd", "/run/containerd/containerd.sock"},
	Podman:     {"/usr/bin/podman", "/etc/containers/registries.conf", "/run/podman/podman.sock"},
	CRIO:       {"/etc/crio", "/run/crio/crio.sock"},
	Docker:     {"/etc/docker", "/run/docker.sock"},
	BuildKit:   {"/etc/buildkit", "/run/buildkit/buildkitd.sock"},
}

// Runtimes returns the names of the runtimes, in a fixed order.
func Runtimes() []string { return []string{Containerd, CRIO, Podman, Docker, BuildKit} }

// Inspect looks at a runtime's files and changes none.
func Inspect(o Options) (State, error) {
	s, err := newSetup(o)
	if err != nil {
		return State{}, err
	}
	var state State
	for _, sign := range append([]string{s.Config}, signs[s.Runtime]...) {
		if info, err := s.host.stat(sign); err == nil && info != nil {
			state.Present = true
		}
	}
	if err := s.find(&state); err != nil {
		return state, err
	}
	more, err := s.inspect()
	state.Problems = append(state.Problems, more...)
	return state, err
}

// find finds the files that have the mirror. One registry is enough: which are to have
// it is for those who configure it to say.
func (s *setup) find(state *State) error {
	if s.Runtime != Containerd && len(s.Registries) == 0 {
		s.Registries = wellKnown[:1]
	}
	targets, problems, err := s.targets()
	if err != nil {
		return err
	}
	if s.Runtime == Containerd {
		found, err := s.host.glob(s.Dir + "/*/" + hostsFile)
		if err != nil {
			return err
		}
		format := targets[0].format
		targets = nil
		for _, name := range found {
			targets = append(targets, target{name, format})
		}
	}
	for _, t := range targets {
		has, err := s.has(t)
		if err != nil {
			return err
		}
		if has {
			state.Mirrored = append(state.Mirrored, t.path)
		}
	}
	if len(state.Mirrored) == 0 {
		problems = []Problem{{
			fmt.Sprintf("%s is not told of the mirror: no file of its configuration has %s", s.Runtime, s.mirror),
			fmt.Sprintf("granary configure %s --mirror %s", s.Runtime, s.mirror), false,
		}}
	}
	state.Problems = problems
	return nil
}

// inspect says whether what is configured is read.
func (s *setup) inspect() ([]Problem, error) {
	if s.Runtime == Containerd {
		return s.inspectContainerd()
	}
	return nil, nil
}

package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// shell runs a script in a shell, with the completion in a file that $1 names.
func shell(t *testing.T, name, script string) []string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatalf("MISSING: %s; CI has it", name)
		}
		t.Skipf("there is no %s", name)
	}
	status, completion, errs := granary(t, "completion", name)
	if status != 0 {
		t.Fatalf("completion %s: %d, %s", name, status, errs)
	}
	file := filepath.Join(t.TempDir(), "_granary")
	if err := os.WriteFile(file, []byte(completion), 0o600); err != nil {
		t.Fatal(err)
	}
	args := []string{"-c", script, name, file}
	if name == "fish" {
		args = []string{"--no-config", "-c", script, file}
	}
	cmd := exec.CommandContext(t.Context(), path, args...)
	cmd.Env = append(os.Environ(), "HOME="+t.TempDir())
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v\n%s", name, err, out)
	}
	return strings.Fields(string(out))
}

// completedLines are command lines, the last word of which is to be completed, and what is found.
var completedLines = map[string][]string{
	"granary preh":                       {"preheat"},
	"granary --log-level debug preh":     {"preheat"},
	"granary preheat --all":              {"--all-nodes"},
	"granary pull --compat re":           {"require"},
	"granary completion z":               {"zsh"},
	"granary --log-form":                 {"--log-format"},
	"granary serve --admin-t":            {"--admin-token-file"},
	"granary serve --admin-open metr":    {"metrics"},
	"granary status --node-to":           {"--node-token-file"},
	"granary assemb":                     nil, // it is hidden
	"granary preheat --cluster-secret-f": nil, // it is serve's
}

func TestBashCompletes(t *testing.T) {
	for line, want := range completedLines {
		script := fmt.Sprintf(`. "$1"; COMP_WORDS=(%s); COMP_CWORD=$((${#COMP_WORDS[@]} - 1)); _granary; echo "${COMPREPLY[@]}"`, line)
		if got := shell(t, "bash", script); !slices.Equal(got, want) {
			t.Errorf("%s: %v, want %v", line, got, want)
		}
	}
}

func TestFishCompletes(t *testing.T) {
	for line, want := range completedLines {
		got := shell(t, "fish", fmt.Sprintf(`source $argv[1]; complete -C %q | string split -f1 \t; true`, line))
		if !slices.Equal(got, want) {
			t.Errorf("%s: %v, want %v", line, got, want)
		}
	}
}

// TestZshCompletes takes note of what the function offers, of which zsh chooses what begins like the
// word.
func TestZshCompletes(t *testing.T) {
	for line, want := range completedLines {
		script := fmt.Sprintf(`_describe() { local -a all; [[ $1 == -o ]] && shift; all=("${(@P)2}"); print -l -- "${(@)all%%%%:*}" }
			compadd() { shift; print -l -- "$@" }; _files() { : }; source "$1"; words=(%s); CURRENT=${#words}; _granary; true`, line)
		word := line[strings.LastIndexByte(line, ' ')+1:]
		got := slices.DeleteFunc(shell(t, "zsh", script), func(s string) bool { return !strings.HasPrefix(s, word) })
		if !slices.Equal(got, want) && len(got)+len(want) > 0 {
			t.Errorf("%s: %v, want %v", line, got, want)
		}
	}
}

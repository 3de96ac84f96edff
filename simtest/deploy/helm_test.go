package deploy

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

const (
	chart     = "../../deploy/helm/granary"
	namespace = "kube-system"
)

// missing skips a test for want of something, or fails it where all should be there.
func missing(t *testing.T, what string) {
	t.Helper()
	if os.Getenv("CI") == "true" {
		t.Fatalf("MISSING: %s; CI has it", what)
	}
	t.Skipf("MISSING: %s; run simtest/e2e/install.sh as root", what)
}

// tool finds a program that install.sh has built.
func tool(t *testing.T, name string) string {
	t.Helper()
	path, err := exec.LookPath(filepath.Join(os.Getenv("GRANARY_TOOLS"), name))
	if os.Getenv("GRANARY_TOOLS") == "" || err != nil {
		missing(t, name+" in $GRANARY_TOOLS")
	}
	return path
}

// program finds a program of the system.
func program(t *testing.T, name string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		missing(t, name)
	}
	return path
}

// run returns what a command prints.
func run(stdin []byte, name string, args ...string) ([]byte, error) {
	cmd := exec.Command(name, args...)
	cmd.Stdin = bytes.NewReader(stdin)
	var errs bytes.Buffer
	cmd.Stderr = &errs
	out, err := cmd.Output()
	if err != nil {
		return out, fmt.Errorf("%s %s: %w\n%s", filepath.Base(name), strings.Join(args, " "), err, errs.Bytes())
	}
	return out, nil
}

func must(t *testing.T, out []byte, err error) []byte {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// helm renders the chart. The program that install.sh builds takes itself for a client of
// Kubernetes 1.20.
func helm(t *testing.T, verb string, args ...string) ([]byte, error) {
	t.Helper()
	args = append([]string{verb}, args...)
	return run(nil, tool(t, "helm"), append(args, "--kube-version", "1.35.0")...)
}

// object is what is read of an object of Kubernetes.
type object struct {
	Kind     string
	Metadata struct {
		Name, Namespace     string
		Labels, Annotations map[string]string
	}
	Spec spec
	Data map[string]string // base64, in a secret

	text string // as JSON
}

// spec has the fields of all kinds.
type spec struct {
	Template                 template
	Selector                 json.RawMessage
	PublishNotReadyAddresses bool
	MinReadySeconds          int
	UpdateStrategy           struct{ Type string }
}

type template struct {
	Metadata struct{ Labels, Annotations map[string]string }
	Spec     podSpec
}

// decoded returns objects that are right in the eyes of Kubernetes' own types.
func decoded(t *testing.T, rendered []byte) []object {
	t.Helper()
	out, err := run(rendered, tool(t, "strict"), "kubernetes")
	var raw []json.RawMessage
	if err = jsonInto(must(t, out, err), &raw); err != nil {
		t.Fatal(err)
	}
	var all []object
	for _, r := range raw {
		var o object
		if err := jsonInto(r, &o); err != nil {
			t.Fatal(err)
		}
		o.text = string(r)
		all = append(all, o)
	}
	return all
}

func jsonInto(p []byte, v any) error {
	if err := json.Unmarshal(p, v); err != nil {
		return fmt.Errorf("%w: %s", err, p)
	}
	return nil
}

// render renders the chart as the release granary, with arguments of helm.
func render(t *testing.T, args ...string) []object {
	t.Helper()
	out, err := helm(t, "template", append([]string{"granary", chart, "--namespace", namespace}, args...)...)
	return decoded(t, must(t, out, err))
}

// one returns the only object of a kind and a name.
func one(t *testing.T, all []object, kind, name string) object {
	t.Helper()
	i := slices.IndexFunc(all, func(o object) bool { return o.Kind == kind && o.Metadata.Name == name })
	if i < 0 {
		t.Fatalf("there is no %s %s", kind, name)
	}
	return all[i]
}

// kinds returns how many objects of each kind there are.
func kinds(all []object) map[string]int {
	n := make(map[string]int)
	for _, o := range all {
		n[o.Kind]++
	}
	return n
}

// errorOf adds to an error what a command has printed.
func errorOf(err error, out string) error { return fmt.Errorf("%w: %s", err, out) }

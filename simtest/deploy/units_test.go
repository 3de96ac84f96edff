package deploy

import (
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

const units = "../../deploy/systemd/"

// unitRoot makes a file system in which the service is installed with drop-ins.
func unitRoot(t *testing.T, dropIns ...string) string {
	t.Helper()
	root := t.TempDir()
	system := filepath.Join(root, "etc/systemd/system")
	err := errors.Join(os.MkdirAll(system+"/granary.service.d", 0o755), os.MkdirAll(root+"/usr/local/bin", 0o755), os.MkdirAll(root+"/usr/lib/systemd", 0o755),
		os.WriteFile(root+"/usr/local/bin/granary", []byte("#!"), 0o755), exec.Command("cp", "-a", "/usr/lib/systemd/system", root+"/usr/lib/systemd/").Run())
	for _, f := range append([]string{"granary.service"}, dropIns...) {
		p, rerr := os.ReadFile(units + f)
		to := filepath.Join(system, f)
		if f != "granary.service" {
			to = filepath.Join(system, "granary.service.d", f)
		}
		err = errors.Join(err, rerr, os.WriteFile(to, p, 0o644))
	}
	if err != nil {
		t.Fatal(err)
	}
	return root
}

// TestUnitsAreRight has systemd read the service, alone and with each drop-in.
func TestUnitsAreRight(t *testing.T) {
	analyze := program(t, "systemd-analyze")
	for _, dropIns := range [][]string{nil, {"cluster.conf"}, {"snapshotter.conf"}, {"cluster.conf", "snapshotter.conf"}} {
		cmd := exec.Command(analyze, "verify", "--man=no", "--recursive-errors=no", "--root", unitRoot(t, dropIns...), "granary.service")
		if out, err := cmd.CombinedOutput(); err != nil || len(out) > 0 {
			t.Errorf("with %v: %v: %s", dropIns, err, out)
		}
	}
}

// TestTheServiceIsStartedWhenItAnswers: the recipe asks the node at once. That the node says
// when it answers is tested in simtest/e2e, both together in simtest/machine.
func TestTheServiceIsStartedWhenItAnswers(t *testing.T) {
	p, err := os.ReadFile(units + "granary.service")
	if text := string(must(t, p, err)); !strings.Contains(text, "\nType=notify\n") {
		t.Error("systemd does not wait until the node answers")
	}
}

// exposure has systemd judge the service.
func exposure(t *testing.T, dropIns ...string) (score float64, set map[string]bool) {
	t.Helper()
	analyze := program(t, "systemd-analyze")
	root := unitRoot(t, dropIns...)
	out, err := run(nil, analyze, "security", "--offline=true", "--root", root, "granary.service")
	m := regexp.MustCompile(`exposure level for granary.service: ([0-9.]+)`).FindSubmatch(must(t, out, err))
	if m == nil {
		t.Fatalf("there is no score in\n%s", out)
	}
	if score, err = strconv.ParseFloat(string(m[1]), 64); err != nil {
		t.Fatal(err)
	}
	out, err = run(nil, analyze, "security", "--offline=true", "--json=short", "--root", root, "granary.service")
	var checks []struct {
		Field string `json:"json_field"`
		Set   *bool
	}
	if err := json.Unmarshal(must(t, out, err), &checks); err != nil {
		t.Fatal(err)
	}
	set = make(map[string]bool)
	for _, c := range checks {
		set[c.Field] = c.Set != nil && *c.Set
	}
	return score, set
}

// TestTheServiceIsConfined: systemd's own score says so, 10 being no protection at all. A
// snapshotter has none that would give it mounts of its own: containerd would not see what
// it mounts.
func TestTheServiceIsConfined(t *testing.T) {
	if score, _ := exposure(t, "cluster.conf"); score > 2 {
		t.Errorf("exposure %v, want 2 at the most", score)
	}
	_, set := exposure(t, "snapshotter.conf")
	for _, own := range []string{"PrivateTmp", "PrivateDevices", "ProtectSystem", "ProtectHome", "ProtectKernelTunables", "ProtectKernelModules",
		"ProtectKernelLogs", "ProtectControlGroups", "ProtectProc", "ProcSubset", "PrivateMounts", "RootDirectoryOrRootImage"} {
		if on, known := set[own]; on || !known {
			t.Errorf("with the snapshotter, %s is set (%v), or not known (%v)", own, on, !known)
		}
	}
	p, err := os.ReadFile(units + "snapshotter.conf")
	if text := string(must(t, p, err)); !strings.Contains(text, "\nKillMode=process\n") {
		t.Error("the process that keeps the mounts ends with the node")
	}
}

// TestMetricsThatAreWatchedExist reads the alerts' and the dashboard's expressions as
// Prometheus does, and compares what they read with ARCHITECTURE.md's table.
func TestMetricsThatAreWatchedExist(t *testing.T) {
	var rules struct {
		Groups []struct{ Rules []struct{ Expr string } }
	}
	rendered := one(t, render(t, "--set", "metrics.prometheusRule.enabled=true"), "PrometheusRule", "granary")
	var o struct{ Spec json.RawMessage }
	if err := errors.Join(jsonInto([]byte(rendered.text), &o), jsonInto(o.Spec, &rules)); err != nil {
		t.Fatal(err)
	}
	var board struct {
		Panels []struct {
			Title   string
			Targets []struct{ Expr string }
		}
	}
	dashboard := one(t, render(t, "--set", "metrics.grafanaDashboard.enabled=true"), "ConfigMap", "granary-dashboard").Data["granary.json"]
	if err := jsonInto([]byte(dashboard), &board); err != nil {
		t.Fatal(err)
	}
	var lines []string
	add := func(expr string) {
		expr = strings.NewReplacer("$__rate_interval", "5m", "$__range", "1h", "$node", ".*").Replace(expr)
		lines = append(lines, strings.Join(strings.Fields(expr), " "))
	}
	for _, r := range rules.Groups[0].Rules {
		add(r.Expr)
	}
	for _, p := range board.Panels {
		for _, target := range p.Targets {
			add(target.Expr)
		}
	}
	if len(lines) < 15 {
		t.Fatalf("%d expressions", len(lines))
	}
	out, err := run([]byte(strings.Join(lines, "\n")), tool(t, "strict"), "promql")
	var read []struct {
		Metric string
		Labels []string
	}
	if err := jsonInto(must(t, out, err), &read); err != nil {
		t.Fatal(err)
	}
	known := metrics(t)
	for _, s := range read {
		labels, ok := known[s.Metric]
		if of, bucket := strings.CutSuffix(s.Metric, "_bucket"); bucket { // of a histogram
			labels, ok = append(known[of], "le"), known[of] != nil
		}
		if !ok && !strings.HasPrefix(s.Metric, "process_") {
			t.Errorf("there is no metric %s", s.Metric)
		}
		for _, l := range s.Labels {
			// Prometheus adds these.
			if !slices.Contains(append(labels, "node", "job"), l) {
				t.Errorf("%s has no label %s", s.Metric, l)
			}
		}
	}
}

// metrics returns the labels of each metric, from ARCHITECTURE.md, whose table another test
// compares with what a node tells.
func metrics(t *testing.T) map[string][]string {
	t.Helper()
	p, err := os.ReadFile("../../ARCHITECTURE.md")
	all := make(map[string][]string)
	row := regexp.MustCompile("(?m)^\\| `(granary_[a-z_]+)` \\|([^|]*)\\|")
	for _, m := range row.FindAllStringSubmatch(string(must(t, p, err)), -1) {
		for _, l := range regexp.MustCompile("`([a-z]+)`").FindAllStringSubmatch(m[2], -1) {
			all[m[1]] = append(all[m[1]], l[1])
		}
		if all[m[1]] == nil {
			all[m[1]] = []string{}
		}
	}
	return all
}

package main

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/granary-oci/granary/cmd/granary/node"
)

func TestPreheat(t *testing.T) {
	r := newSmallRegistry(t)
	n := testNode(t, node.Config{DataConfig: node.DataConfig{Upstream: map[string]string{"registry.test": r.URL}}})
	at := []string{"--node", n.AdminURL()}
	status, out, errs := granary(t, append(at, "preheat", "--wait", "registry.test/app:v1")...)
	if status != 2 { // flags of a command come after its name
		t.Errorf("%d, %s%s", status, out, errs)
	}
	run := func(args ...string) (int, string, string) {
		return granary(t, append(append([]string{"preheat"}, at...), args...)...)
	}
	status, out, errs = run("--wait", "registry.test/app:v1")
	if status != 0 || !strings.HasPrefix(out, "1 image on 1 node, 5.0 MiB in ") || !strings.Contains(errs, "registry.test/app:v1 on node") || !strings.Contains(errs, "done") {
		t.Errorf("preheat --wait: %d, %s%s", status, out, errs)
	}
	if n.Status().Store.Bytes < layerSize || n.Status().Demand.Served != 0 {
		t.Errorf("after a preheat: %+v", n.Status())
	}
	status, out, _ = run("--wait", "--json", "registry.test/app:v1", "registry.test/app:v2")
	var last node.PreheatStatus
	for line := range strings.Lines(out) {
		last = node.PreheatStatus{}
		if err := json.Unmarshal([]byte(line), &last); err != nil {
			t.Fatal(err)
		}
	}
	if status != 1 || last.State != "failed" || last.Nodes[0].Images[0].State != "done" || last.Nodes[0].Images[1].State != "failed" {
		t.Errorf("an image that is there and one that is not: %d, %s", status, out)
	}
	if status, out, errs = run("registry.test/app:v1"); status != 0 || !strings.Contains(out, ": 1 image on 1 node") {
		t.Errorf("preheat: %d, %s%s", status, out, errs)
	}
	for _, args := range [][]string{{}, {"--all-nodes", "--zone=a", "app"}} {
		if status, _, _ := run(args...); status != 2 {
			t.Errorf("preheat %v: %d", args, status)
		}
	}
	for _, args := range [][]string{{"--zone=a", "app"}, {"APP"}, {"--platform=x", "app"}} {
		if status, _, errs := run(args...); status != 1 || errs == "" {
			t.Errorf("preheat %v: %d, %s", args, status, errs)
		}
	}
}

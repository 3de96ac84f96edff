package main

import (
	"encoding/json"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/granary-oci/granary/cmd/granary/node"
)

func TestPreheat(t *testing.T) {
	r := newSmallRegistry(t)
	n := testNode(t, node.Config{DataConfig: node.DataConfig{Upstream: map[string]string{"registry.test": r.URL}}})
	run := func(args ...string) (int, string, string) {
		return granary(t, append([]string{"preheat", "--node", n.AdminURL()}, args...)...)
	}
	status, out, errs := run("--wait", "registry.test/app:v1")
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
	for _, args := range [][]string{{}, {"--all-nodes", "--zone=a", "app"}, {"--list", "app"}, {"--list", "--cancel=x"}, {"--cancel=x", "--wait"}, {"--list", "--at=02:00"}, {"--cancel=", "--all-nodes"}} {
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

// TestAPreheatIsKeptUntilItsTime has a node do at its time, or when it runs again, what it was told before.
func TestAPreheatIsKeptUntilItsTime(t *testing.T) {
	r := newSmallRegistry(t)
	cfg := node.Config{DataConfig: node.DataConfig{DataDir: t.TempDir(), Upstream: map[string]string{"registry.test": r.URL}}}
	n, stop := startNode(t, cfg)
	run := func(args ...string) (int, string, string) {
		return granary(t, append([]string{"preheat", "--node", n.AdminURL()}, args...)...)
	}
	at := func(in time.Duration) string { return "--at=" + time.Now().Add(in).Format(time.RFC3339Nano) }
	only := func() node.PreheatStatus {
		t.Helper()
		all := n.Status().Preheats
		if len(all) != 1 {
			t.Fatalf("there are %+v", all)
		}
		return all[0]
	}
	status, out, errs := run("registry.test/app:v1", at(time.Hour))
	if status != 0 || !strings.Contains(out, ": 1 image scheduled at ") {
		t.Errorf("preheat --at: %d, %s%s", status, out, errs)
	}
	if _, out, _ := granary(t, "status", "--node", n.AdminURL()); !strings.Contains(out, only().ID) || !strings.Contains(out, "scheduled at ") {
		t.Errorf("the status is\n%s", out)
	}
	for _, args := range [][]string{{"app", "--at=25:00"}, {"app", at(-time.Minute)}, {"app", at(32 * 24 * time.Hour)}} {
		if status, _, errs := run(args...); status != 1 || errs == "" {
			t.Errorf("preheat %v: %d, %s", args, status, errs)
		}
	}
	if status, _, errs := run("app", "--at=02:00", "--docker-config=config.json"); status == 0 || !strings.Contains(errs, "credentials are not kept") {
		t.Errorf("credentials for later: %d, %s", status, errs)
	}

	// later moves the time in the file, and starts the node anew.
	path := filepath.Join(cfg.DataDir, "preheats.json")
	later := func(at time.Time) node.PreheatStatus {
		t.Helper()
		stop()
		p, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		var kept []map[string]any
		if err := json.Unmarshal(p, &kept); err != nil || len(kept) != 1 {
			t.Fatalf("%s is kept, error %v", p, err)
		}
		kept[0]["at"] = at
		if p, err = json.Marshal(kept); err == nil {
			err = os.WriteFile(path, p, 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
		n, stop = startNode(t, cfg)
		for begin := time.Now(); only().Ended.IsZero(); time.Sleep(10 * time.Millisecond) {
			if time.Since(begin) > 30*time.Second {
				t.Fatalf("it is not over: %+v", only())
			}
		}
		return only()
	}
	gone := func() {
		t.Helper()
		stop()
		if n, stop = startNode(t, cfg); len(n.Status().Preheats) != 0 {
			t.Errorf("after another restart there are %+v", n.Status().Preheats)
		}
	}
	if s := later(time.Now().Add(-25 * time.Hour)); s.State != "failed" || !strings.Contains(s.Error, "missed") || n.Status().Store.Bytes != 0 {
		t.Errorf("too late: %+v", s)
	}
	gone()
	run("registry.test/app:v1", at(time.Hour))
	id := only().ID
	if s := later(time.Now().Add(-23 * time.Hour)); s.State != "done" || s.ID != id || n.Status().Store.Bytes < layerSize {
		t.Errorf("what was slept through: %+v", s)
	}
	gone()

	run("registry.test/app:v1", "--at=02:00")
	id = only().ID
	if status, out, errs := run("--list"); status != 0 || !strings.HasPrefix(out, id+"  scheduled at ") || !strings.HasSuffix(out, ": registry.test/app:v1\n") {
		t.Errorf("preheat --list: %d, %s%s", status, out, errs)
	}
	if status, _, errs := run("--cancel=another"); status != 1 || !strings.Contains(errs, `no preheat "another"`) {
		t.Errorf("preheat --cancel another: %d, %s", status, errs)
	}
	if status, out, errs := run("--cancel", id); status != 0 || out != id+": ended\n" {
		t.Errorf("preheat --cancel: %d, %s%s", status, out, errs)
	}
	if s := only(); s.State != "failed" || !strings.Contains(s.Error, "ended before") {
		t.Errorf("what was ended: %+v", s)
	}
	var all []node.PreheatStatus
	if status, out, errs := run("--list", "--json"); status != 0 || json.Unmarshal([]byte(out), &all) != nil || len(all) != 1 || all[0].ID != id || all[0].State != "failed" {
		t.Errorf("preheat --list --json: %d, %s%s", status, out, errs)
	}
	gone()

	status, out, errs = run("registry.test/app:v1", at(3*time.Second), "--wait")
	if status != 0 || !strings.HasPrefix(out, "1 image on 1 node") || strings.Count(errs, "scheduled at") != 1 {
		t.Errorf("preheat --at --wait: %d, %s%s", status, out, errs)
	}
	if status, out, errs := run("--cancel", only().ID); status != 0 || out != only().ID+": was done already\n" {
		t.Errorf("preheat --cancel of what is over: %d, %s%s", status, out, errs)
	}
}

func TestEvict(t *testing.T) {
	r := newSmallRegistry(t)
	n := testNode(t, node.Config{DataConfig: node.DataConfig{Upstream: map[string]string{"registry.test": r.URL}}})
	fetch(t, n.URLs()[0]+"/v2/app/manifests/v1")
	fetch(t, n.URLs()[0]+"/v2/app/blobs/"+string(r.layer))
	run := func(args ...string) (int, string, string) {
		return granary(t, append([]string{"evict", "--node", n.AdminURL()}, args...)...)
	}
	if status, _, errs := run("APP"); status != 1 || !strings.Contains(errs, "APP") {
		t.Errorf("no name: %d, %s", status, errs)
	}
	for _, want := range []string{"5.0 MiB freed", "0 B freed"} {
		if status, out, errs := run("registry.test/app:v1", "--all-nodes"); status != 0 || out != "registry.test/app:v1: "+want+"\n" {
			t.Errorf("evict: %d, %s%s; want %s", status, out, errs, want)
		}
	}
	if s := n.Status(); s.Store.Bytes != 0 {
		t.Errorf("%d bytes are left", s.Store.Bytes)
	}
}

func TestPullsOfDockerHubsLimitAreCounted(t *testing.T) {
	r := newSmallRegistry(t)
	n := testNode(t, node.Config{DataConfig: node.DataConfig{Upstream: map[string]string{"docker.io": r.URL}}})
	r.set(func() {
		for _, path := range []string{"manifests/v1"} {
			r.content["/v2/library/app/"+path] = r.content[path]
			r.content["/v2/library/app/manifests/"+string(digest.FromBytes(r.content[path]))] = r.content[path]
		}
	})
	for range 3 {
		if status, body := get(t, n.URLs()[0]+"/v2/app/manifests/v1?ns=docker.io"); status != 200 {
			t.Fatalf("%d, %s", status, body)
		}
	}
	if s := n.Status(); s.Demand.Pulls != 3 || s.Demand.UpstreamPulls != 1 || s.Savings.Pulls != 2 || s.Savings.Members != 1 {
		t.Errorf("after three pulls: %+v, %+v", s.Demand, s.Savings)
	}
	status, out, _ := granary(t, "status", "--node", n.AdminURL())
	if status != 0 || !strings.Contains(out, "2 pulls of Docker Hub's limit, by 1 node") {
		t.Errorf("status: %d, %s", status, out)
	}
}

// TestWhoNoLongerWaitsForAPreheatIsToldThatItGoesOn, for the node keeps one that has a time.
func TestWhoNoLongerWaitsForAPreheatIsToldThatItGoesOn(t *testing.T) {
	for at, want := range map[string]string{"02:00": "preheat --cancel k3xw5tq2mz7a", "": "ended early"} {
		c := &preheatCmd{At: at}
		_, err := c.watch(&env{stderr: io.Discard}, strings.NewReader(`{"id":"k3xw5tq2mz7a","state":"scheduled"}`))
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("--at=%s: %v", at, err)
		}
	}
}

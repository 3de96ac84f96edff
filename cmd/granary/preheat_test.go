package main

import (
	"encoding/json"
	"strings"
	"testing"

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

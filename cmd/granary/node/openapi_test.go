package node

import (
	"encoding/json"
	"fmt"
	"log/slog"
	"maps"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
)

func TestTheDescriptionHasEveryRoute(t *testing.T) {
	var routes []string
	for _, r := range (&Node{metrics: newMetrics()}).routes() {
		if strings.Contains(r.pattern, " /api/") {
			routes = append(routes, r.pattern)
		}
	}
	slices.Sort(routes)
	if got := described(); !slices.Equal(got, routes) {
		t.Errorf("described are %v\nroutes are    %v", got, routes)
	}
}

// TestTheStatusIsAsItIsDescribed holds what a node answers against the schemas.
func TestTheStatusIsAsItIsDescribed(t *testing.T) {
	n, err := New(Config{
		DataConfig:    DataConfig{DataDir: t.TempDir(), DefaultUpstream: "registry.test"},
		ListenConfig:  ListenConfig{Listen: []string{"127.0.0.1:0"}, Admin: "127.0.0.1:0"},
		ClusterConfig: ClusterConfig{P2PListen: []string{"/ip4/127.0.0.1/tcp/0"}, GossipListen: "127.0.0.1:0", InsecureCluster: true, Weight: 10},
	}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	defer n.Close()
	if _, err := n.preheat(Preheat{Refs: []string{"app"}}); err != nil {
		t.Fatal(err)
	}
	get := func(path string) (v any) {
		w := httptest.NewRecorder()
		n.adminHandler().ServeHTTP(w, httptest.NewRequest(http.MethodGet, path, nil))
		if err := json.Unmarshal(w.Body.Bytes(), &v); err != nil || w.Code != http.StatusOK {
			t.Fatalf("%s: %d, %v", path, w.Code, err)
		}
		return v
	}
	doc, _ := get("/api/v1/openapi.json").(object)
	c := checker{doc: doc}
	for _, path := range []string{"/api/v1/status", "/api/v1/history", "/api/v1/images", "/api/v1/preheat"} {
		schema := c.at("paths", path, "get", "responses", "200", "content", "application/json", "schema")
		c.check(path, schema, get(path))
	}
	if ids := make(map[any]bool); true {
		for _, p := range c.at("paths") {
			for _, o := range p.(object) {
				ids[o.(object)["operationId"]] = true
			}
		}
		if len(ids) != len(operations) {
			t.Errorf("of %d operations there are %d names: %v", len(operations), len(ids), ids)
		}
	}
	for _, wrong := range c.wrong {
		t.Error(wrong)
	}
}

// checker holds values against the few kinds of schemas that there are.
type checker struct {
	doc   object
	wrong []string
}

func (c *checker) at(keys ...string) object {
	o := c.doc
	for _, k := range keys {
		o, _ = o[k].(object)
	}
	return o
}

func (c *checker) check(at string, schema object, v any) {
	if ref, ok := schema["$ref"].(string); ok {
		schema = c.at("components", "schemas", ref[strings.LastIndexByte(ref, '/')+1:])
	}
	is := map[string]bool{"null": v == nil}
	_, is["string"] = v.(string)
	_, is["boolean"] = v.(bool)
	_, is["number"] = v.(float64)
	is["integer"] = is["number"] && v.(float64) == float64(int64(v.(float64)))
	list, isList := v.([]any)
	fields, isObject := v.(object)
	is["array"], is["object"] = isList, isObject
	want := []any{schema["type"]}
	if several, ok := schema["type"].([]any); ok {
		want = several
	}
	if !slices.ContainsFunc(want, func(t any) bool { s, _ := t.(string); return is[s] }) {
		c.wrong = append(c.wrong, fmt.Sprintf("%s: %v is not %v", at, v, want))
		return
	}
	for i, item := range list {
		c.check(fmt.Sprintf("%s[%d]", at, i), schema["items"].(object), item)
	}
	properties, _ := schema["properties"].(object)
	for _, k := range slices.Sorted(maps.Keys(fields)) {
		of, ok := properties[k].(object)
		if more, free := schema["additionalProperties"].(object); free {
			of, ok = more, true
		}
		if !ok {
			c.wrong = append(c.wrong, at+"."+k+" is not described")
			continue
		}
		c.check(at+"."+k, of, fields[k])
	}
	required, _ := schema["required"].([]any)
	for _, k := range required {
		if _, ok := fields[k.(string)]; !ok {
			c.wrong = append(c.wrong, fmt.Sprintf("%s.%v is missing", at, k))
		}
	}
}

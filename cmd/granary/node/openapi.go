package node

import (
	"encoding"
	"encoding/json"
	"maps"
	"net/http"
	"reflect"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/granary-oci/granary/proxy"
)

// operation is what people are told of a route of the API. What it takes and answers is
// described by the types themselves, so that the description cannot be another than they are.
type operation struct {
	pattern string // of the route
	summary string
	query   []parameter
	takes   any    // JSON, as a value of its type; nil for nothing
	answers any    // the same
	as      string // media type of the answer, if it is not JSON
	bytes   bool   // it takes the bytes themselves
}

// parameter is one of a path or a query.
type parameter struct{ name, says string }

const (
	ndjson      = "application/x-ndjson"
	eventStream = "text/event-stream"
)

var operations = []operation{
	{pattern: "GET /api/v1/status", summary: "What the node holds, has served and does, and what it knows of its cluster.", answers: Status{}},
	{pattern: "GET /api/v1/history", summary: "What passed through the node in the last ten minutes, second by second.", answers: History{}},
	{pattern: "GET /api/v1/links", summary: "What crossed each link to parents, children, registries and other zones, what was asked of it, and what it was spared, hour by hour, for 31 days.", answers: []LinkHistory{}},
	{pattern: "GET /api/v1/events", summary: "Server-sent events: 'status' each second, with what /api/v1/status answers, and 'images' every few seconds, with what /api/v1/images does. 32 may watch.", as: eventStream},
	{pattern: "GET /api/v1/images", summary: "Which image takes how much of the store, the most first, and what was asked for of each image, moved and saved; a thousand at most.", answers: Images{}},
	{pattern: "POST /api/v1/evict", summary: "Remove from the store what belongs to an image and to no other.", takes: EvictRequest{}, answers: Evicted{}},
	{pattern: "POST /api/v1/preheat", summary: "Bring images to the node, to members of a zone or to all, before anybody pulls them. With wait the answer is a line of JSON for each change, of which the last says what came of it, and a caller who leaves ends it, but not one with a time.", takes: Preheat{}, answers: PreheatStatus{}},
	{pattern: "GET /api/v1/preheat", summary: "The preheats that are scheduled and that run, and those that were over last, the latest first; 32 at most.", answers: []PreheatStatus{}},
	{pattern: "GET /api/v1/preheat/{id}", summary: "How far a preheat is.", answers: PreheatStatus{}},
	{pattern: "DELETE /api/v1/preheat/{id}", summary: "End a preheat, or take it out of the schedule. What has come stays.", answers: PreheatStatus{}},
	{pattern: "POST /api/v1/invalidate", summary: "Make the cluster ask the registry about a tag anew.", query: []parameter{{"ref", "A tag, or a repository for each of its tags."}}, answers: Invalidated{}},
	{pattern: "POST /api/v1/gc", summary: "Evict what has not been read for longest.", query: []parameter{{"keep", "How many bytes to keep; without it what eviction under the budget leaves."}}, answers: struct {
		Freed int64 `json:"freed"`
	}{}},
	{pattern: "POST /api/v1/fsck", summary: "Check every chunk of the store and drop what is wrong: a line of JSON for each thing found, and one for the sum.", query: []parameter{{"repair", "true fetches again what was dropped."}}, answers: FsckLine{}, as: ndjson},
	{pattern: "POST /api/v1/reach", summary: "Whether the node reaches its upstreams and the other members.", answers: Reach{}},
	{pattern: "GET /api/v1/import/{digest}", summary: "Whether the node has a blob that is to be imported.", query: importParameters, answers: ImportStatus{}},
	{pattern: "PUT /api/v1/import/{digest}", summary: "Give the node a blob that is to be imported.", query: append(importParameters[:2:2], parameter{"offset", "From where on in the blob the bytes come; without it from the beginning."}), bytes: true},
	{pattern: "POST /api/v1/import", summary: "Make imported blobs belong to a repository.", query: importParameters[:1], takes: proxy.Import{}},
	{pattern: "GET /api/v1/openapi.json", summary: "This description."},
}

var importParameters = []parameter{{"repository", "HOST/NAME that it is imported into."}, {"size", "Of the blob, in bytes."}}

// object is one of JSON.
type object = map[string]any

// openAPI is the description of the API (OpenAPI 3.1.0).
var openAPI = sync.OnceValue(func() []byte {
	s := schemas{named: make(object)}
	paths := make(object)
	for _, o := range operations {
		method, path, _ := strings.Cut(o.pattern, " ")
		at, ok := paths[path].(object)
		if !ok {
			at = make(object)
			paths[path] = at
		}
		at[strings.ToLower(method)] = o.describe(&s, path)
	}
	p, err := json.MarshalIndent(object{
		"openapi": "3.1.0",
		"info": object{
			"title": "Granary", "version": Version, "license": object{"name": "Apache-2.0", "identifier": "Apache-2.0"},
			"description": "What the admin listener of a node answers. Sizes are in bytes, durations in nanoseconds, and times as in RFC 3339. What is wrong with a request is answered in words.",
		},
		"paths": paths,
		"components": object{"schemas": s.named, "securitySchemes": object{
			"token":       object{"type": "http", "scheme": "bearer", "description": "Of --admin-token-file, if the node has one."},
			"certificate": object{"type": "mutualTLS", "description": "Signed by --admin-client-ca-file, if the node has one."},
		}},
		"security": []object{{"token": []string{}}, {"certificate": []string{}}, {}},
	}, "", "  ")
	if err != nil {
		panic(err) // it is made of maps and texts
	}
	return append(p, '\n')
})

func serveOpenAPI(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "application/json")
	_, _ = w.Write(openAPI())
}

func (o operation) describe(s *schemas, path string) object {
	var parameters []object
	for part := range strings.SplitSeq(path, "/") {
		if name, ok := strings.CutPrefix(part, "{"); ok {
			parameters = append(parameters, object{"name": strings.TrimSuffix(name, "}"), "in": "path", "required": true, "schema": object{"type": "string"}})
		}
	}
	for _, q := range o.query {
		parameters = append(parameters, object{"name": q.name, "in": "query", "description": q.says, "schema": object{"type": "string"}})
	}
	as := o.as
	if as == "" {
		as = "application/json"
	}
	answer := object{"description": "It is done, or this is how it is."}
	switch {
	case o.answers != nil:
		answer["content"] = object{as: object{"schema": s.of(reflect.TypeOf(o.answers))}}
	case o.as != "":
		answer["content"] = object{as: object{"schema": object{"type": "string"}}}
	}
	d := object{"summary": o.summary, "operationId": operationID(o.pattern), "responses": object{
		"200": answer, "400": inWords("What is wrong with the request."), "401": inWords("The node asks for a token or a certificate."),
		"403": inWords("This machine alone may ask, or another site's page has asked."),
	}}
	if parameters != nil {
		d["parameters"] = parameters
	}
	switch {
	case o.bytes:
		d["requestBody"] = object{"required": true, "content": object{"application/octet-stream": object{}}}
	case o.takes != nil:
		d["requestBody"] = object{"required": true, "content": object{"application/json": object{"schema": s.of(reflect.TypeOf(o.takes))}}}
	}
	return d
}

func inWords(says string) object {
	return object{"description": says, "content": object{"text/plain": object{"schema": object{"type": "string"}}}}
}

// operationID names an operation for programs that are made of the description.
func operationID(pattern string) string {
	method, path, _ := strings.Cut(pattern, " ")
	name := strings.ToLower(method)
	for part := range strings.FieldsFuncSeq(strings.TrimPrefix(path, "/api/v1"), func(c rune) bool { return strings.ContainsRune("/{}.", c) }) {
		name += strings.ToUpper(part[:1]) + part[1:]
	}
	return name
}

// schemas are those of types that have a name.
type schemas struct{ named object }

var (
	timeType = reflect.TypeFor[time.Time]()
	textType = reflect.TypeFor[encoding.TextMarshaler]()
)

// of describes how encoding/json writes a type (JSON Schema 2020-12).
func (s *schemas) of(t reflect.Type) object {
	switch {
	case t == timeType:
		return object{"type": "string", "format": "date-time"}
	case t.Implements(textType):
		return object{"type": "string"}
	}
	switch t.Kind() {
	case reflect.Pointer:
		return s.of(t.Elem())
	case reflect.String:
		return object{"type": "string"}
	case reflect.Bool:
		return object{"type": "boolean"}
	case reflect.Float64:
		return object{"type": "number"}
	case reflect.Slice:
		return object{"type": []string{"array", "null"}, "items": s.of(t.Elem())}
	case reflect.Map:
		return object{"type": []string{"object", "null"}, "additionalProperties": s.of(t.Elem())}
	case reflect.Struct:
		if t.Name() == "" {
			return s.structure(t)
		}
		if s.named[t.Name()] == nil {
			s.named[t.Name()] = object{} // for a type within itself
			s.named[t.Name()] = s.structure(t)
		}
		return object{"$ref": "#/components/schemas/" + t.Name()}
	}
	return object{"type": "integer", "format": "int64"}
}

func (s *schemas) structure(t reflect.Type) object {
	properties := make(object)
	var required []string
	for _, f := range reflect.VisibleFields(t) {
		name, options, _ := strings.Cut(f.Tag.Get("json"), ",")
		if f.Anonymous && name == "" || !f.IsExported() || name == "-" || len(f.Index) > 1 && !promoted(t, f) {
			continue
		}
		if name == "" {
			name = f.Name
		}
		properties[name] = s.of(f.Type)
		if !strings.Contains(options, "omit") {
			required = append(required, name)
		}
	}
	d := object{"type": "object", "properties": properties}
	if required != nil {
		d["required"] = slices.Compact(slices.Sorted(slices.Values(required)))
	}
	return d
}

// promoted reports whether a field of an embedded struct is written as one of the outer.
func promoted(t reflect.Type, f reflect.StructField) bool {
	for i := 1; i < len(f.Index); i++ {
		outer := t.FieldByIndex(f.Index[:i])
		if !outer.Anonymous || outer.Tag.Get("json") != "" {
			return false
		}
	}
	return true
}

// described are the patterns that the description has.
func described() []string {
	all := make(map[string]bool)
	for _, o := range operations {
		all[o.pattern] = true
	}
	return slices.Sorted(maps.Keys(all))
}

package deploy

import (
	"encoding/base64"
	"fmt"
	"net/http"
	"net/http/httptest"
	"testing"
)

// cluster answers as much of Kubernetes' API as helm asks for to render a chart: which
// kinds there are, and the one secret that there may be.
type cluster struct {
	secret string // JSON, or "" for none
}

func (c cluster) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "application/json")
	switch r.URL.Path {
	case "/version":
		fmt.Fprint(w, `{"major":"1","minor":"35","gitVersion":"v1.35.0"}`)
	case "/api":
		fmt.Fprint(w, `{"kind":"APIVersions","versions":["v1"]}`)
	case "/apis":
		fmt.Fprint(w, `{"kind":"APIGroupList","apiVersion":"v1","groups":[]}`)
	case "/api/v1":
		fmt.Fprint(w, `{"kind":"APIResourceList","groupVersion":"v1","resources":[{"name":"secrets","singularName":"secret","namespaced":true,"kind":"Secret","verbs":["get"]}]}`)
	case "/api/v1/namespaces/" + namespace + "/secrets/granary-cluster":
		if c.secret != "" {
			fmt.Fprint(w, c.secret)
			return
		}
		fallthrough
	default:
		w.WriteHeader(http.StatusNotFound)
		fmt.Fprint(w, `{"kind":"Status","apiVersion":"v1","status":"Failure","reason":"NotFound","code":404}`)
	}
}

// TestTheSecretIsMadeOnce: an install makes one, and an upgrade finds it, also when somebody
// has put a second line into it meanwhile. It is no part of the release, of which a rollback
// brings back all: only what installs, and what upgrades where there is none.
func TestTheSecretIsMadeOnce(t *testing.T) {
	rendered := func(c cluster) string {
		server := httptest.NewServer(c)
		defer server.Close()
		out, err := helm(t, "template", "granary", chart, "--namespace", namespace, "--dry-run=server", "--kube-apiserver", server.URL, "--kube-token", "none")
		by := make(map[string]string) // hook to secret
		for _, o := range decoded(t, must(t, out, err)) {
			if o.Kind == "Secret" {
				by[o.Metadata.Annotations["helm.sh/hook"]] = o.Data["secret"]
			}
		}
		made := "pre-install"
		if c.secret == "" {
			made += ",pre-upgrade"
		}
		if len(by) != 2 || by[made] != by["post-delete"] {
			t.Errorf("secrets are made by hooks %v", by)
		}
		return by[made]
	}
	first, again := rendered(cluster{}), rendered(cluster{})
	made, err := base64.StdEncoding.DecodeString(first)
	if err != nil || len(made) < 32 || first == again {
		t.Errorf("new clusters have the secrets %q and %q", first, again)
	}
	two := base64.StdEncoding.EncodeToString([]byte(string(made) + "\na second secret of the cluster\n"))
	upgraded := cluster{secret: fmt.Sprintf(`{"kind":"Secret","apiVersion":"v1","metadata":{"name":"granary-cluster","namespace":%q},"data":{"secret":%q}}`, namespace, two)}
	if got := rendered(upgraded); got != two {
		t.Errorf("an upgrade makes %q of it", got)
	}
}

package node

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

const goodToken = "a-token-of-some-length"

func writeFile(t *testing.T, name, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// question is a request to the admin listener.
type question struct {
	method, path string
	from, at     string // IP addresses; "" is this machine's
	host         string
	header       []string
}

func (q question) answered(g *adminGuard) int {
	method, at, from, host := q.method, q.at, q.from, q.host
	for _, of := range []struct {
		field     *string
		otherwise string
	}{{&method, http.MethodGet}, {&at, "127.0.0.1"}, {&from, "127.0.0.1"}, {&host, "127.0.0.1:5051"}} {
		if *of.field == "" {
			*of.field = of.otherwise
		}
	}
	r := httptest.NewRequest(method, q.path, nil)
	r.Host, r.RemoteAddr = host, net.JoinHostPort(from, "40000")
	r = r.WithContext(context.WithValue(r.Context(), http.LocalAddrContextKey, &net.TCPAddr{IP: net.ParseIP(at), Port: 5051}))
	for i := 0; i < len(q.header); i += 2 {
		r.Header.Set(q.header[i], q.header[i+1])
	}
	w := httptest.NewRecorder()
	g.wrap(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusOK) })).ServeHTTP(w, r)
	return w.Code
}

func TestWhoMayAskTheAdminListener(t *testing.T) {
	loopback := ListenConfig{Admin: "127.0.0.1:5051"}
	metrics := ListenConfig{Admin: "0.0.0.0:5051", AdminOpen: openMetrics}
	token := ListenConfig{Admin: "0.0.0.0:5051", AdminTokenFile: writeFile(t, "token", "# for the dashboard\n"+goodToken+"\nanother-token-of-a-length\n")}
	all := ListenConfig{Admin: "0.0.0.0:5051", AdminOpen: openAll}
	const there, here = "192.0.2.7", "192.0.2.1"
	bearer := func(token string) []string { return []string{"Authorization", "Bearer " + token} }
	for _, tt := range []struct {
		name string
		cfg  ListenConfig
		question
		want int
	}{
		{"this machine", loopback, question{path: "/api/v1/status"}, 200},
		{"this machine, by name", loopback, question{path: "/api/v1/status", host: "localhost:5051"}, 200},
		{"this machine, IPv6", loopback, question{path: "/api/v1/status", host: "[::1]:5051", at: "::1", from: "::1"}, 200},
		{"a command", loopback, question{method: "POST", path: "/api/v1/gc"}, 200},
		{"another host's name for this machine", loopback, question{path: "/api/v1/status", host: "evil.example:5051"}, 421},
		{"a command under such a name", loopback, question{method: "POST", path: "/api/v1/gc", host: "evil.example"}, 421},
		{"another site's page commands", loopback, question{method: "POST", path: "/api/v1/gc", header: []string{"Sec-Fetch-Site", "cross-site"}}, 403},
		{"an older browser's page commands", loopback, question{method: "POST", path: "/api/v1/gc", header: []string{"Origin", "https://evil.example"}}, 403},
		{"another port's page commands", loopback, question{method: "POST", path: "/api/v1/gc", header: []string{"Origin", "http://127.0.0.1:8080", "Sec-Fetch-Site", "same-site"}}, 403},
		{"another site's page asks", loopback, question{path: "/debug/pprof/profile", header: []string{"Sec-Fetch-Site", "cross-site", "Sec-Fetch-Mode", "no-cors"}}, 403},
		{"a link leads here", loopback, question{path: "/", header: []string{"Sec-Fetch-Site", "cross-site", "Sec-Fetch-Mode", "navigate"}}, 200},
		{"its own page commands", loopback, question{method: "POST", path: "/api/v1/gc", header: []string{"Sec-Fetch-Site", "same-origin"}}, 200},

		{"another machine, a probe", metrics, question{path: "/readyz", from: there, at: here, host: here}, 200},
		{"another machine, metrics", metrics, question{path: "/metrics", from: there, at: here, host: here}, 200},
		{"another machine, the status", metrics, question{path: "/api/v1/status", from: there, at: here, host: here}, 403},
		{"another machine, a command", metrics, question{method: "POST", path: "/api/v1/gc", from: there, at: here, host: here}, 403},
		{"this machine beside it", metrics, question{path: "/api/v1/status"}, 200},

		{"no token", token, question{path: "/api/v1/status", from: there, at: here, host: here}, 401},
		{"no token, this machine", token, question{path: "/api/v1/status"}, 401},
		{"no token, metrics", token, question{path: "/metrics"}, 401},
		{"no token, a probe", token, question{path: "/healthz", from: there, at: here, host: here}, 200},
		{"no token, the page", token, question{path: "/", from: there, at: here, host: here}, 200},
		{"no token, all below the page", token, question{path: "/debug/pprof/heap"}, 401},
		{"the token", token, question{path: "/api/v1/status", from: there, at: here, host: here, header: bearer(goodToken)}, 200},
		{"the other token", token, question{path: "/api/v1/status", header: bearer("another-token-of-a-length")}, 200},
		{"a wrong token", token, question{path: "/api/v1/status", header: bearer("a-token-of-some-lengtH")}, 401},
		{"a part of it", token, question{path: "/api/v1/status", header: bearer("a-token-of-some")}, 401},
		{"nothing for one", token, question{path: "/api/v1/status", header: bearer("")}, 401},
		{"a comment for one", token, question{path: "/api/v1/status", header: bearer("# for the dashboard")}, 401},
		{"the token as a password", token, question{path: "/api/v1/status", header: []string{"Authorization", "Basic " + goodToken}}, 401},
		{"the token through another name", token, question{path: "/api/v1/status", host: "granary.example", header: bearer(goodToken)}, 200},
		{"the token, another site's page", token, question{method: "POST", path: "/api/v1/gc", header: append(bearer(goodToken), "Sec-Fetch-Site", "cross-site")}, 403},

		{"all may", all, question{method: "POST", path: "/api/v1/gc", from: there, at: here, host: here}, 200},
	} {
		g, err := newAdminGuard(tt.cfg, slog.New(slog.DiscardHandler))
		if err != nil {
			t.Fatal(err)
		}
		if got := tt.answered(g); got != tt.want {
			t.Errorf("%s: %d, want %d", tt.name, got, tt.want)
		}
	}
}

func TestAnAdminListenerThatAnybodyMayCommandIsRefused(t *testing.T) {
	for name, tt := range map[string]struct {
		cfg     ListenConfig
		setting string
	}{
		"all addresses":        {ListenConfig{Admin: "0.0.0.0:5051", AdminOpen: openProbes}, "admin"},
		"no address":           {ListenConfig{Admin: ":5051"}, "admin"},
		"a name":               {ListenConfig{Admin: "node-1:5051"}, "admin"},
		"a token that is none": {ListenConfig{Admin: "0.0.0.0:5051", AdminTokenFile: writeFile(t, "token", "short\n")}, "admin-token-file"},
		"an empty file":        {ListenConfig{Admin: "127.0.0.1:5051", AdminTokenFile: writeFile(t, "token", "\n")}, "admin-token-file"},
		"no file":              {ListenConfig{Admin: "127.0.0.1:5051", AdminTokenFile: "/nowhere"}, "admin-token-file"},
		"no TLS":               {ListenConfig{Admin: "0.0.0.0:5051", AdminClientCAFile: "/nowhere"}, "admin-client-ca-file"},
	} {
		var bad *SettingError
		if _, err := newAdminGuard(tt.cfg, slog.New(slog.DiscardHandler)); !errors.As(err, &bad) || bad.Name != tt.setting || strings.Contains(err.Error(), "short") {
			t.Errorf("%s: %v", name, err)
		}
	}
	for _, address := range []string{"127.0.0.1:0", "[::1]:0", "localhost:0", ""} {
		if _, err := newAdminGuard(ListenConfig{Admin: address}, slog.New(slog.DiscardHandler)); err != nil {
			t.Errorf("%q: %v", address, err)
		}
	}
}

func TestTokensAreReadAgain(t *testing.T) {
	file := writeFile(t, "token", goodToken)
	known, err := newTokens(file, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	change := func(text string, at time.Duration) {
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chtimes(file, time.Time{}, time.Now().Add(at)); err != nil {
			t.Fatal(err)
		}
		known.looked = time.Time{}
	}
	change("the-next-token-of-all", time.Minute)
	if known.has(goodToken) || !known.has("the-next-token-of-all") {
		t.Error("the new token is not the one that is good")
	}
	change("", 2*time.Minute)
	if !known.has("the-next-token-of-all") {
		t.Error("a file that cannot be used has taken the token away")
	}
}

package access_test

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/granary-oci/granary/proxy/access"
)

// records are kept in memory, as JSON.
type records struct {
	mu   sync.Mutex
	json map[string]string
}

func (r *records) Get(key string, v any) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	p, ok := r.json[key]
	return ok && json.Unmarshal([]byte(p), v) == nil
}

func (r *records) Put(key string, v any) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	p, err := json.Marshal(v)
	r.json[key] = string(p)
	return err
}

func (r *records) Delete(key string) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.json, key)
	return nil
}

func (r *records) String() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return fmt.Sprint(r.json)
}

func newRecords() *records { return &records{json: make(map[string]string)} }

func caller(t *testing.T, authorization string) access.Caller {
	t.Helper()
	c, err := access.FromHeader(http.Header{"Authorization": {authorization}})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func bearer(t *testing.T, claims string) access.Caller {
	return caller(t, "Bearer x."+base64.RawURLEncoding.EncodeToString([]byte(claims))+".y")
}

func basic(t *testing.T, password string) access.Caller {
	return caller(t, "Basic "+base64.StdEncoding.EncodeToString([]byte("user:"+password)))
}

const host, repo = "a.test", "a.test/app"

// TestHowLongAGrantIsGood is about each kind of caller, before and after a
// restart.
func TestHowLongAGrantIsGood(t *testing.T) {
	for name, c := range map[string]struct {
		caller      func(*testing.T) access.Caller
		fresh, held time.Duration
	}{
		"public":           {func(t *testing.T) access.Caller { return access.Caller{} }, 10 * time.Minute, 7 * 24 * time.Hour},
		"password":         {func(t *testing.T) access.Caller { return basic(t, "hunter2") }, 5 * time.Minute, time.Hour},
		"opaque token":     {func(t *testing.T) access.Caller { return caller(t, "Bearer abc") }, time.Minute, time.Minute},
		"another scheme":   {func(t *testing.T) access.Caller { return caller(t, "Digest abc") }, time.Minute, time.Minute},
		"token for long":   {func(t *testing.T) access.Caller { return bearer(t, in(24*time.Hour)) }, 5 * time.Minute, time.Hour},
		"token for 2 min":  {func(t *testing.T) access.Caller { return bearer(t, in(2*time.Minute)) }, 2 * time.Minute, 2 * time.Minute},
		"token for 20 min": {func(t *testing.T) access.Caller { return bearer(t, in(20*time.Minute)) }, 5 * time.Minute, 20 * time.Minute},
		"token that ended": {func(t *testing.T) access.Caller { return bearer(t, in(-time.Minute)) }, 0, 0},
		"token of no kind": {func(t *testing.T) access.Caller { return bearer(t, `{"exp":"soon"}`) }, time.Minute, time.Minute},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				time.Sleep(300 * time.Millisecond) // tokens end at whole seconds
				who, kept := c.caller(t), newRecords()
				l := access.New(access.Config{}, kept)
				if l.Fresh(host, repo, who) || l.Holds(host, repo, who) {
					t.Error("granted before it was asked")
				}
				begin := time.Now()
				l.Allow(host, repo, who, 0)
				for _, at := range []time.Duration{0, c.fresh - time.Second, c.fresh + time.Second, c.held - time.Second, c.held + time.Second} {
					if at < 0 || at > 0 && at <= time.Since(begin) {
						continue
					}
					time.Sleep(at - time.Since(begin))
					again := access.New(access.Config{}, kept)
					// A password's record is not looked up while the upstream can be asked.
					if got := l.Fresh(host, repo, who); got != (at < c.fresh) {
						t.Errorf("after %v: fresh %v", at, got)
					}
					for _, l := range []*access.Ledger{l, again} {
						if got := l.Holds(host, repo, who); got != (at < c.held) {
							t.Errorf("after %v: holds %v", at, got)
						}
					}
				}
			})
		})
	}
}

func in(d time.Duration) string { return fmt.Sprintf(`{"exp":%d}`, time.Now().Add(d).Unix()) }

func TestAGrantIsForOneCallerAndOneRepository(t *testing.T) {
	l := access.New(access.Config{}, newRecords())
	right, wrong := caller(t, "Bearer right"), caller(t, "Bearer wrong")
	l.Allow(host, repo, right, 0)
	for _, c := range []struct {
		repository string
		caller     access.Caller
		want       bool
	}{
		{repo, right, true}, {repo, wrong, false}, {repo, access.Caller{}, false}, {"a.test/app2", right, false}, {"b.test/app", right, false},
	} {
		if got := l.Fresh(host, c.repository, c.caller); got != c.want {
			t.Errorf("%s: fresh %v", c.repository, got)
		}
	}
	l.Deny(host, repo, wrong, nil)
	if !l.Fresh(host, repo, right) {
		t.Error("another's denial ended the grant")
	}
	l.Deny(host, repo, right, nil)
	if l.Fresh(host, repo, right) || l.Holds(host, repo, right) {
		t.Error("a denial did not end the grant")
	}
	l.Allow(host, repo, access.Caller{}, 0)
	if !l.Fresh(host, repo, wrong) || !l.Public(host, repo) {
		t.Error("what is public is not for everybody")
	}
}

// TestARevokedPasswordIsNotHeld although its grant was recorded before a restart.
func TestARevokedPasswordIsNotHeld(t *testing.T) {
	kept := newRecords()
	who := basic(t, "hunter2")
	access.New(access.Config{}, kept).Allow(host, repo, who, 0)
	again := access.New(access.Config{}, kept)
	again.Deny(host, repo, who, []string{`Basic realm="x"`})
	if again.Holds(host, repo, who) {
		t.Error("a refused password is held")
	}
	if got := again.Challenges(repo); len(got) != 1 || got[0] != `Basic realm="x"` {
		t.Errorf("challenges are %q", got)
	}
}

func TestNoCredentialIsKeptOrPrinted(t *testing.T) {
	kept := newRecords()
	l := access.New(access.Config{}, kept)
	for _, c := range []access.Caller{basic(t, "hunter2"), caller(t, "Bearer sesame")} {
		l.Allow(host, repo, c, 0)
		said := fmt.Sprint(c, &c) + fmt.Sprintf("%+v %#v %s %q", c, c, c, c)
		for _, secret := range []string{"hunter2", "sesame", strings.Fields(c.Authorization())[1]} {
			if strings.Contains(kept.String(), secret) {
				t.Errorf("kept: %s", kept)
			}
			if strings.Contains(said, secret) {
				t.Errorf("printed: %s", said)
			}
		}
	}
}

// TestTheNodesGrantsEndWithItsSharing: what the node was granted is nobody's when
// its credentials are not shared any more.
func TestTheNodesGrantsEndWithItsSharing(t *testing.T) {
	kept := newRecords()
	shared := access.New(access.Config{Shared: func(h string) bool { return h == host }}, kept)
	shared.Allow(host, repo, access.Caller{}, 0)
	if !shared.Fresh(host, repo, access.Caller{}) || !shared.Fresh(host, repo, caller(t, "Bearer any")) {
		t.Error("the node's grant is not shared")
	}
	if off := access.New(access.Config{}, kept); off.Fresh(host, repo, access.Caller{}) || off.Holds(host, repo, access.Caller{}) {
		t.Error("the node's grant outlives the sharing")
	}
}

// TestAClockThatIsPutBack does not make a grant good for longer.
func TestAClockThatIsPutBack(t *testing.T) {
	kept := newRecords()
	if err := kept.Put("public "+repo, access.Grant{Checked: time.Now().Add(time.Hour)}); err != nil {
		t.Fatal(err)
	}
	if access.New(access.Config{}, kept).Public(host, repo) {
		t.Error("a grant from the future is fresh")
	}
}

// TestGrantsGoByTheClockThatIsGiven: whichever way it is set, a grant is good for as long as it was, and it is dated by it.
func TestGrantsGoByTheClockThatIsGiven(t *testing.T) {
	now := time.Now()
	l := access.New(access.Config{Now: func() time.Time { return now }}, newRecords())
	const private = "registry.test/private"
	password := caller(t, "Basic dXNlcjpwYXNzd29yZA==")
	for _, jump := range []time.Duration{20 * time.Minute, -48 * time.Hour, 24 * time.Hour} {
		l.Allow(host, repo, access.Caller{}, 0)
		l.Allow(host, private, password, 0)
		if now = now.Add(jump / 10); jump == 20*time.Minute && (!l.Public(host, repo) || !l.Fresh(host, private, password)) {
			t.Errorf("after %v a grant is not fresh", jump/10)
		}
		if now = now.Add(jump); l.Public(host, repo) || l.Fresh(host, private, password) {
			t.Errorf("after a jump of %v a grant is fresh", jump)
		}
		if held := jump.Abs() < time.Hour; l.Holds(host, private, password) != held {
			t.Errorf("after a jump of %v a credential's grant holds: %v", jump, !held)
		}
	}
}

func TestMemoryIsBounded(t *testing.T) {
	kept := newRecords()
	l := access.New(access.Config{}, kept)
	for i := range 20_000 {
		l.Allow(host, fmt.Sprint("a.test/", i), access.Caller{}, 0)
	}
	if !l.Public(host, "a.test/0") || !l.Public(host, "a.test/19999") {
		t.Error("what memory has no room for is not read from the records")
	}
}

func TestHeadersThatAreNoCredential(t *testing.T) {
	for _, h := range []http.Header{
		{"Authorization": {"a", "b"}},
		{"Authorization": {strings.Repeat("x", 33<<10)}},
	} {
		if c, err := access.FromHeader(h); err == nil {
			t.Errorf("%v", c)
		}
	}
	if c, err := access.FromHeader(http.Header{"Authorization": {""}}); err != nil || !c.Anonymous() {
		t.Errorf("empty: %v, %v", c, err)
	}
}

// FuzzTokens: whatever a token looks like, its grant is good for an hour at the
// most.
func FuzzTokens(f *testing.F) {
	for _, s := range []string{"", "Bearer x", "Basic dTpw", "Bearer a.eyJleHAiOjF9.b", "Bearer a.eyJleHAiOjFlOTl9.b", "Bearer ..", "x y z"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, authorization string) {
		c, err := access.FromHeader(http.Header{"Authorization": {authorization}})
		if err != nil || strings.HasPrefix(strings.ToLower(authorization), "basic") {
			return // slow by intent
		}
		l := access.New(access.Config{}, newRecords())
		l.Allow(host, repo, c, 0)
		if !c.Anonymous() && l.Fresh(host, repo, access.Caller{}) {
			t.Error("a credential's grant is for everybody")
		}
	})
}

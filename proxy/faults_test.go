package proxy_test

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/granary-oci/granary/chunkstore/chunk"
	"github.com/granary-oci/granary/proxy"
)

// TestWhatUpstreamsAnswer is what a client gets for what an upstream does.
func TestWhatUpstreamsAnswer(t *testing.T) {
	refuse := func(status int, header ...string) func(http.ResponseWriter, *http.Request) bool {
		return func(w http.ResponseWriter, r *http.Request) bool {
			for i := 0; i+1 < len(header); i += 2 {
				w.Header().Set(header[i], header[i+1])
			}
			w.WriteHeader(status)
			return true
		}
	}
	challenge := `Basic realm="there"`
	for name, c := range map[string]struct {
		answer func(http.ResponseWriter, *http.Request) bool
		status int
		code   string
		header []string // of the answer
	}{
		"401":             {refuse(401, "WWW-Authenticate", challenge), 401, "UNAUTHORIZED", []string{"WWW-Authenticate", challenge}},
		"403":             {refuse(403), 403, "DENIED", nil},
		"404":             {refuse(404), 404, "MANIFEST_UNKNOWN", nil},
		"429":             {refuse(429, "Retry-After", "60", "RateLimit-Limit", "100;w=21600", "RateLimit-Remaining", "0", "Docker-RateLimit-Source", "192.0.2.1"), 429, "TOOMANYREQUESTS", []string{"Retry-After", "60", "Ratelimit-Limit", "100;w=21600", "Ratelimit-Remaining", "0", "Docker-Ratelimit-Source", "192.0.2.1"}},
		"500":             {refuse(500), 502, "UNAVAILABLE", nil},
		"503":             {refuse(503, "Retry-After", "60"), 502, "UNAVAILABLE", nil},
		"508":             {refuse(508), 508, "UNAVAILABLE", nil},
		"redirect loop":   {func(w http.ResponseWriter, r *http.Request) bool { http.Redirect(w, r, r.URL.Path, 307); return true }, 502, "UNAVAILABLE", nil},
		"redirect to 403": {func(w http.ResponseWriter, r *http.Request) bool { return expired(w, r) }, 502, "UNAVAILABLE", nil},
		"gzip": {func(w http.ResponseWriter, r *http.Request) bool {
			w.Header().Set("Content-Encoding", "gzip")
			_, _ = w.Write([]byte("\x1f\x8b"))
			return true
		}, 502, "UNAVAILABLE", nil},
		"cut": {func(w http.ResponseWriter, r *http.Request) bool { panic(http.ErrAbortHandler) }, 502, "UNAVAILABLE", nil},
	} {
		t.Run(name, func(t *testing.T) {
			o := newOrigin()
			d := o.add("app", random(1000, 40))
			o.answer = c.answer
			s := newStack(t, o, true)
			for _, path := range []string{"/v2/app/manifests/v1", "/v2/app/manifests/" + string(d), "/v2/app/blobs/" + string(digest.FromBytes(random(1000, 40)))} {
				resp, body := s.do(t, http.MethodGet, path)
				want := c.code
				if want == "MANIFEST_UNKNOWN" && strings.Contains(path, "/blobs/") {
					want = "BLOB_UNKNOWN"
				}
				if resp.StatusCode != c.status || code(body) != want {
					t.Errorf("%s: %s %s, want %d %s", path, resp.Status, body, c.status, want)
				}
				for i := 0; i+1 < len(c.header); i += 2 {
					if got := resp.Header.Get(c.header[i]); got != c.header[i+1] {
						t.Errorf("%s: %s: %q", path, c.header[i], got)
					}
				}
				if c.status == 502 && !strings.Contains(string(body), s.upstream.Listener.Addr().String()) {
					t.Errorf("%s: the error does not name the upstream: %s", path, body)
				}
			}
			o.set(func() { o.answer = nil }) // and nothing of that is remembered, but for how often to ask
			for range 60 {
				if resp, _ := s.do(t, http.MethodGet, "/v2/app/manifests/v1"); resp.StatusCode == 200 {
					return
				}
				time.Sleep(100 * time.Millisecond)
			}
			t.Error("the upstream works again, but is not asked")
		})
	}
}

// expired redirects to a URL that is refused: a signature that has expired.
func expired(w http.ResponseWriter, r *http.Request) bool {
	if strings.HasPrefix(r.URL.Path, "/storage") {
		w.WriteHeader(http.StatusForbidden)
		return true
	}
	_, port, _ := net.SplitHostPort(r.Host)
	http.Redirect(w, r, "http://localhost:"+port+"/storage?signature=x", http.StatusTemporaryRedirect)
	return true
}

// TestASignatureThatExpiresMidBlob: each range is asked for at the registry, so
// that it is signed anew.
func TestASignatureThatExpiresMidBlob(t *testing.T) {
	o := newOrigin()
	layer := random(20<<20, 41)
	o.add("app", layer)
	var signature atomic.Int64
	o.answer = func(w http.ResponseWriter, r *http.Request) bool {
		if r.Method != http.MethodGet || !strings.Contains(r.URL.Path, "/blobs/") {
			return false
		}
		given := r.FormValue("signature")
		if given == "" {
			_, port, _ := net.SplitHostPort(r.Host)
			http.Redirect(w, r, fmt.Sprintf("http://localhost:%s%s?signature=%d", port, r.URL.Path, signature.Add(1)), http.StatusTemporaryRedirect)
			return true
		}
		if given == "2" { // it has expired by the time it is used
			w.WriteHeader(http.StatusForbidden)
			return true
		}
		return false
	}
	s := newStack(t, o, true)
	if resp, body := s.do(t, http.MethodGet, "/v2/app/blobs/"+string(digest.FromBytes(layer))); !bytes.Equal(body, layer) {
		t.Errorf("%s, %d bytes", resp.Status, len(body))
	}
}

func TestWarningsArePassedOn(t *testing.T) {
	o := newOrigin()
	o.add("app", []byte("x"))
	o.answer = func(w http.ResponseWriter, _ *http.Request) bool {
		w.Header().Add("Warning", `299 - "this image \"app\" is deprecated"`)
		w.Header().Add("Warning", `110 cache "stale"`)
		w.Header().Add("Warning", `299 - no quotes`)
		w.Header().Add("Warning", `299 - "`+strings.Repeat("x", 5000)+`"`)
		return false
	}
	s := newStack(t, o, true)
	resp, _ := s.do(t, http.MethodGet, "/v2/app/manifests/v1")
	if got := resp.Header.Values("Warning"); len(got) != 1 || got[0] != `299 - "this image \"app\" is deprecated"` {
		t.Errorf("warnings are %q", got)
	}
}

// TestAClientLeavesAnEndlessBody that comes byte by byte. How long the node itself
// waits is tested in proxy/upstream, in virtual time.
func TestAClientLeavesAnEndlessBody(t *testing.T) {
	o := newOrigin()
	d := o.add("app", []byte("x"))
	o.answer = func(w http.ResponseWriter, r *http.Request) bool {
		if r.Method == http.MethodHead {
			return false
		}
		w.Header().Set("Content-Length", "100000")
		for {
			if _, err := w.Write([]byte(" ")); err != nil || http.NewResponseController(w).Flush() != nil {
				return true
			}
			time.Sleep(time.Millisecond)
		}
	}
	s := newStack(t, o, true)
	client := http.Client{Timeout: 300 * time.Millisecond}
	if resp, err := client.Get(s.url + "/v2/app/manifests/" + string(d)); err == nil {
		t.Errorf("an answer: %s", resp.Status)
	}
	s.upstream.CloseClientConnections()
}

// TestAThousandClients read one cold blob at once.
func TestAThousandClients(t *testing.T) {
	o := newOrigin()
	layer := random(2<<20, 42)
	d := digest.FromBytes(layer)
	o.add("app", layer)
	s := newStack(t, o, true)
	path := s.url + "/v2/app/blobs/" + string(d)
	var wg sync.WaitGroup
	for range 1000 {
		wg.Go(func() {
			resp, err := http.Get(path)
			if err != nil {
				t.Error(err)
				return
			}
			defer resp.Body.Close()
			right := d.Verifier()
			if n, err := io.Copy(right, resp.Body); err != nil || !right.Verified() {
				t.Errorf("%s, %d bytes, %v", resp.Status, n, err)
			}
		})
	}
	wg.Wait()
	if sent := o.sent.Load(); sent > int64(len(layer))*3/2 {
		t.Errorf("the upstream sent %d bytes for a blob of %d", sent, len(layer))
	}
}

// TestAClientThatStopsReading holds up nobody else, and its own place for the
// time of the write deadline at the most.
func TestAClientThatStopsReading(t *testing.T) {
	o := newOrigin()
	layer := random(24<<20, 43)
	o.add("app", layer)
	s := newStack(t, o, true)
	path := "/v2/app/blobs/" + string(digest.FromBytes(layer))
	conn, err := net.Dial("tcp", strings.TrimPrefix(s.url, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	fmt.Fprintf(conn, "GET %s HTTP/1.1\r\nHost: x\r\n\r\n", path)
	if _, err := conn.Read(make([]byte, 100)); err != nil {
		t.Fatal(err)
	}
	if resp, body := s.do(t, http.MethodGet, path); !bytes.Equal(body, layer) {
		t.Errorf("another client: %s, %d bytes", resp.Status, len(body))
	}
}

// TestLoops: a request that comes back to the node it came from is refused, with
// another node in between as well.
func TestLoops(t *testing.T) {
	var self *stack
	o := newOrigin()
	between := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		req, _ := http.NewRequestWithContext(r.Context(), r.Method, self.url+r.URL.Path, nil)
		req.Header.Set("Via", r.Header.Get("Via")+", 1.1 another")
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			w.WriteHeader(http.StatusBadGateway)
			return
		}
		defer resp.Body.Close()
		w.WriteHeader(resp.StatusCode)
	}))
	t.Cleanup(between.Close)
	self = newStackAt(t, o, between.URL)
	for _, path := range []string{"/v2/app/manifests/v1", "/v2/app/blobs/" + string(digest.FromString("x")), "/v2/app/tags/list"} {
		if resp, body := self.do(t, http.MethodGet, path); resp.StatusCode != http.StatusLoopDetected {
			t.Errorf("%s: %s %s", path, resp.Status, body)
		}
	}
	if resp, _ := self.do(t, http.MethodGet, "/v2/", "Via", "1.1 another-node"); resp.StatusCode != 200 {
		t.Errorf("Via of another proxy: %s", resp.Status)
	}
}

func TestLimits(t *testing.T) {
	release, inside := make(chan struct{}), make(chan struct{}, 100)
	front := httptest.NewServer(proxy.Limit(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {
		inside <- struct{}{}
		<-release
	}), proxy.Limits{Total: 2, PerClient: 2, Queue: 1, Wait: time.Minute}))
	defer front.Close()
	results := make(chan *http.Response, 10)
	get := func() {
		resp, err := http.Get(front.URL)
		if err != nil {
			t.Error(err)
			return
		}
		resp.Body.Close()
		results <- resp
	}
	go get()
	go get()
	<-inside
	<-inside
	go get()                           // waits
	time.Sleep(100 * time.Millisecond) // for it to have come
	go get()
	if resp := <-results; resp.StatusCode != http.StatusServiceUnavailable || resp.Header.Get("Retry-After") == "" {
		t.Errorf("one too many: %s %v", resp.Status, resp.Header)
	}
	close(release)
	for range 3 {
		if resp := <-results; resp.StatusCode != http.StatusOK {
			t.Errorf("one that waited: %s", resp.Status)
		}
	}
}

// TestOneClientLeavesRoomForOthers: what a client has too many of waits for
// itself alone.
func TestOneClientLeavesRoomForOthers(t *testing.T) {
	release, inside := make(chan struct{}), make(chan string, 100)
	h := proxy.Limit(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		inside <- r.RemoteAddr
		<-release
	}), proxy.Limits{Total: 4, PerClient: 2, Queue: 10, Wait: time.Minute})
	var wg sync.WaitGroup
	from := func(address string) {
		wg.Go(func() {
			r := httptest.NewRequest(http.MethodGet, "/v2/", nil)
			r.RemoteAddr = address
			w := httptest.NewRecorder()
			h.ServeHTTP(w, r)
			if w.Code != http.StatusOK {
				t.Errorf("%s: %d", address, w.Code)
			}
		})
	}
	for range 5 {
		from("192.0.2.1:1")
	}
	<-inside
	<-inside
	from("192.0.2.2:1")
	from("[2001:db8::1]:1")
	for _, address := range []string{<-inside, <-inside} {
		if address == "192.0.2.1:1" {
			t.Error("a client has more than its places")
		}
	}
	close(release)
	wg.Wait()
}

func TestHostileRequests(t *testing.T) {
	o := newOrigin()
	o.add("app", []byte("x"))
	s := newStack(t, o, true)
	send := func(request string) string {
		conn, err := net.Dial("tcp", strings.TrimPrefix(s.url, "http://"))
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		_ = conn.SetDeadline(time.Now().Add(10 * time.Second))
		go func() { _, _ = io.WriteString(conn, request) }()
		line, _ := bufio.NewReader(conn).ReadString('\n')
		return strings.TrimSpace(line)
	}
	for request, want := range map[string]string{
		"GET /v2/app/manifests/v1 HTTP/1.1\r\nHost: x\r\nX: " + strings.Repeat("x", 2<<20) + "\r\n\r\n":                     "HTTP/1.1 431 Request Header Fields Too Large",
		"GET /v2/" + strings.Repeat("a/", 10_000) + "manifests/v1 HTTP/1.1\r\nHost: x\r\n\r\n":                              "HTTP/1.1 414 Request URI Too Long",
		"GET /v2/app/../../etc/passwd HTTP/1.1\r\nHost: x\r\n\r\n":                                                          "HTTP/1.1 404 Not Found",
		"GET /v2/app/manifests/v1 HTTP/1.1\r\nHost: x\r\nAuthorization: a\r\nAuthorization: b\r\n\r\n":                      "HTTP/1.1 400 Bad Request",
		"GET /v2/app/manifests/v1 HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer " + strings.Repeat("x", 40_000) + "\r\n\r\n": "HTTP/1.1 400 Bad Request",
		"PUT /v2/app/manifests/v1 HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000000000\r\n\r\n":                             "HTTP/1.1 405 Method Not Allowed",
		"GET /v2/app/manifests/v1?ns=%00 HTTP/1.1\r\nHost: x\r\n\r\n":                                                       "HTTP/1.1 400 Bad Request",
		"GET /v2/app/manifests/v1 HTTP/1.1\r\nHost: x\r\nRange: bytes=" + strings.Repeat("0-0,", 2000) + "0-0\r\n\r\n":      "HTTP/1.1 416 Requested Range Not Satisfiable",
		"GET /v2/app/blobs/sha256:" + strings.Repeat("g", 64) + " HTTP/1.1\r\nHost: x\r\n\r\n":                              "HTTP/1.1 400 Bad Request",
		"GET /v2/app/manifests/" + strings.Repeat("a", 129) + " HTTP/1.1\r\nHost: x\r\n\r\n":                                "HTTP/1.1 400 Bad Request",
		"GET /v2/app/manifests/v1?ns=" + strings.Repeat("a", 300) + ".io HTTP/1.1\r\nHost: x\r\n\r\n":                       "HTTP/1.1 400 Bad Request",
		"GET /v2/app/tags/list?n=1&last=" + strings.Repeat("%F0%9F%98%80", 100) + " HTTP/1.1\r\nHost: x\r\n\r\n":            "HTTP/1.1 200 OK",
		"GET /v2/app/manifests/v1 HTTP/1.1\r\nHost: x\r\nIf-None-Match: " + strings.Repeat(`"a",`, 1000) + "\"a\"\r\n\r\n":  "HTTP/1.1 200 OK",
		"GET /v2/app/manifests/v1 HTTP/1.1\r\nHost: x\r\nIf-Range: W/\"x\"\r\nRange: bytes=0-0\r\n\r\n":                     "HTTP/1.1 200 OK",
		"GET /v2/app/manifests/v1 HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\n":            "HTTP/1.1 200 OK",
	} {
		if got := send(request); got != want {
			t.Errorf("%.80q: %s, want %s", request, got, want)
		}
	}
}

// TestAWrongLengthIsForgotten: a registry that once says the wrong size of a blob
// is asked again.
func TestAWrongLengthIsForgotten(t *testing.T) {
	for _, named := range []bool{false, true} {
		for _, wrong := range []string{"7", "5000000000000000", "2097153"} {
			o := newOrigin()
			layer := random(2<<20, 60)
			o.add("app", layer)
			o.answer = func(w http.ResponseWriter, r *http.Request) bool {
				if r.Method == http.MethodHead && strings.Contains(r.URL.Path, "/blobs/") {
					w.Header().Set("Content-Length", wrong)
					return true
				}
				return false
			}
			s := newStack(t, o, true)
			if named {
				s.wantStatus(t, 200, "/v2/app/manifests/v1", "")
			}
			path := "/v2/app/blobs/" + string(digest.FromBytes(layer))
			if resp, body := s.do(t, http.MethodGet, path); resp.StatusCode == 200 && !bytes.Equal(body, layer) {
				t.Errorf("%s: a clean end of %d bytes", wrong, len(body))
			}
			o.set(func() { o.answer = nil })
			if resp, body := s.do(t, http.MethodGet, path); !bytes.Equal(body, layer) {
				t.Errorf("%s, named %v: afterwards %s, %d bytes", wrong, named, resp.Status, len(body))
			}
		}
	}
}

// TestWrongBytesAreReported once for each answer, with the digest and who sent
// them.
func TestWrongBytesAreReported(t *testing.T) {
	o := newOrigin()
	layer := random(3<<20, 61)
	o.add("app", layer)
	d := string(digest.FromBytes(layer))
	o.set(func() { o.blobs["app@"+d] = random(3<<20, 62) })
	s := newStack(t, o, true)
	s.do(t, http.MethodGet, "/v2/app/blobs/"+d)
	s.mu.Lock()
	defer s.mu.Unlock()
	var corrupt *chunk.CorruptError
	if len(s.reported) != 1 || !errors.As(s.reported[0], &corrupt) || corrupt.Source != "upstream" || !strings.Contains(s.reported[0].Error(), d) {
		t.Errorf("reported: %v", s.reported)
	}
}

// TestABodyThatDoesNotCome does not hold the connection.
func TestABodyThatDoesNotCome(t *testing.T) {
	o := newOrigin()
	o.add("app", []byte("x"))
	s := newStack(t, o, true)
	for _, method := range []string{"GET", "PUT"} {
		conn, err := net.Dial("tcp", strings.TrimPrefix(s.url, "http://"))
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		_ = conn.SetDeadline(time.Now().Add(time.Minute))
		fmt.Fprintf(conn, "%s /v2/app/manifests/v1 HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n", method)
		if _, err := io.ReadAll(conn); err != nil {
			t.Errorf("%s: the connection is kept: %v", method, err)
		}
	}
}

// TestListsOfRubbish: what is no tag or descriptor takes no room.
func TestListsOfRubbish(t *testing.T) {
	o := newOrigin()
	o.answer = func(w http.ResponseWriter, r *http.Request) bool {
		switch {
		case strings.Contains(r.URL.Path, "/tags/"):
			w.Header().Set("Link", fmt.Sprintf(`<?last=%d>; rel="next"`, time.Now().UnixNano()))
			fmt.Fprintf(w, `{"tags":["v1","","/","%s"%s]}`, strings.Repeat("x", 200), strings.Repeat(`,""`, 1<<10))
		case strings.Contains(r.URL.Path, "/referrers/"):
			fmt.Fprintf(w, `{"manifests":[{},{"digest":"x"},{"digest":"%[1]s"},{"digest":"%[1]s"}]}`, digest.FromString("x"))
		}
		return true
	}
	s := newStack(t, o, true)
	if resp, body := s.do(t, http.MethodGet, "/v2/app/tags/list"); resp.StatusCode == 200 {
		t.Errorf("an endless list: %.100s", body)
	}
	resp, body := s.do(t, http.MethodGet, "/v2/app/referrers/"+string(digest.FromString("y")))
	if resp.StatusCode != 200 || strings.Count(string(body), "digest") != 1 {
		t.Errorf("%s %s", resp.Status, body)
	}
}

// TestQuestionsEndWithTheLastClient who waits.
func TestQuestionsEndWithTheLastClient(t *testing.T) {
	o := newOrigin()
	o.add("app", []byte("x"))
	left := make(chan struct{})
	o.answer = func(_ http.ResponseWriter, r *http.Request) bool {
		<-r.Context().Done()
		close(left)
		return true
	}
	s := newStack(t, o, true)
	client := http.Client{Timeout: 200 * time.Millisecond}
	if resp, err := client.Get(s.url + "/v2/app/manifests/v1"); err == nil {
		t.Errorf("an answer: %s", resp.Status)
	}
	select {
	case <-left:
	case <-time.After(20 * time.Second):
		t.Error("the question goes on")
	}
}

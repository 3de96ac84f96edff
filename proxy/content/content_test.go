package content_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"mime"
	"mime/multipart"
	"net/http"
	"net/http/httptest"
	"reflect"
	"strings"
	"testing"

	"github.com/granary-oci/granary/proxy/content"
)

const size = 10_000

var whole = func() []byte {
	p := make([]byte, size)
	for i := range p {
		p[i] = byte(i * 7)
	}
	return p
}()

type body struct{ *bytes.Reader }

func (body) Close() error { return nil }

func of(p []byte, parts *[]content.Part) content.Content {
	return content.Content{Type: "application/x", ETag: `"e"`, Size: int64(len(p)), Open: func(part content.Part) (content.Body, error) {
		if parts != nil {
			*parts = append(*parts, part)
		}
		return body{bytes.NewReader(p[part.Offset : part.Offset+part.Length])}, nil
	}}
}

func ask(t *testing.T, c content.Content, method string, header ...string) (*http.Response, []byte) {
	t.Helper()
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Cache-Control", "immutable")
		if sent, err := content.Serve(w, r, c); err != nil || !sent {
			t.Errorf("sent %v, %v", sent, err)
		}
	}))
	defer s.Close()
	req, err := http.NewRequest(method, s.URL, nil)
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i+1 < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	p, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp, p
}

// TestOneRange is the table of RFC 9110, section 14, as registries' clients
// know it.
func TestOneRange(t *testing.T) {
	for _, c := range []struct {
		rang     string
		status   int
		from, to int
		part     content.Part
	}{
		{"bytes=500-1499", 206, 500, 1500, content.Part{Offset: 500, Length: 1000}},
		{"bytes=500-", 206, 500, size, content.Part{Offset: 500, Length: size - 500, OpenEnd: true, Complete: true}},
		{"bytes=0-", 206, 0, size, content.Part{Length: size, OpenEnd: true, Complete: true}},
		{"bytes=-500", 206, size - 500, size, content.Part{Offset: size - 500, Length: 500}},
		{"bytes=-99999", 206, 0, size, content.Part{Length: size}},
		{"bytes=2000-50000", 206, 2000, size, content.Part{Offset: 2000, Length: size - 2000}},
		{"bytes=0-0", 206, 0, 1, content.Part{Length: 1}},
		{"bytes=0-99999999999999999999999999", 206, 0, size, content.Part{Length: size, Complete: true}},
		{"BYTES= 1-2 ", 206, 1, 3, content.Part{Offset: 1, Length: 2}},
		{"bytes=5-6,90000-", 206, 5, 7, content.Part{Offset: 5, Length: 2}}, // one of two is satisfiable
		{"bytes=10000-", 416, 0, 0, content.Part{}},
		{"bytes=99999999999999999999999999-", 416, 0, 0, content.Part{}},
		{"bytes=500-0", 416, 0, 0, content.Part{}},
		{"bytes=-0", 416, 0, 0, content.Part{}},
		{"bytes=", 416, 0, 0, content.Part{}},
		{"bytes=a-b", 416, 0, 0, content.Part{}},
		{"bytes=1", 416, 0, 0, content.Part{}},
		{"bytes=+1-2", 416, 0, 0, content.Part{}},
		{"bytes=1-2,x", 416, 0, 0, content.Part{}},
		{"bytes=" + strings.Repeat("1-2,", 3000), 416, 0, 0, content.Part{}},
		{"bytes=0-,0-,0-", 416, 0, 0, content.Part{}},
		{"chars=0-1", 200, 0, size, content.Part{Length: size, Complete: true}},
		{"nonsense", 200, 0, size, content.Part{Length: size, Complete: true}},
		{"", 200, 0, size, content.Part{Length: size, Complete: true}},
	} {
		name := c.rang[:min(len(c.rang), 40)]
		var parts []content.Part
		resp, got := ask(t, of(whole, &parts), "GET", "Range", c.rang)
		if resp.StatusCode != c.status {
			t.Errorf("%s: %s, want %d", name, resp.Status, c.status)
			continue
		}
		if c.status == 416 {
			if resp.Header.Get("Content-Range") != fmt.Sprintf("bytes */%d", size) || resp.Header.Get("ETag") != "" ||
				resp.ContentLength == size || resp.Header.Get("Cache-Control") != "" || len(parts) > 0 {
				t.Errorf("%s: %v, %d bytes", name, resp.Header, resp.ContentLength)
			}
			continue
		}
		want := ""
		if c.status == 206 {
			want = fmt.Sprintf("bytes %d-%d/%d", c.from, c.to-1, size)
		}
		if !bytes.Equal(got, whole[c.from:c.to]) || resp.ContentLength != int64(c.to-c.from) || resp.Header.Get("Content-Range") != want ||
			resp.Header.Get("ETag") != `"e"` || resp.Header.Get("Content-Type") != "application/x" || resp.Header.Get("Accept-Ranges") != "bytes" {
			t.Errorf("%s: %d bytes, %v", name, len(got), resp.Header)
		}
		if !reflect.DeepEqual(parts, []content.Part{c.part}) {
			t.Errorf("%s: opened %+v, want %+v", name, parts, c.part)
		}
	}
}

func TestHeadKnowsNoRange(t *testing.T) {
	resp, got := ask(t, of(whole, nil), "HEAD", "Range", "bytes=1-2")
	if resp.StatusCode != 200 || resp.ContentLength != size || len(got) != 0 || resp.Header.Get("Content-Range") != "" {
		t.Errorf("%s %v", resp.Status, resp.Header)
	}
}

func TestSeveralRanges(t *testing.T) {
	resp, got := ask(t, of(whole, nil), "GET", "Range", "bytes=10-19, 0-1,,-5,5-4000,20000-")
	kind, params, err := mime.ParseMediaType(resp.Header.Get("Content-Type"))
	if resp.StatusCode != 206 || err != nil || kind != "multipart/byteranges" || resp.Header.Get("Content-Range") != "" || resp.ContentLength != int64(len(got)) {
		t.Fatalf("%s %v, %d bytes", resp.Status, resp.Header, len(got))
	}
	r := multipart.NewReader(bytes.NewReader(got), params["boundary"])
	for _, want := range [][2]int{{10, 20}, {0, 2}, {size - 5, size}, {5, 4001}} {
		p, err := r.NextPart()
		if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(p)
		if err != nil || !bytes.Equal(b, whole[want[0]:want[1]]) || p.Header.Get("Content-Type") != "application/x" ||
			p.Header.Get("Content-Range") != fmt.Sprintf("bytes %d-%d/%d", want[0], want[1]-1, size) {
			t.Errorf("part %v: %d bytes, %v, %v", want, len(b), p.Header, err)
		}
	}
	if _, err := r.NextPart(); err != io.EOF {
		t.Errorf("after the last part: %v", err)
	}
}

func TestManyRangesOfALazyClient(t *testing.T) {
	var specs []string
	for i := range 1024 {
		specs = append(specs, fmt.Sprintf("%d-%d", i*8, i*8+3))
	}
	resp, got := ask(t, of(whole, nil), "GET", "Range", "bytes="+strings.Join(specs, ","))
	if resp.StatusCode != 206 || bytes.Count(got, []byte("Content-Range: ")) != 1024 {
		t.Errorf("%s, %d parts", resp.Status, bytes.Count(got, []byte("Content-Range: ")))
	}
}

func TestPreconditions(t *testing.T) {
	for _, c := range []struct {
		header, value string
		status        int
	}{
		{"If-None-Match", `"e"`, 304},
		{"If-None-Match", `W/"e"`, 304},
		{"If-None-Match", `"a", "e"`, 304},
		{"If-None-Match", `*`, 304},
		{"If-None-Match", `"a"`, 206},
		{"If-None-Match", `e`, 206},
		{"If-Match", `"e"`, 206},
		{"If-Match", `*`, 206},
		{"If-Match", `W/"e"`, 412},
		{"If-Match", `"a"`, 412},
		{"If-Range", `"e"`, 206},
		{"If-Range", `"a"`, 200},
		{"If-Range", `W/"e"`, 200},
		{"If-Range", `Sat, 21 Nov 2026 00:00:00 GMT`, 200},
	} {
		resp, _ := ask(t, of(whole, nil), "GET", "Range", "bytes=0-9", c.header, c.value)
		if resp.StatusCode != c.status {
			t.Errorf("%s: %s: %s, want %d", c.header, c.value, resp.Status, c.status)
		}
		if c.status == 304 && resp.Header.Get("ETag") != `"e"` {
			t.Errorf("304 without ETag: %v", resp.Header)
		}
	}
}

func TestEmptyContent(t *testing.T) {
	if resp, got := ask(t, of(nil, nil), "GET"); resp.StatusCode != 200 || len(got) != 0 || resp.ContentLength != 0 {
		t.Errorf("%s, %d bytes", resp.Status, len(got))
	}
	for _, r := range []string{"bytes=0-", "bytes=-5", "bytes=0-0"} {
		if resp, _ := ask(t, of(nil, nil), "GET", "Range", r); resp.StatusCode != 416 {
			t.Errorf("%s: %s, want 416", r, resp.Status)
		}
	}
}

func TestAnErrorBeforeTheStatusIsTheCallers(t *testing.T) {
	c := of(whole, nil)
	c.Open = func(content.Part) (content.Body, error) { return nil, errors.New("no") }
	for _, r := range []string{"", "bytes=1-2", "bytes=1-2,4-5"} {
		w := httptest.NewRecorder()
		req := httptest.NewRequest("GET", "/", nil)
		req.Header.Set("Range", r)
		if sent, err := content.Serve(w, req, c); sent || err == nil || w.Body.Len() > 0 || w.Header().Get("Content-Length") != "" {
			t.Errorf("Range %q: sent %v, %v, %v", r, sent, err, w.Header())
		}
	}
}

func TestAShortBodyIsAnError(t *testing.T) {
	c := of(whole, nil)
	c.Open = func(content.Part) (content.Body, error) { return body{bytes.NewReader(whole[:9])}, nil }
	w := httptest.NewRecorder()
	if sent, err := content.Serve(w, httptest.NewRequest("GET", "/", nil), c); !sent || err == nil {
		t.Errorf("sent %v, %v", sent, err)
	}
}

package proxy_test

import (
	"bytes"
	stdgzip "compress/gzip"
	"fmt"
	"io"
	"net/http"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"
	"github.com/klauspost/pgzip"
	"github.com/opencontainers/go-digest"

	"github.com/granary-oci/granary/proxy"
	"github.com/granary-oci/granary/proxy/rebuild"
	"github.com/granary-oci/granary/toc/cdc"
)

// filesOf is a tar of n bytes of files, large and small.
func filesOf(t *testing.T, n int) []byte {
	t.Helper()
	var files []any
	for i, size := 0, 0; size < n; i++ {
		p := texts(500+i*i*1777%150_000, uint64(i))
		files, size = append(files, fmt.Sprint("dir/file-", i), p), size+len(p)
	}
	return tarOf(t, files...)
}

// texts are n bytes that compress to about a half.
func texts(n int, seed uint64) []byte {
	p := random(n, seed)
	for i := range p {
		p[i] = "etaoin shrdlucm\n"[p[i]&15]
	}
	return p
}

func packedBy(t *testing.T, open func(io.Writer) io.WriteCloser, p []byte) []byte {
	t.Helper()
	var b bytes.Buffer
	w := open(&b)
	if _, err := w.Write(p); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func byGo(w io.Writer) io.WriteCloser    { return stdgzip.NewWriter(w) }
func byPgzip(w io.Writer) io.WriteCloser { return pgzip.NewWriter(w) }

// offering is a stack that makes offers.
func offering(t *testing.T, o *origin, change ...func(*proxy.Config)) *stack {
	t.Helper()
	s := newStack(t, o, true, append([]func(*proxy.Config){func(c *proxy.Config) { c.Offers = true }}, change...)...)
	go s.registry.MakeOffers(t.Context())
	return s
}

// have pulls a layer until all of it is known to be here.
func (s *stack) have(t *testing.T, repository string, layer []byte, header ...string) (at digest.Digest) {
	t.Helper()
	d := digest.FromBytes(layer)
	s.mapOf(t, repository, d, header...)
	return d
}

// ask asks for an offer, or for contents, until the node does not say any more that it is being made.
func (s *stack) ask(t *testing.T, repository, path string, d digest.Digest, query string, header ...string) (*http.Response, []byte) {
	t.Helper()
	for {
		resp, body := s.do(t, http.MethodGet, "/v2/"+repository+"/"+path+string(d)+query, header...)
		if resp.StatusCode != http.StatusServiceUnavailable {
			return resp, body
		}
		if n, err := strconv.Atoi(resp.Header.Get("Retry-After")); err != nil || n < 1 || n > 60 {
			t.Fatalf("to be asked again after %q", resp.Header.Get("Retry-After"))
		}
		time.Sleep(10 * time.Millisecond)
	}
}

func unzstd(t *testing.T, p []byte) []byte {
	t.Helper()
	z, err := zstd.NewReader(nil)
	if err != nil {
		t.Fatal(err)
	}
	defer z.Close()
	p, err = z.DecodeAll(p, nil)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// offerOf is what the node offers of a layer of the repository "app".
func (s *stack) offerOf(t *testing.T, layer []byte) (d digest.Digest, offer rebuild.Offer) {
	t.Helper()
	d = s.have(t, "app", layer)
	resp, body := s.ask(t, "app", rebuild.OfferPath, d, "")
	if resp.StatusCode != http.StatusOK || resp.Header.Get("Content-Type") != rebuild.OfferType || !strings.Contains(resp.Header.Get("Cache-Control"), "immutable") {
		t.Fatalf("%s: %s", resp.Status, body[:min(len(body), 500)])
	}
	offer, err := rebuild.DecodeOffer(body)
	if err != nil {
		t.Fatal(err)
	}
	return d, offer
}

// TestALayerIsMadeAgainByItsOffer: who has nothing of it gets all chunks that are not in the map, in several
// requests, puts the tar together, and makes the layer of it.
func TestALayerIsMadeAgainByItsOffer(t *testing.T) {
	for name, by := range map[string]func(io.Writer) io.WriteCloser{"Go": byGo, "pgzip": byPgzip} {
		t.Run(name, func(t *testing.T) {
			o, content := newOrigin(), filesOf(t, 5<<19)
			layer := packedBy(t, by, content)
			o.add("app", layer)
			s := offering(t, o)
			d, offer := s.offerOf(t, layer)
			if offer.Recipe.Blob.OCI() != d || offer.Map.Size() != int64(len(content)) {
				t.Fatalf("it is for another layer: %+v", offer.Recipe)
			}
			got := make([]byte, offer.Map.Size())
			var wanted []int
			size := int64(0)
			fetch := func() {
				resp, body := s.ask(t, "app", rebuild.ContentsPath, d, "?chunks="+rebuild.FormatChunks(wanted, offer.Map))
				if resp.StatusCode != http.StatusOK || resp.Header.Get("Content-Type") != rebuild.ContentsType {
					t.Fatalf("%s: %s", resp.Status, body[:min(len(body), 500)])
				}
				p := unzstd(t, body)
				for _, i := range wanted {
					c := offer.Map.Chunks[i]
					if !c.Fits(p[:c.Size]) {
						t.Fatalf("chunk %d is another one", i)
					}
					p = p[copy(got[c.Offset:], p[:c.Size]):]
				}
				if len(p) > 0 {
					t.Fatalf("%d bytes more", len(p))
				}
				wanted, size = wanted[:0], 0
			}
			for i, c := range offer.Map.Chunks {
				if c.Inline != nil {
					copy(got[c.Offset:], c.Inline)
					continue
				}
				if size+c.Size > 1<<20 {
					fetch()
				}
				wanted, size = append(wanted, i), size+c.Size
			}
			fetch()
			var again bytes.Buffer
			if err := offer.Recipe.Rebuild(t.Context(), &again, bytes.NewReader(got)); err != nil || !bytes.Equal(again.Bytes(), layer) {
				t.Errorf("the layer is another one: %v", err)
			}
			if c := s.registry.Offers(); c.Made != 1 || c.None != 0 || c.Seconds <= 0 || c.Sent < int64(len(layer))/2 || c.Waiting != 0 {
				t.Errorf("counts: %+v", c)
			}
		})
	}
}

// TestSomeContents asks for chunks here and there.
func TestSomeContents(t *testing.T) {
	o, content := newOrigin(), filesOf(t, 5<<19)
	layer := packedBy(t, byGo, content)
	o.add("app", layer)
	s := offering(t, o)
	d, offer := s.offerOf(t, layer)
	var some []int
	var want []byte
	for i, c := range offer.Map.Chunks {
		if c.Inline == nil && i%7 < 2 {
			some, want = append(some, i), append(want, content[c.Offset:c.Offset+c.Size]...)
		}
	}
	resp, body := s.ask(t, "app", rebuild.ContentsPath, d, "?chunks="+rebuild.FormatChunks(some, offer.Map))
	if resp.StatusCode != http.StatusOK || !bytes.Equal(unzstd(t, body), want) {
		t.Errorf("%s, not the chunks %v", resp.Status, some)
	}
	for _, query := range []string{"?chunks=", "?chunks=x", "?chunks=0", "?chunks=1,1", "?chunks=999999", "?chunks=1-999999", "?chunks=" + strings.Repeat("1,", 300)} {
		if resp, body := s.ask(t, "app", rebuild.ContentsPath, d, query); resp.StatusCode != http.StatusBadRequest {
			t.Errorf("%.30s: %s %s", query, resp.Status, body)
		}
	}
}

// TestLayersWithoutAnOffer says of each why there is none, and has the contents of those that are tars all the same.
func TestLayersWithoutAnOffer(t *testing.T) {
	content := filesOf(t, 5<<19)
	layers := map[string][]byte{
		"is no gzip":      content,
		"in zstd frames":  zstdFrames(t, content, 300_000),
		"in one of zstd":  zstdFrames(t, filesOf(t, 17<<20), 17<<20),
		"no tar in it":    packedBy(t, byGo, texts(5<<19, 1)),
		"neither of them": texts(5<<19, 2),
		"too small":       packedBy(t, byGo, filesOf(t, 1<<20)),
	}
	if program, err := exec.LookPath("gzip"); err == nil {
		cmd := exec.CommandContext(t.Context(), program, "-9n")
		cmd.Stdin = bytes.NewReader(content)
		if layers["by GNU gzip"], err = cmd.Output(); err != nil {
			t.Fatal(err)
		}
	}
	o := newOrigin()
	for _, p := range layers {
		o.add("app", p)
	}
	s := offering(t, o)
	for name, p := range layers {
		d := s.have(t, "app", p)
		for range 2 {
			resp, body := s.ask(t, "app", rebuild.OfferPath, d, "")
			if resp.StatusCode != http.StatusNotFound || code(body) != "UNSUPPORTED" || !bytes.Contains(body, []byte("there is no offer of the layer: ")) {
				t.Errorf("%s: %s %s", name, resp.Status, body)
			}
		}
		resp, body := s.ask(t, "app", rebuild.ContentsPath, d, "")
		switch name {
		case "is no gzip", "in zstd frames", "by GNU gzip":
			if got := s.contentsBy(t, d, body); resp.Header.Get("Content-Type") != rebuild.MapType || !bytes.Equal(got, content) {
				t.Errorf("%s: %s %.200s, its contents are %d other bytes", name, resp.Status, body, len(got))
			}
		default:
			if resp.StatusCode != http.StatusNotFound || !bytes.Contains(body, []byte("there is no content map of the layer: ")) {
				t.Errorf("%s, contents: %s %s", name, resp.Status, body)
			}
		}
	}
	if c := s.registry.Offers(); c.Made != 0 || c.None != int64(len(layers))-1 { // for one is too small to be looked at
		t.Errorf("counts: %+v", c)
	}
}

// zstdFrames packs p in frames of n bytes each.
func zstdFrames(t *testing.T, p []byte, n int) (all []byte) {
	t.Helper()
	z, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	for some := range slices.Chunk(p, n) {
		all = z.EncodeAll(some, all)
	}
	return all
}

// contentsBy puts together what a layer's content map names.
func (s *stack) contentsBy(t *testing.T, d digest.Digest, packed []byte) (all []byte) {
	t.Helper()
	m, err := cdc.Unpack(packed)
	if err != nil {
		t.Error(err)
		return nil
	}
	for i, c := range m.Chunks {
		if c.Inline != nil {
			all = append(all, c.Inline...)
			continue
		}
		resp, body := s.ask(t, "app", rebuild.ContentsPath, d, fmt.Sprint("?chunks=", i))
		if resp.StatusCode != http.StatusOK {
			t.Errorf("chunk %d: %s %s", i, resp.Status, body)
			return nil
		}
		all = append(all, unzstd(t, body)...)
	}
	return all
}

// TestOffersAreForThoseWhoMayReadTheLayer also once one has been made, and contents were sent.
func TestOffersAreForThoseWhoMayReadTheLayer(t *testing.T) {
	o, good := newOrigin(), basic(password)
	layer := packedBy(t, byGo, filesOf(t, 5<<19))
	d := digest.FromBytes(layer)
	o.add("secret", layer)
	o.private["secret"] = "basic"
	o.add("public", random(1<<20, 2))
	o.add("evil", layer, random(10, 3)) // which names it, and is not the one that has it
	delete(o.blobs, "evil@"+string(d))
	s := offering(t, o)
	for _, repository := range []string{"public", "evil"} {
		s.do(t, http.MethodGet, "/v2/"+repository+"/manifests/v1")
	}
	if resp, _ := s.ask(t, "secret", rebuild.OfferPath, d, "", "Authorization", good); resp.StatusCode != http.StatusNotFound {
		t.Errorf("of what is not here: %s", resp.Status)
	}
	s.have(t, "secret", layer, "Authorization", good)
	_, body := s.ask(t, "secret", rebuild.OfferPath, d, "", "Authorization", good)
	offer, err := rebuild.DecodeOffer(body)
	if err != nil {
		t.Fatal(err)
	}
	first := slices.IndexFunc(offer.Map.Chunks, func(c cdc.Chunk) bool { return c.Inline == nil })
	query := "?chunks=" + strconv.Itoa(first)
	if resp, _ := s.ask(t, "secret", rebuild.ContentsPath, d, query, "Authorization", good); resp.StatusCode != http.StatusOK {
		t.Fatalf("contents: %s", resp.Status)
	}
	for _, c := range []struct {
		repository, authorization string
		want                      int
	}{
		{"secret", "", http.StatusUnauthorized}, {"secret", basic("wrong"), http.StatusUnauthorized},
		{"public", good, http.StatusNotFound}, {"public", "", http.StatusNotFound}, {"evil", "", http.StatusNotFound}, {"nowhere", good, http.StatusNotFound},
	} {
		for _, path := range []string{rebuild.OfferPath, rebuild.ContentsPath} {
			resp, body := s.ask(t, c.repository, path, d, query, "Authorization", c.authorization)
			if resp.StatusCode != c.want || bytes.Contains(body, []byte("offer")) {
				t.Errorf("%s as %q, %s: %s %s", path, c.authorization, c.repository, resp.Status, body)
			}
		}
	}
}

// TestNoOffersAreMade where they are not to be.
func TestNoOffersAreMade(t *testing.T) {
	o, layer := newOrigin(), packedBy(t, byGo, filesOf(t, 5<<19))
	o.add("app", layer)
	s := newStack(t, o, true)
	d := s.have(t, "app", layer)
	s.registry.OfferLayer(d, int64(len(layer)))
	if resp, body := s.ask(t, "app", rebuild.OfferPath, d, ""); resp.StatusCode != http.StatusNotFound || code(body) != "UNSUPPORTED" {
		t.Errorf("%s %s", resp.Status, body)
	}
}

// TestAnOfferIsMadeAhead of the first request for it.
func TestAnOfferIsMadeAhead(t *testing.T) {
	o, layer := newOrigin(), packedBy(t, byGo, filesOf(t, 5<<19))
	o.add("app", layer)
	s := offering(t, o)
	s.do(t, http.MethodGet, "/v2/app/manifests/v1")
	d := s.have(t, "app", layer)
	s.registry.OfferLayer(d, int64(len(layer)))
	s.registry.OfferLayer(digest.FromString("of no layer"), 5<<20)
	for s.registry.Offers().Made == 0 {
		time.Sleep(time.Millisecond)
	}
	if resp, _ := s.ask(t, "app", rebuild.OfferPath, d, ""); resp.StatusCode != http.StatusOK || s.registry.Offers().Made != 1 {
		t.Errorf("%s, %+v", resp.Status, s.registry.Offers())
	}
}

// TestDictionariesAreOfLayersThatTheCallerMayRead in the same repository: what an answer takes would tell of others.
func TestDictionariesAreOfLayersThatTheCallerMayRead(t *testing.T) {
	o, content := newOrigin(), filesOf(t, 5<<19)
	older := bytes.Clone(content)
	for i := 50; i < len(older)-50; i += 997 {
		if bytes.IndexByte(older[i-50:i+50], 0) < 0 { // it is in no header
			older[i] = 'E'
		}
	}
	layer, mine, secret := packedBy(t, byGo, content), packedBy(t, byGo, older), packedBy(t, byPgzip, older)
	o.add("app", layer, mine)
	o.add("secret", secret)
	o.private["secret"] = "basic"
	s := offering(t, o)
	s.have(t, "app", mine)
	s.have(t, "secret", secret, "Authorization", basic(password))
	d, offer := s.offerOf(t, layer)
	for of, header := range map[string]string{"app\n" + string(digest.FromBytes(mine)): "", "secret\n" + string(digest.FromBytes(secret)): basic(password)} {
		repository, of, _ := strings.Cut(of, "\n")
		if resp, _ := s.ask(t, repository, rebuild.ContentsPath, digest.Digest(of), "", "Authorization", header); resp.StatusCode != http.StatusOK {
			t.Fatalf("the map of the older layer: %s", resp.Status)
		}
	}
	large := slices.IndexFunc(offer.Map.Chunks, func(c cdc.Chunk) bool { return c.Inline == nil && c.Size > 40_000 })
	c := offer.Map.Chunks[large]
	for name, q := range map[string]struct {
		of     string
		chunks string
		with   bool
	}{
		"the repository's":   {string(digest.FromBytes(mine)), strconv.Itoa(large), true},
		"another's":          {string(digest.FromBytes(secret)), strconv.Itoa(large), false},
		"nobody's":           {string(digest.FromString("x")), strconv.Itoa(large), false},
		"no layer":           {"x", strconv.Itoa(large), false},
		"of no such chunks":  {string(digest.FromBytes(mine)), "999999", false},
		"of chunks, not all": {string(digest.FromBytes(mine)), "", false},
	} {
		query := fmt.Sprintf("?chunks=%d&%s=%s&%s=%s", large, rebuild.DictionaryQuery, q.of, rebuild.DictionaryChunksQuery, q.chunks)
		resp, body := s.ask(t, "app", rebuild.ContentsPath, d, query, "Authorization", basic(password))
		var h zstd.Header
		if err := h.Decode(body); err != nil || resp.StatusCode != http.StatusOK {
			t.Fatalf("%s: %s, %v", name, resp.Status, err)
		}
		if with := h.DictionaryID != 0; with != q.with || with != (len(body) < int(c.Size)/20) {
			t.Errorf("%s: %d bytes for a chunk of %d, with a dictionary: %v", name, len(body), c.Size, with)
		}
		if !q.with && !bytes.Equal(unzstd(t, body), content[c.Offset:c.Offset+c.Size]) {
			t.Errorf("%s: another chunk", name)
		}
	}
}

package peers

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"net/http"
	"strings"
	"testing"

	"github.com/granary-oci/granary/proxy/gateway"
	"github.com/granary-oci/granary/proxy/rebuild"
)

// gzipLayer is a layer of a file of some bytes, as most programs make it.
func gzipLayer(t *testing.T, content []byte) []byte {
	t.Helper()
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	w := tar.NewWriter(z)
	if err := w.WriteHeader(&tar.Header{Name: "file", Mode: 0o644, Size: int64(len(content))}); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(content); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// TestAHubRemembersItsOffers: it makes them when layers have come, once, and says of others that there is none,
// also after it was started again; to children with a token, at its gateway.
func TestAHubRemembersItsOffers(t *testing.T) {
	t.Parallel()
	r := newRegistry(t)
	img := r.push("app", "v1", gzipLayer(t, random(3<<20, 111)), random(2<<20, 112))
	hub := alone(t, r, gates(t))
	if err := hub.pull(img, ""); err != nil {
		t.Fatal(err)
	}
	eventually(t, "layers are looked at", func() bool { o := hub.Status().Offers; return o.Made == 1 && o.None == 1 && o.Waiting == 0 })
	path := "/v2/app/" + rebuild.OfferPath + string(img.order[1])
	none := "/v2/app/" + rebuild.OfferPath + string(img.order[2])
	status, offer := hub.atGateway(t, path, gateway.TokenHeader, gatewayToken)
	if _, err := rebuild.DecodeOffer(offer); err != nil || status != http.StatusOK {
		t.Fatalf("%d: %v", status, err)
	}
	if status, _ := hub.atGateway(t, path); status != http.StatusNotFound {
		t.Errorf("without the token: %d", status)
	}
	cfg := hub.cfg
	hub.end(t)
	hub = run(t, cfg)
	contents := strings.Replace(path, rebuild.OfferPath, rebuild.ContentsPath, 1)
	for range 2 {
		if status, again := hub.atGateway(t, path, gateway.TokenHeader, gatewayToken); status != http.StatusOK || !bytes.Equal(again, offer) {
			t.Errorf("after a restart: %d", status)
		}
		if a := hub.get(none); a.status != http.StatusNotFound || !bytes.Contains(a.body, []byte("there is no offer")) {
			t.Errorf("after a restart, of what is no gzip: %d %s", a.status, a.body)
		}
		if a := hub.get(contents + "?chunks=1"); a.status != http.StatusOK || len(a.body) < 1<<10 {
			t.Errorf("contents after a restart: %d, %d bytes", a.status, len(a.body))
		}
	}
	if o := hub.Status().Offers; o.Made != 0 || o.None != 0 || o.Sent == 0 {
		t.Errorf("after a restart: %+v", o)
	}
}

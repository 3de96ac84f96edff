package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"time"
)

// authority signs the certificates of a cluster: what kubeadm would make.
type authority struct {
	dir  string // of all files
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newAuthority(dir string) (*authority, error) {
	a := &authority{dir: dir}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "kubernetes"},
		NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().Add(24 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	a.cert, a.key = template, key
	return a, errors.Join(os.MkdirAll(dir, 0o700), a.sign("ca", template, key))
}

// issue makes a certificate for a user, who may be a server too, at an address.
func (a *authority) issue(file, user, group string) error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	serial, err := rand.Int(rand.Reader, big.NewInt(1<<62))
	if err != nil {
		return err
	}
	return a.sign(file, &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{CommonName: user, Organization: []string{group}},
		NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().Add(24 * time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
		IPAddresses: []net.IP{net.ParseIP(outsideAddress)},
	}, key)
}

// sign writes FILE.crt and FILE.key.
func (a *authority) sign(file string, c *x509.Certificate, key *ecdsa.PrivateKey) error {
	der, err := x509.CreateCertificate(rand.Reader, c, a.cert, &key.PublicKey, a.key)
	if err != nil {
		return err
	}
	secret, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return err
	}
	return errors.Join(os.WriteFile(a.file(file+".crt"), pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o600),
		os.WriteFile(a.file(file+".key"), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: secret}), 0o600))
}

func (a *authority) file(name string) string { return filepath.Join(a.dir, name) }

// kubeconfig writes FILE.conf, by which a user finds the API server.
func (a *authority) kubeconfig(file, user, group string) (string, error) {
	text := fmt.Sprintf(`apiVersion: v1
kind: Config
clusters:
  - {name: c, cluster: {server: "https://%s:6443", certificate-authority: %q}}
users:
  - {name: u, user: {client-certificate: %q, client-key: %q}}
contexts:
  - {name: x, context: {cluster: c, user: u}}
current-context: x
`, outsideAddress, a.file("ca.crt"), a.file(file+".crt"), a.file(file+".key"))
	return a.file(file + ".conf"), errors.Join(a.issue(file, user, group), os.WriteFile(a.file(file+".conf"), []byte(text), 0o600))
}

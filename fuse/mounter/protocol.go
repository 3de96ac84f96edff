package mounter

import (
	"errors"
	"time"

	"github.com/opencontainers/go-digest"
)

// Layer says which layer of which image is to be mounted.
type Layer struct {
	Image    string          `json:"image"`            // as in docker.io/library/alpine:3; its repository is what counts
	Manifest digest.Digest   `json:"manifest"`         // of the image; it names the layer, and those below
	Digest   digest.Digest   `json:"layer"`            //
	Coming   []digest.Digest `json:"coming,omitempty"` // layers of the image that will be asked for next
}

// Node says where contents come from: what a client tells a server when it attaches.
type Node struct {
	URL             string `json:"url"`                       // of the node's registry face
	DockerConfig    string `json:"dockerConfig,omitempty"`    // file of the credentials to read with
	DefaultUpstream string `json:"defaultUpstream,omitempty"` // registry of images that name none
}

// Mount is a layer that is mounted.
type Mount struct {
	Dir string `json:"dir"`
	Layer
}

// The paths of requests. Each is a POST, of JSON.
const (
	attachPath  = "/v1/attach"  // takes a Node, and is answered for as long as both live
	mountPath   = "/v1/mount"   // takes a Mount
	mountedPath = "/v1/mounted" // takes a Mount without a layer; 404 says that it is not there
	unmountPath = "/v1/unmount" // takes a Mount without a layer
	listPath    = "/v1/list"    // gives all Mounts
)

// Limits of what is asked and answered.
const (
	maxRequest = 64 << 10 // bytes
	maxList    = 64 << 20 // bytes
	maxMounts  = 10000
	// askFor bounds requests that do not wait for a registry.
	askFor = 10 * time.Second
	// mountFor bounds the others: a layer that has no table of contents is read first.
	mountFor = time.Hour
)

// ErrNotMounted says that nothing is mounted at a directory, or nothing that answers.
var ErrNotMounted = errors.New("not mounted")

// socketName is the name of a server's socket in its directory.
const socketName = "socket"

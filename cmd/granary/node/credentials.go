package node

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	dockercreds "oras.land/oras-go/v2/registry/remote/credentials"

	"github.com/granary-oci/granary/proxy/ref"
)

// credentialsFor is how long an answer of Docker's configuration or of a
// credential helper, which is a program of its own, is used.
const credentialsFor = time.Minute

// credentials are the node's own, from Docker's configuration and the credential
// helpers that it names. They are kept in memory alone.
type credentials struct {
	policy map[string]string // off or share, by pattern of hosts
	store  dockercreds.Store // nil when nothing is shared

	mu    sync.Mutex
	known map[string]credential // by host
}

type credential struct {
	username, password string
	at                 time.Time
}

// newCredentials opens Docker's configuration if any of it is shared. One that
// is not there has no credentials.
func newCredentials(cfg DataConfig) (*credentials, error) {
	c := &credentials{policy: cfg.NodeCredentials, known: make(map[string]credential)}
	share := false
	for host, policy := range cfg.NodeCredentials {
		switch policy {
		case "off":
		case "share":
			share = true
		default:
			return nil, &SettingError{"node-credentials", fmt.Errorf("%s: %q is neither off nor share", host, policy)}
		}
	}
	if !share {
		return c, nil
	}
	var err error
	c.store, err = openDocker(cfg.DockerConfig)
	return c, err
}

// UserCredentials returns what the user of this process has for a registry in
// Docker's configuration, as upstream.Config.Credentials asks for it. A
// configuration that cannot be read has none.
func UserCredentials(file, host string) func(context.Context, string) (username, password string, err error) {
	store, err := openDocker(file)
	if err != nil {
		return nil
	}
	c := &credentials{store: store, known: make(map[string]credential)}
	return func(ctx context.Context, _ string) (username, password string, err error) { return c.get(ctx, host) }
}

// openDocker opens Docker's configuration. One without a name need not be there.
func openDocker(path string) (dockercreds.Store, error) {
	if path == "" {
		path = dockerConfig()
	} else if _, err := os.Stat(path); err != nil {
		return nil, &SettingError{"docker-config", err}
	}
	store, err := dockercreds.NewStore(path, dockercreds.StoreOptions{})
	if err != nil {
		return nil, &SettingError{"docker-config", fmt.Errorf("%s cannot be read as Docker's configuration", path)} // the reason may repeat it
	}
	return store, nil
}

// dockerConfig is where Docker has its configuration.
func dockerConfig() string {
	if dir := os.Getenv("DOCKER_CONFIG"); dir != "" {
		return filepath.Join(dir, "config.json")
	}
	home, _ := os.UserHomeDir() // without one there is nothing to be read
	return filepath.Join(home, ".docker", "config.json")
}

// shared reports whether the node's credentials for a registry are for everybody
// who asks the node. The policy of the longest pattern counts.
func (c *credentials) shared(host string) bool {
	best, policy := -1, ""
	for pattern, p := range c.policy {
		if len(pattern) > best && ref.Pattern(pattern).Match(host) {
			best, policy = len(pattern), p
		}
	}
	return policy == "share"
}

// get returns what the node has for a registry, or nothing.
func (c *credentials) get(ctx context.Context, host string) (username, password string, err error) {
	c.mu.Lock()
	known, ok := c.known[host]
	c.mu.Unlock()
	if ok && time.Since(known.at) < credentialsFor {
		return known.username, known.password, nil
	}
	got, err := c.store.Get(ctx, dockercreds.ServerAddressFromHostname(host))
	if err != nil {
		return "", "", fmt.Errorf("docker credentials: %w", err)
	}
	known = credential{got.Username, got.Password, time.Now()}
	if got.RefreshToken != "" {
		known.username, known.password = "<token>", got.RefreshToken // as Docker writes an identity token
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.known) >= maxUpstreams {
		clear(c.known)
	}
	c.known[host] = known
	return known.username, known.password, nil
}

package node

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"time"
)

const (
	readSecrets   = 2 * time.Second // between looks at the secret file
	maxSecretFile = 64 << 10        // bytes
	minSecret     = 16              // bytes
	maxSecrets    = 16
)

// readSecrets reads the cluster's secrets, one a line.
func (c *cluster) readSecrets() (secrets [][]byte, err error) {
	if c.cfg.ClusterSecretFile == "" {
		return nil, nil
	}
	info, err := os.Stat(c.cfg.ClusterSecretFile)
	if err != nil {
		return nil, err
	}
	p, err := os.ReadFile(c.cfg.ClusterSecretFile)
	if err != nil {
		return nil, err
	}
	if others := info.Mode().Perm() & 0o007; others != 0 && !bytes.Equal(p, c.secrets) {
		c.log.Warn("everybody on this machine can read the cluster's secret", "file", c.cfg.ClusterSecretFile)
	}
	if len(p) > maxSecretFile {
		return nil, errors.New("the file is too large")
	}
	if secrets, err = parseSecrets(p, minSecret, maxSecrets); err != nil {
		return nil, err
	}
	c.secrets = p
	return secrets, nil
}

// parseSecrets reads secrets, one a line, of at least so many bytes and at most so many. Lines
// that begin with # are none.
func parseSecrets(p []byte, shortest, most int) (secrets [][]byte, err error) {
	for line := range bytes.Lines(p) {
		line = bytes.TrimSpace(line)
		if len(line) == 0 || line[0] == '#' {
			continue
		}
		if len(line) < shortest {
			return nil, fmt.Errorf("a secret has at least %d characters", shortest)
		}
		secrets = append(secrets, bytes.Clone(line))
	}
	if len(secrets) == 0 || len(secrets) > most {
		return nil, fmt.Errorf("there are %d secrets in the file, which is none or too many", len(secrets))
	}
	return secrets, nil
}

// CheckSecrets reports what is wrong with the secrets that a node would read.
func (c ClusterConfig) CheckSecrets() error {
	_, err := (&cluster{cfg: c, log: slog.New(slog.DiscardHandler)}).readSecrets()
	return err
}

// watchSecrets reads the secret file again when it changes. One that cannot be used
// leaves the secrets as they are.
func (c *cluster) watchSecrets(ctx context.Context) {
	if c.cfg.ClusterSecretFile == "" {
		return
	}
	tick := time.NewTicker(readSecrets)
	defer tick.Stop()
	said := ""
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		before := c.secrets
		secrets, err := c.readSecrets()
		if err == nil && !bytes.Equal(before, c.secrets) {
			if err = c.gossip.SetSecrets(secrets); err == nil {
				c.log.Info("cluster secrets were read again", "secrets", len(secrets))
			}
		}
		now := ""
		if err != nil {
			now = err.Error()
		}
		if now != "" && now != said {
			c.log.Error("cluster secrets stay as they are", "error", err)
		}
		said = now
	}
}

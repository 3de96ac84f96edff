package node

import (
	"errors"
	"log/slog"
	"testing"
)

// TestASettingForSitesThatAreNotMetIsRefused: it would do nothing, and nobody would know.
func TestASettingForSitesThatAreNotMetIsRefused(t *testing.T) {
	const at = "/ip4/192.0.2.1/udp/5054/quic-v1"
	const site = at + "/p2p/12D3KooWEyoppNCUx8Yx66oV9fJnriXwCcXwDDUj2kj6vnc6iDEp"
	for name, cfg := range map[string]Config{
		"child":              {SiteConfig: SiteConfig{Child: []string{"12D3KooWEyoppNCUx8Yx66oV9fJnriXwCcXwDDUj2kj6vnc6iDEp"}}},
		"site-advertise":     {SiteConfig: SiteConfig{SiteAdvertise: []string{at}}},
		"site-join":          {SiteConfig: SiteConfig{SiteJoin: []string{site}}},
		"site-relay":         {SiteConfig: SiteConfig{SiteRelay: []string{site}}},
		"site-relay-service": {SiteConfig: SiteConfig{SiteRelayService: true}},
		"parent-limit":       {DataConfig: DataConfig{ParentLimit: []string{"20GiB/day"}}},
		"parents-only":       {DataConfig: DataConfig{ParentsOnly: true}},
	} {
		t.Run(name, func(t *testing.T) {
			cfg.DataDir = t.TempDir()
			n, err := New(cfg, slog.New(slog.DiscardHandler))
			if err == nil {
				_ = n.Close()
			}
			var bad *SettingError
			if !errors.As(err, &bad) || bad.Name != name {
				t.Errorf("the error is %v", err)
			}
		})
	}
}

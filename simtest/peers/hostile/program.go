package hostile

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/granary-oci/granary/p2p/libp2p"
)

// Main is a program that is a hostile member until SIGTERM, and returns its exit status. It prints the
// member's ID first.
//
//	hostile BEHAVIOUR IP SECRETS ZONE JOIN...
//
// It listens at IP where nodes do; SECRETS is a file as that of --cluster-secret-file.
func Main(args []string) int {
	if len(args) < 5 {
		fmt.Fprintln(os.Stderr, "usage: hostile BEHAVIOUR IP SECRETS ZONE JOIN...")
		return 2
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	if err := be(ctx, args[0], args[1], args[2], args[3], args[4:]); err != nil {
		fmt.Fprintln(os.Stderr, "hostile:", err)
		return 1
	}
	return 0
}

func be(ctx context.Context, behaviour, ip, secrets, zone string, join []string) error {
	how, ok := Named(behaviour)
	if !ok {
		return fmt.Errorf("no behaviour is called %q", behaviour)
	}
	text, err := os.ReadFile(secrets)
	if err != nil {
		return err
	}
	identity, err := libp2p.NewIdentity()
	if err != nil {
		return err
	}
	cfg := Config{Identity: identity, P2P: "/ip4/" + ip + "/tcp/5052", Gossip: ip + ":5053", Join: join, Zone: zone}
	for line := range strings.Lines(string(text)) {
		cfg.Secrets = append(cfg.Secrets, []byte(strings.TrimSpace(line)))
	}
	m, err := Start(cfg, how)
	if err != nil {
		return err
	}
	fmt.Println(m.ID())
	return m.Run(ctx)
}

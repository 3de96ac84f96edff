package node

import (
	"net"
	"net/http"
	"strconv"

	"github.com/granary-oci/granary/proxy"
	"github.com/granary-oci/granary/proxy/gateway"
)

// A chunk is in memory while it is sent: these bound how many are.
const (
	gatewayRequests  = 128
	gatewayPerClient = 96 // which may be a cache that asks for many
)

// GatewayConfig says whether chunks are served to IPFS's clients and to caches.
type GatewayConfig struct {
	GatewayListen    string `name:"gateway-listen" placeholder:"HOST:PORT" help:"Address at which anybody gets chunks of public repositories by their CID, as in /ipfs/CID?format=raw. Default: none."`
	GatewayTokenFile string `name:"gateway-token-file" placeholder:"FILE" help:"Tokens, one a line, of at least 16 characters: who sends one as Granary-Token is served the registry face there too, and chunks of what it may read. Read again when it changes."`
}

// gatewayLink is what has crossed the gateway's connections, of whoever asks there.
const gatewayLink = "gateway"

// listenGateway makes the gateway's listener, if there is to be one.
func (n *Node) listenGateway(c *certificate) (err error) {
	if n.cfg.GatewayTokenFile != "" {
		if n.tokens, err = newTokens(n.cfg.GatewayTokenFile, n.log); err != nil {
			return &SettingError{"gateway-token-file", err}
		}
	}
	if n.cfg.GatewayListen == "" {
		return nil
	}
	l, err := net.Listen("tcp", n.cfg.GatewayListen)
	if err != nil {
		return &SettingError{"gateway-listen", err}
	}
	n.closers = append(n.closers, ignoreClosed(l))
	n.gateway = c.listener(crossings{l, n, func(net.Conn) string { return gatewayLink }})
	if n.tokens != nil && c == nil && !loopbackAddress(n.cfg.GatewayListen) {
		n.log.Warn("the gateway can be reached from other machines without TLS: tokens that are sent there can be read on the way", "gateway", n.cfg.GatewayListen)
	}
	return nil
}

// openGateway makes what answers at the gateway's listener.
func (n *Node) openGateway() (err error) {
	if n.gateway == nil {
		return nil
	}
	n.chunks, err = gateway.New(gateway.Config{
		Chunks:      n.registry,
		Registry:    n.handler,
		DefaultHost: n.cfg.DefaultUpstream,
		Shown:       func(token string) bool { return n.tokens != nil && n.tokens.has(token) },
		Public:      n.registry.Public,
		Limit: func(h http.Handler) http.Handler {
			return proxy.Limit(h, proxy.Limits{Total: gatewayRequests, PerClient: gatewayPerClient, Queue: maxQueue, Wait: maxQueueing})
		},
		Answered: n.metrics.countGateway,
	})
	return err
}

func (m *metrics) countGateway(status int, sent int64, public bool) {
	m.gatewayRequests.WithLabelValues(strconv.Itoa(status)).Inc()
	m.gatewayBytes.WithLabelValues(readers(public)).Add(float64(sent))
}

// readers is for whom chunks are that leave the gateway; the metric's label.
func readers(public bool) string {
	if public {
		return "all"
	}
	return "token"
}

// GatewayURL returns where the gateway is reached, or "".
func (n *Node) GatewayURL() string {
	if n.gateway == nil {
		return ""
	}
	return n.scheme() + n.gateway.Addr().String()
}

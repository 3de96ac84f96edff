// Command coredns is the DNS server of Kubernetes clusters, with the plugins that kubeadm's
// configuration names for what is in a cluster, and no others.
//
// It is a module of its own: CoreDNS and the programs of Kubernetes want other versions of
// the same modules.
package main

import (
	"github.com/coredns/coredns/core/dnsserver"
	"github.com/coredns/coredns/coremain"
	_ "github.com/coredns/coredns/plugin/bind"
	_ "github.com/coredns/coredns/plugin/cache"
	_ "github.com/coredns/coredns/plugin/errors"
	_ "github.com/coredns/coredns/plugin/kubernetes"
	_ "github.com/coredns/coredns/plugin/loadbalance"
)

func main() {
	dnsserver.Directives = []string{"bind", "errors", "cache", "loadbalance", "kubernetes"}
	coremain.Run()
}

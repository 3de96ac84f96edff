package proxy

import "sync"

// hosts are some of which something is remembered, for as long as they are not too
// many. The zero value is ready to use.
type hosts struct {
	mu  sync.Mutex
	all map[string]bool
}

const maxHosts = 256

func (h *hosts) add(host string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.all == nil || len(h.all) >= maxHosts {
		h.all = make(map[string]bool)
	}
	h.all[host] = true
}

func (h *hosts) has(host string) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.all[host]
}

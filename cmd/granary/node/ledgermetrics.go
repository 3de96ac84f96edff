package node

import (
	"strings"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/granary-oci/granary/chunkstore/chunk"
)

// Of images metrics tell repositories, and the first 64 alone: a digest is a new one with each build, so that series of images would never
// end, while a repository's go on. What was saved is no counter, for it goes down while something is fetched ahead, and is less than nothing on
// a member that fetches for others: so sums over members are right.
var (
	linkBytes  = prometheus.NewDesc("granary_link_bytes_total", "Bytes that crossed each link to parents, children, registries and other zones.", []string{"link", "direction"}, nil)
	linkAsked  = prometheus.NewDesc("granary_link_asked_bytes_total", "Bytes given to clients and mounts that came over each link to parents and registries, or would have, were they not here.", []string{"link"}, nil)
	linkSaved  = prometheus.NewDesc("granary_link_saved_bytes", "By how much more bytes were asked of each link to parents and registries than came in.", []string{"link"}, nil)
	imageBytes = prometheus.NewDesc("granary_image_bytes_total", "Bytes of images by repository: given to clients and mounts (asked), and come from members, parents and registries.", []string{"repository", "kind"}, nil)
	imageSaved = prometheus.NewDesc("granary_image_saved_bytes", "By how much more bytes of images were asked for than came from parents and registries, by repository.", []string{"repository"}, nil)
)

// Describe implements [prometheus.Collector].
func (l *ledger) Describe(all chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{linkBytes, linkAsked, linkSaved, imageBytes, imageSaved} {
		all <- d
	}
}

// Collect implements [prometheus.Collector].
func (l *ledger) Collect(all chan<- prometheus.Metric) {
	l.mu.Lock()
	defer l.mu.Unlock()
	counter := func(d *prometheus.Desc, n int64, labels ...string) {
		all <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(n), labels...)
	}
	gauge := func(d *prometheus.Desc, n int64, label string) {
		all <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, float64(n), label)
	}
	for link, c := range l.totals {
		counter(linkBytes, c.In, link, "in")
		counter(linkBytes, c.Out, link, "out")
		if isAsked(link) {
			counter(linkAsked, c.Asked, link)
			gauge(linkSaved, c.Asked-c.In, link)
		}
	}
	for repository, t := range l.repositories {
		name := repository.String()
		if repository == otherRepositories {
			name = "other"
		}
		counter(imageBytes, t.asked, name, "asked")
		counter(imageBytes, t.members, name, "members")
		counter(imageBytes, t.parents, name, "parents")
		counter(imageBytes, t.registry, name, "registry")
		gauge(imageSaved, t.asked-t.moved(), name)
	}
}

// isAsked reports whether a link is one that images are asked of.
func isAsked(link string) bool {
	return strings.HasPrefix(link, registryLink) || strings.HasPrefix(link, chunk.OfParent("")) || link == foundLink
}

// Package peers holds tests of clusters of whole nodes, which run in the test's own
// process and meet over loopback, before a registry that does what the test says.
package peers

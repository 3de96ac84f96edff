// Package deploy holds tests of what is in the folder deploy: that the chart renders what
// Kubernetes reads, with every option; that the manifests are the rendered chart; that a
// rendered DaemonSet works, run container by container in network namespaces; and that the
// systemd units, the Compose file, the image and the documents are as they say.
//
// A pod is run by runc from its specification: arguments, environment, probes, user,
// capabilities, read-only root, memory limit, volumes and DNS are those that are rendered.
// Three things are not as in a cluster. A pod shares the network namespace of its node, so
// that its host port needs no port mapping. Directories of the node are below a directory of
// the test's. And the default seccomp profile, which the runtime would bring, is not applied.
package deploy

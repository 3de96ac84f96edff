// Package mounter keeps mounts of layers in a process of their own, for another process
// that comes and goes: containers that run from the mounts do not notice when a node is
// restarted, replaced or killed.
//
// A [Server] is that process. It listens on a Unix socket in a directory that only its
// user may look into, and does what it is asked: mount a layer at a directory, say
// whether it is mounted, unmount it. A [Client] is in the process that wants them. It
// starts the server if none answers, stays attached to it with one long request, and
// starts another one when that ends. So each knows at once when the other is gone:
//
//   - A client that comes back finds the mounts as it left them.
//   - A server whose client is gone, and which has no mounts, ends after a while.
//   - A server that is told to end unmounts. What is in use is taken out of the tree of
//     files, and served until nobody uses it any more; meanwhile there may be another server.
//   - A server that is killed leaves dead mounts, which the next one takes away before it
//     answers. What is to be there again, its client has to ask for.
//
// The requests are HTTP with JSON. Each may be understood by a server of another version:
// it outlives upgrades.
package mounter

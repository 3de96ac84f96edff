// Package e2e runs a node between real programs: registries behind it, and before
// it the container runtimes and tools that people pull with. Each test pulls a
// real image cold, warm and with the registry dead, and compares every digest.
//
// The programs are Debian's, and newer ones that install.sh builds; they are
// looked for in $GRANARY_TOOLS and $PATH. A program that is missing skips its
// test with that reason, and fails it where CI=true is set.
package e2e

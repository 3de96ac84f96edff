package main

// An image that has nothing but this program has no certificates of authorities: then,
// and only then, those that Mozilla trusts are used, as of the version in go.mod.
import _ "golang.org/x/crypto/x509roots/fallback"

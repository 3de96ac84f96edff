package main

import (
	"errors"
	"fmt"

	"github.com/granary-oci/granary/proxy/upstream"
)

// explained adds to a node's refusal the reason that it gives.
func explained(err error) error {
	var said *upstream.StatusError
	if !errors.As(err, &said) || said.Message() == "" {
		return err
	}
	return fmt.Errorf("%w: %s", err, printable(said.Message()))
}

package main

import (
	"fmt"
	"net"
	"os"
)

// notifyReady tells the service manager that the node can be reached, if it waits for that
// (sd_notify(3)). Programs that the node starts have nothing to tell it.
func notifyReady() error {
	const variable = "NOTIFY_SOCKET"
	name := os.Getenv(variable)
	if name == "" {
		return nil
	}
	if err := os.Unsetenv(variable); err != nil {
		return err
	}
	conn, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: name, Net: "unixgram"})
	if err == nil {
		defer conn.Close()
		_, err = conn.Write([]byte("READY=1"))
	}
	if err != nil {
		return fmt.Errorf("%s: %w", variable, err)
	}
	return nil
}

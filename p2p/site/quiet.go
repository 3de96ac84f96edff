package site

import (
	"log/slog"

	"github.com/libp2p/go-libp2p/gologshim"
)

// What libp2p's parts log beside the errors that they return is for who writes them: that a listener
// which is closed has been closed, and the like.
func init() { gologshim.SetDefaultHandler(slog.DiscardHandler) }

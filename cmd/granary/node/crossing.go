package node

import "net"

// crossings has a listener's connections counted, each for the link that it is of.
type crossings struct {
	net.Listener
	node *Node
	link func(net.Conn) string
}

// Accept implements [net.Listener].
func (l crossings) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return crossing{c, l.node.ledger, l.link(c)}, nil
}

type crossing struct {
	net.Conn
	ledger *ledger
	link   string
}

func (c crossing) Read(p []byte) (int, error) {
	k, err := c.Conn.Read(p)
	c.ledger.add(c.link, int64(k), 0)
	return k, err
}

func (c crossing) Write(p []byte) (int, error) {
	k, err := c.Conn.Write(p)
	c.ledger.add(c.link, 0, int64(k))
	return k, err
}

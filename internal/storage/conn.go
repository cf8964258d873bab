package storage

import (
	"net"
	"time"
)

// LimitStalls returns conn as a connection that is given up when nothing has moved on it for limit. Writing also moves
// the deadline for reading, because an HTTP client waits for the answer all the while it sends a body.
func LimitStalls(conn net.Conn, limit time.Duration) net.Conn { return stallConn{conn, limit} }

type stallConn struct {
	net.Conn
	limit time.Duration
}

func (c stallConn) Read(p []byte) (int, error) {
	if err := c.SetReadDeadline(time.Now().Add(c.limit)); err != nil {
		return 0, err
	}
	return c.Conn.Read(p)
}

func (c stallConn) Write(p []byte) (int, error) {
	if err := c.SetDeadline(time.Now().Add(c.limit)); err != nil {
		return 0, err
	}
	return c.Conn.Write(p)
}

// Package daemon answers PostgreSQL's archive_command and restore_command over a Unix socket, in the language of WAL-G's daemon, from a process that stays:
// sessions with the storage are open already, and segments that wait are archived before they are asked for.
//
// A [Handler] does the work; [Serve] speaks with clients; [Listen] and [Inherited] make the socket; a [Notifier] tells systemd.
//
// Promises: a client gets exactly one answer to each message, and [wire.Absent] only for [ErrAbsent]; nothing that a client sends or leaves undone keeps the
// daemon from serving others; what a client asked for that is gone by now is broken off before another asks for the same.
package daemon

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"sync"
	"time"

	"gitlab.com/walden-pg/walden/internal/daemon/wire"
)

// ErrAbsent is what a Handler returns for a file of which the storage has said that the archive does not hold it.
var ErrAbsent = errors.New("not in the archive")

// Handler does what clients ask for. Its methods are called by several goroutines, and tell their own errors to the log.
type Handler interface {
	// Check is called with what a client tells of itself before it asks for anything. An error refuses the client.
	Check(hello []byte) error
	// Push archives the file of that name in pg_wal. The name is any that a client may send.
	Push(ctx context.Context, name string) error
	// Fetch fetches a file of the archive to dest; name and dest are any that a client may send. ctx ends when the client is gone.
	Fetch(ctx context.Context, name, dest string) error
}

// Options bound what clients can do to the daemon. None may be zero.
type Options struct {
	Connections int           // at the same time; further ones wait
	Idle        time.Duration // until a message begins
	Message     time.Duration // for the rest of a message, and for an answer to be taken
	Drain       time.Duration // for what is under way when the daemon is to end
	Log         func() *slog.Logger
}

// Serve answers clients until ctx ends. Then it takes no more messages, waits for what is under way, for a time, and returns nil. An error is one
// of the listener, which it closes in any case.
func Serve(ctx context.Context, listener *net.UnixListener, h Handler, o Options) error {
	s := &server{handler: h, o: o, conns: map[*net.UnixConn]bool{}}
	work, abort := context.WithCancel(context.WithoutCancel(ctx))
	defer abort()
	stop := context.AfterFunc(ctx, func() {
		_ = listener.Close() // ends Accept
		s.drain()
	})
	defer stop()
	err := s.accept(ctx, work, listener)
	s.drain()
	late := time.AfterFunc(o.Drain, abort)
	defer late.Stop()
	s.serving.Wait()
	return err
}

type server struct {
	handler Handler
	o       Options
	serving sync.WaitGroup

	mu       sync.Mutex
	conns    map[*net.UnixConn]bool
	draining bool
}

// acceptPause is waited when no connection can be taken, for want of file descriptors for example.
const acceptPause = 100 * time.Millisecond

func (s *server) accept(ctx, work context.Context, listener *net.UnixListener) error {
	defer func() { _ = listener.Close() }() // closed already, unless it failed
	slots := make(chan struct{}, s.o.Connections)
	for {
		select {
		case slots <- struct{}{}:
		case <-ctx.Done():
			return nil
		}
		conn, err := listener.AcceptUnix()
		switch {
		case err == nil:
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, net.ErrClosed):
			return fmt.Errorf("cannot take connections: %w", err)
		default:
			<-slots
			s.o.Log().Warn("a connection could not be taken", "error", err)
			select {
			case <-ctx.Done():
			case <-time.After(acceptPause):
			}
			continue
		}
		s.serving.Go(func() {
			defer func() { <-slots }()
			s.serve(work, conn)
		})
	}
}

// drain ends the waiting for messages.
func (s *server) drain() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.draining = true
	for conn := range s.conns {
		_ = conn.SetReadDeadline(time.Now()) // a connection that is closed needs none
	}
}

// expect bounds the time for what comes next from a client; false if nothing more is to come.
func (s *server) expect(conn *net.UnixConn, limit time.Duration) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return !s.draining && conn.SetReadDeadline(time.Now().Add(limit)) == nil
}

// serve answers one client: checks, as many as it likes, and one request.
func (s *server) serve(ctx context.Context, conn *net.UnixConn) {
	s.mu.Lock()
	s.conns[conn] = true
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		delete(s.conns, conn)
		s.mu.Unlock()
		_ = conn.Close() // the answer is sent, or nobody waits for it
	}()
	for {
		kind, body, err := s.read(conn)
		answer, more := byte(wire.Failed), false
		if err != nil {
			if !errors.Is(err, io.EOF) {
				s.o.Log().Debug("a client of the daemon sent no message", "error", err)
			}
		} else {
			answer, more = s.answer(ctx, conn, kind, body)
		}
		if conn.SetWriteDeadline(time.Now().Add(s.o.Message)) != nil {
			return
		}
		if _, err := conn.Write([]byte{answer}); err != nil || !more {
			return
		}
	}
}

func (s *server) read(conn *net.UnixConn) (kind byte, body []byte, err error) {
	if !s.expect(conn, s.o.Idle) {
		return 0, nil, io.EOF
	}
	var header [wire.HeaderSize]byte
	if _, err := io.ReadFull(conn, header[:1]); err != nil {
		return 0, nil, err
	}
	if !s.expect(conn, s.o.Message) {
		return 0, nil, io.EOF
	}
	if _, err := io.ReadFull(conn, header[1:]); err != nil {
		return 0, nil, err
	}
	kind, n, ok := wire.ParseHeader(header)
	if !ok {
		return 0, nil, fmt.Errorf("%#x is no beginning of a message", header)
	}
	body = make([]byte, n)
	_, err = io.ReadFull(conn, body)
	return kind, body, err
}

// answer does what a message asks for.
func (s *server) answer(ctx context.Context, conn *net.UnixConn, kind byte, body []byte) (answer byte, more bool) {
	var err error
	switch kind {
	case wire.Check:
		err, more = s.handler.Check(body), true
	case wire.Push:
		err = s.handler.Push(ctx, string(body))
	case wire.Fetch:
		arguments, ok := wire.ParseArguments(body)
		if !ok || len(arguments) != wire.FetchArguments {
			s.o.Log().Warn("a client of the daemon sent a request to fetch that cannot be understood")
			return wire.Failed, false
		}
		err = s.fetch(ctx, conn, arguments[0], arguments[1])
	default:
		s.o.Log().Warn("a client of the daemon sent a message that cannot be understood", "type", kind)
		return wire.Failed, false
	}
	switch {
	case err == nil:
		return wire.Done, more
	case kind == wire.Fetch && errors.Is(err, ErrAbsent):
		return wire.Absent, false
	}
	return wire.Failed, false
}

// errClientGone ends a fetch that nobody waits for.
var errClientGone = errors.New("the client is gone")

// fetch lets a fetch end with its client: what comes later would be put where the next one is fetched to.
func (s *server) fetch(ctx context.Context, conn *net.UnixConn, name, dest string) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var watching sync.WaitGroup
	defer watching.Wait()
	if err := conn.SetReadDeadline(time.Time{}); err != nil {
		return err
	}
	watching.Go(func() {
		_, err := conn.Read(make([]byte, 1)) // a client that has asked says nothing more
		if errors.Is(err, io.EOF) || errors.Is(err, net.ErrClosed) {
			cancel(errClientGone)
		}
	})
	defer func() { _ = conn.SetReadDeadline(time.Now()) }() // ends the watching
	return s.handler.Fetch(ctx, name, dest)
}

package node

import (
	"context"
	"errors"
	"strings"
	"sync"

	"google.golang.org/grpc"

	"github.com/safeconduct/safeconduct/services/node/metrics"
)

// note is what a handler says of its call, beyond its error, to whoever counts and records it.
type note struct {
	mu      sync.Mutex
	refused error
	session [16]byte
}

type noteKey struct{}

// noteOf is the note of the call that ctx belongs to; outside of a call, one that nobody reads.
func noteOf(ctx context.Context) *note {
	if n, ok := ctx.Value(noteKey{}).(*note); ok {
		return n
	}
	return new(note)
}

// refuse says that the call was refused although it is answered: inside the answer.
func (n *note) refuse(err error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.refused = err
}

// made names the session that the call made.
func (n *note) made(id [16]byte) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.session = id
}

func (n *note) read() (session [16]byte, refused error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.session, n.refused
}

// served is one call that has ended.
type served struct {
	ctx context.Context
	// method is "Service/Method".
	method string
	// request is the first message, or nil if none came.
	request any
	err     error
	session [16]byte
}

// interceptors check each call, turn its error into a status at the edge of the server, and count and record it.
func (n *node) interceptors(side metrics.Side, convert func(error) error, check func(context.Context, string) error) []grpc.ServerOption {
	unary := func(ctx context.Context, req any, info *grpc.UnaryServerInfo, h grpc.UnaryHandler) (any, error) {
		noted := new(note)
		ctx = context.WithValue(ctx, noteKey{}, noted)
		err := check(ctx, info.FullMethod)
		var resp any
		if err == nil {
			resp, err = h(ctx, req)
		}
		n.served(side, noted, served{ctx: ctx, method: info.FullMethod, request: req, err: err})
		return resp, convert(err)
	}
	stream := func(srv any, ss grpc.ServerStream, info *grpc.StreamServerInfo, h grpc.StreamHandler) error {
		noted := new(note)
		s := &firstMessage{ServerStream: ss, ctx: context.WithValue(ss.Context(), noteKey{}, noted)}
		err := check(s.ctx, info.FullMethod)
		if err == nil {
			err = h(srv, s)
		}
		n.served(side, noted, served{ctx: s.ctx, method: info.FullMethod, request: s.message(), err: err})
		return convert(err)
	}
	return []grpc.ServerOption{grpc.ChainUnaryInterceptor(unary), grpc.ChainStreamInterceptor(stream)}
}

func (n *node) served(side metrics.Side, noted *note, call served) {
	session, refused := noted.read()
	if call.err == nil {
		call.err = refused
	}
	n.metrics.Call(side, call.method, call.err)
	call.method, call.session = strings.TrimPrefix(call.method, "/safeconduct.v1."), session
	n.recordCall(side, &call)
}

// firstMessage remembers the first message of a stream: what the request is about.
type firstMessage struct {
	grpc.ServerStream
	ctx context.Context

	mu    sync.Mutex
	first any
}

// Context implements grpc.ServerStream.
func (s *firstMessage) Context() context.Context { return s.ctx }

// RecvMsg implements grpc.ServerStream.
func (s *firstMessage) RecvMsg(m any) error {
	err := s.ServerStream.RecvMsg(m)
	if err == nil {
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.first == nil {
			s.first = m
		}
	}
	return err
}

func (s *firstMessage) message() any {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.first
}

func canceled(err error) bool { return errors.Is(err, context.Canceled) }

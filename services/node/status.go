package node

import (
	"context"

	"google.golang.org/grpc"

	"github.com/safeconduct/safeconduct/attestation/refusal"
	"github.com/safeconduct/safeconduct/services/rpcerror"
)

// FromStatus is rpcerror.Refusal.
func FromStatus(err error) *refusal.Refusal { return rpcerror.Refusal(err) }

// interceptors turn errors into statuses at the edge of a server and count them.
func interceptors(convert func(error) error, observe func(method string, err error), check func(context.Context, string) error) []grpc.ServerOption {
	unary := func(ctx context.Context, req any, info *grpc.UnaryServerInfo, h grpc.UnaryHandler) (any, error) {
		err := check(ctx, info.FullMethod)
		var resp any
		if err == nil {
			resp, err = h(ctx, req)
		}
		observe(info.FullMethod, err)
		return resp, convert(err)
	}
	stream := func(srv any, ss grpc.ServerStream, info *grpc.StreamServerInfo, h grpc.StreamHandler) error {
		err := check(ss.Context(), info.FullMethod)
		if err == nil {
			err = h(srv, ss)
		}
		observe(info.FullMethod, err)
		return convert(err)
	}
	return []grpc.ServerOption{grpc.ChainUnaryInterceptor(unary), grpc.ChainStreamInterceptor(stream)}
}

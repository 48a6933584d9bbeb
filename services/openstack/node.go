package openstack

import (
	"context"
	"fmt"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials/insecure"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"

	v1 "github.com/safeconduct/safeconduct/api/safeconduct/v1"
	"github.com/safeconduct/safeconduct/attestation/policy"
	"github.com/safeconduct/safeconduct/attestation/refusal"
	"github.com/safeconduct/safeconduct/services/rpcerror"
)

// serviceReady is what the node service calls its readiness in grpc.health.v1.
const serviceReady = "safeconduct.ready"

// maxMessage bounds one message of the node service, in bytes: a policy of 8 MiB and its envelope.
const maxMessage = 9 << 20

// Node is the node service of this host, over its unix socket.
type Node struct {
	conn       *grpc.ClientConn
	health     healthpb.HealthClient
	admin      v1.AdminServiceClient
	integrity  v1.IntegrityServiceClient
	attest     v1.AttestationServiceClient
	migrations v1.MigrationServiceClient
}

// NewNode prepares the connection to a gRPC target such as unix:///run/safeconduct/node.sock; nothing is dialled before the first call.
func NewNode(target string) (*Node, error) {
	conn, err := grpc.NewClient(target,
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxMessage)),
		// The socket's permissions and the caller's uid, which the node reads from the kernel, decide who may call; there is no network.
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: 50 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: 2 * time.Second},
			MinConnectTimeout: time.Second,
		}))
	if err != nil {
		return nil, fmt.Errorf("node service at %s: %w", target, err)
	}
	return &Node{
		conn: conn, health: healthpb.NewHealthClient(conn), admin: v1.NewAdminServiceClient(conn), integrity: v1.NewIntegrityServiceClient(conn),
		attest: v1.NewAttestationServiceClient(conn), migrations: v1.NewMigrationServiceClient(conn),
	}, nil
}

// Close closes the connection.
func (n *Node) Close() error { return n.conn.Close() }

// Standing is what the node service says of itself.
type Standing struct {
	Mode v1.Mode
	Host string
	// Ready is its readiness probe: it has accepted itself lately, does not drain, and can keep its records.
	Ready bool
	// Accepted says that it accepts itself by its own policy, by a quote made just now; Why says why not.
	Accepted bool
	Why      *refusal.Refusal
	Draining bool
	// NoTunnel says why the policy does not let the tunnel have keys; empty if it does.
	NoTunnel string
}

// Standing asks the node service. A node that is not ready is not asked for a quote.
func (n *Node) Standing(ctx context.Context) (Standing, error) {
	probe, err := n.health.Check(ctx, &healthpb.HealthCheckRequest{Service: serviceReady})
	if err != nil {
		return Standing{}, nodeError(err)
	}
	if probe.GetStatus() != healthpb.HealthCheckResponse_SERVING {
		return Standing{}, nil
	}
	status, err := n.admin.GetStatus(ctx, &v1.GetStatusRequest{})
	if err != nil {
		return Standing{}, nodeError(err)
	}
	s := Standing{Mode: status.GetMode(), Host: status.GetHost(), Ready: true, Accepted: status.GetAcceptedByOwnPolicy(), Draining: status.GetDraining()}
	if !s.Accepted {
		if s.Why = refusal.FromProto(status.GetOwnRefusal()); s.Why == nil {
			s.Why = refusal.New(v1.Reason_REASON_UNSPECIFIED, "it does not say why")
		}
		return s, nil
	}
	s.NoTunnel = n.whyNoTunnel(ctx)
	return s, nil
}

// whyNoTunnel says why the tunnel has no keys of this node; "" if it may have them.
func (n *Node) whyNoTunnel(ctx context.Context) string {
	raw, err := n.integrity.GetPolicy(ctx, &v1.GetPolicyRequest{})
	if err != nil {
		return nodeError(err).Error()
	}
	inForce, err := policy.Parse(raw.GetPolicy())
	switch {
	case err != nil:
		return "the policy in force is not one that this release of the agent reads: " + err.Error()
	case !inForce.Exports(policy.ExportTunnel):
		return `the policy's exported_keys do not name "tunnel"`
	}
	return ""
}

// Preflight has the node service run a whole handshake with a peer.
func (n *Node) Preflight(ctx context.Context, peer string) (*v1.PreflightResponse, error) {
	out, err := n.attest.Preflight(ctx, &v1.PreflightRequest{PeerHost: peer, Role: v1.Role_ROLE_SOURCE})
	return out, nodeError(err)
}

// Sessions returns the open sessions, and the VMs that have a helper attached.
func (n *Node) Sessions(ctx context.Context) ([]*v1.Session, error) {
	out, err := n.migrations.List(ctx, &v1.ListRequest{})
	return out.GetSessions(), nodeError(err)
}

// Attached returns the VMs that have a helper attached. It makes the node service attest itself.
func (n *Node) Attached(ctx context.Context) ([]string, error) {
	out, err := n.admin.GetStatus(ctx, &v1.GetStatusRequest{})
	return out.GetAttachedInstances(), nodeError(err)
}

// Session returns one session as it is now.
func (n *Node) Session(ctx context.Context, id []byte) (*v1.Session, error) {
	out, err := n.migrations.Get(ctx, &v1.GetRequest{SessionId: id})
	return out.GetSession(), nodeError(err)
}

// Abort ends a session on both nodes.
func (n *Node) Abort(ctx context.Context, id []byte, why string) error {
	_, err := n.migrations.Abort(ctx, &v1.AbortRequest{SessionId: id, Reason: why})
	return nodeError(err)
}

// NodeError is a call to the node service that failed.
type NodeError struct{ Refusal *refusal.Refusal }

func (e *NodeError) Error() string { return "node service: " + e.Refusal.Error() }

// Unwrap returns the refusal.
func (e *NodeError) Unwrap() error { return e.Refusal }

func nodeError(err error) error {
	if err == nil {
		return nil
	}
	return &NodeError{rpcerror.Refusal(err)}
}

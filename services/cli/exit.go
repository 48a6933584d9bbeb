package cli

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"syscall"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	v1 "github.com/safeconduct/safeconduct/api/safeconduct/v1"
	"github.com/safeconduct/safeconduct/attestation/refusal"
	"github.com/safeconduct/safeconduct/services/rpcerror"
)

// Exit codes, the same for every command; docs/cli.md lists them.
const (
	// ExitOK: done, and where there is a verdict, accepted.
	ExitOK = 0
	// ExitRefused: refused, by a policy or by the node service, with a typed reason. Genuine evidence that no policy accepts ends here.
	ExitRefused = 1
	// ExitNotAuthentic: the evidence, or what it is to be judged by, does not verify. Nothing it says is known to be true.
	ExitNotAuthentic = 2
	// ExitUsage: the command line, a file or a configuration is at fault; nothing was judged.
	ExitUsage = 3
	// ExitUnreachable: the node service, or the peer, did not answer.
	ExitUnreachable = 4
	// ExitInternal: a service failed inside; its log has the detail.
	ExitInternal = 5
)

// ended is the error of a command that has printed its result: only the code is left to tell.
type ended struct{ code int }

func (e ended) Error() string { return fmt.Sprintf("exit %d", e.code) }

// failure is an error with what to do about it.
type failure struct {
	err  error
	do   string
	code int
}

func (f *failure) Error() string { return f.err.Error() }
func (f *failure) Unwrap() error { return f.err }

// advise adds what to do about an error of usage or input.
func advise(err error, do string) error {
	if err == nil {
		return nil
	}
	return &failure{err: err, do: do, code: ExitUsage}
}

// exitOf is the exit code of a refusal. The reasons of what does not verify, of the request and of services that fail have codes of their
// own; everything else is a refusal.
func exitOf(reason v1.Reason) int {
	switch reason {
	case v1.Reason_REASON_QUOTE_INVALID, v1.Reason_REASON_CERTIFICATE_REVOKED:
		return ExitNotAuthentic
	case v1.Reason_REASON_INVALID_REQUEST:
		return ExitUsage
	case v1.Reason_REASON_PEER_UNAVAILABLE:
		return ExitUnreachable
	case v1.Reason_REASON_UNSPECIFIED, v1.Reason_REASON_INTERNAL, v1.Reason_REASON_MEASUREMENT_FAILED, v1.Reason_REASON_QUOTE_FAILED:
		return ExitInternal
	default:
		return ExitRefused
	}
}

// problem is an error as it is printed.
type problem struct {
	Code     int    `json:"exit_code"`
	Reason   string `json:"reason,omitempty"`
	Message  string `json:"message"`
	Item     string `json:"item,omitempty"`
	Found    string `json:"found,omitempty"`
	Expected string `json:"expected,omitempty"`
	Do       string `json:"do,omitempty"`
}

// problemOf says what happened, what to do and how to exit.
func problemOf(err error) problem {
	if r, ok := rpcerror.Typed(err); ok {
		return problem{
			Code: exitOf(r.Reason), Reason: refusal.Name(r.Reason), Message: orElse(r.Message, "refused"), Item: r.Item, Found: r.Found,
			Expected: r.Expected, Do: r.RemedyText(),
		}
	}
	if f, ok := errors.AsType[*failure](err); ok {
		return problem{Code: f.code, Message: err.Error(), Do: f.do}
	}
	if st, ok := status.FromError(err); ok && err != nil {
		return callProblem(st)
	}
	return problem{Code: ExitUsage, Message: err.Error(), Do: "see safeconduct help"}
}

// callProblem is a failed call without a typed reason: it did not reach the service, or the service does not know it.
func callProblem(st *status.Status) problem {
	p := problem{Code: ExitInternal, Message: fmt.Sprintf("the node service: %s: %s", st.Code(), st.Message()),
		Do: "read safeconductd's log on this host"}
	switch st.Code() {
	case codes.Unavailable:
		p.Code, p.Message, p.Do = ExitUnreachable, "the node service went away: "+st.Message(), "check that safeconductd still runs on this host"
	case codes.DeadlineExceeded:
		p.Code, p.Message, p.Do = ExitUnreachable, "the node service did not answer in time",
			"try again with a longer --timeout; read safeconductd's log if that does not help"
	case codes.Canceled:
		p.Message, p.Do = "interrupted", "nothing; what the node service had begun is its own to end"
	case codes.Unimplemented:
		p.Message, p.Do = "this node service does not know the call: "+st.Message(), "bring safeconductd and safeconduct to the same release"
	default:
	}
	return p
}

// dialProblem explains why the socket of the node service could not be opened.
func dialProblem(socket string, cause error) error {
	f := &failure{err: fmt.Errorf("no node service answers on %s: %w", socket, cause), code: ExitUnreachable,
		do: "check that safeconductd runs on this host"}
	switch {
	case errors.Is(cause, fs.ErrPermission):
		f.do = "run this as root, or as a user that local.socket_mode and local.callers of safeconductd's configuration let in"
	case errors.Is(cause, fs.ErrNotExist):
		f.do = "check that safeconductd runs on this host, and that --socket (or SAFECONDUCT_SOCKET) is its local.socket"
	case errors.Is(cause, syscall.ECONNREFUSED), errors.Is(cause, net.ErrClosed):
		f.do = "start safeconductd: its socket is left from a run that has ended"
	}
	return f
}

func orElse(s, other string) string {
	if s == "" {
		return other
	}
	return s
}

// Package local is the unix socket on which a node service listens to callers of its own host: who is calling, as the kernel says
// (SO_PEERCRED), and whether that uid may make that call.
//
// In an enclave the kernel's word is the host's word. The allow-list keeps honest processes apart; it decides no secrecy.
package local

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/peer"
)

// Caller is who is at the other end of the socket.
type Caller struct {
	credentials.CommonAuthInfo
	UID, GID uint32
	// PID at the time of connecting.
	PID int32
	// Process is the name of that process then, as far as it was to be had.
	Process string
	// Connection tells the connection from any other, as long as it lives.
	Connection *Connection
}

// Connection stands for one connection; pointers to it are compared.
type Connection struct{ _ byte }

// AuthType implements credentials.AuthInfo.
func (Caller) AuthType() string { return "unix-peercred" }

// From returns the caller of a call that came through Credentials.
func From(ctx context.Context) (Caller, bool) {
	p, ok := peer.FromContext(ctx)
	if !ok {
		return Caller{}, false
	}
	c, ok := p.AuthInfo.(Caller)
	return c, ok
}

// Credentials are server-side gRPC credentials that read the caller's identity from a unix socket. They refuse any other kind of
// connection.
type Credentials struct {
	// Proc is where the host's /proc is seen from here; empty: processes are not looked up.
	Proc string
}

var errServerOnly = errors.New("peer credentials are for servers on unix sockets")

// ServerHandshake implements credentials.TransportCredentials.
func (c Credentials) ServerHandshake(conn net.Conn) (net.Conn, credentials.AuthInfo, error) {
	uc, ok := conn.(*net.UnixConn)
	if !ok {
		return nil, nil, fmt.Errorf("%w, not for %T", errServerOnly, conn)
	}
	raw, err := uc.SyscallConn()
	if err != nil {
		return nil, nil, fmt.Errorf("peer credentials: %w", err)
	}
	var cred *unix.Ucred
	var credErr error
	if err := raw.Control(func(fd uintptr) {
		cred, credErr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	}); err != nil {
		return nil, nil, fmt.Errorf("peer credentials: %w", err)
	}
	if credErr != nil {
		return nil, nil, fmt.Errorf("peer credentials: %w", credErr)
	}
	// Integrity and privacy on a unix socket are the kernel's, as gRPC's own local credentials hold.
	info := credentials.CommonAuthInfo{SecurityLevel: credentials.PrivacyAndIntegrity}
	return conn, Caller{CommonAuthInfo: info, UID: cred.Uid, GID: cred.Gid, PID: cred.Pid, Process: c.process(cred.Pid), Connection: new(Connection)}, nil
}

// maxComm bounds the name of a process; the kernel's own bound is 15 bytes.
const maxComm = 64

// process is the name of a process, or empty. It is the host's word, and the process's own: any process can call itself nova-compute.
func (c Credentials) process(pid int32) string {
	if c.Proc == "" || pid <= 0 {
		return ""
	}
	f, err := os.Open(filepath.Join(c.Proc, strconv.Itoa(int(pid)), "comm"))
	if err != nil {
		return ""
	}
	raw, err := io.ReadAll(io.LimitReader(f, maxComm))
	if errors.Join(err, f.Close()) != nil {
		return ""
	}
	return strings.TrimSuffix(strings.ToValidUTF8(string(raw), "?"), "\n")
}

// ClientHandshake implements credentials.TransportCredentials; it always fails.
func (Credentials) ClientHandshake(context.Context, string, net.Conn) (net.Conn, credentials.AuthInfo, error) {
	return nil, nil, errServerOnly
}

// Info implements credentials.TransportCredentials.
func (Credentials) Info() credentials.ProtocolInfo {
	return credentials.ProtocolInfo{SecurityProtocol: "unix-peercred"}
}

// Clone implements credentials.TransportCredentials.
func (c Credentials) Clone() credentials.TransportCredentials { return c }

// OverrideServerName implements credentials.TransportCredentials.
func (Credentials) OverrideServerName(string) error { return errServerOnly }

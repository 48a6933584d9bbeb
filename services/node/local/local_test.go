package local

import (
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/peer"

	v1 "github.com/safeconduct/safeconduct/api/safeconduct/v1"
	"github.com/safeconduct/safeconduct/attestation/refusal"
)

func services() map[string]grpc.ServiceInfo {
	s := grpc.NewServer()
	v1.RegisterMigrationServiceServer(s, v1.UnimplementedMigrationServiceServer{})
	v1.RegisterCryptoServiceServer(s, v1.UnimplementedCryptoServiceServer{})
	info := s.GetServiceInfo()
	info["grpc.health.v1.Health"] = grpc.ServiceInfo{Methods: []grpc.MethodInfo{{Name: "Check"}}}
	return info
}

func as(uid uint32) context.Context {
	return peer.NewContext(context.Background(), &peer.Peer{AuthInfo: Caller{UID: uid, PID: 7}})
}

func TestOnlyListedUidsMayCall(t *testing.T) {
	list, err := NewAllowList(services(), map[string][]uint32{
		"MigrationService":     {64060},
		"MigrationService/Arm": {64061},
		"CryptoService":        {64055},
	}, 0)
	if err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		name, method string
		uid          uint32
		allowed      bool
	}{
		{"root may always", "/safeconduct.v1.MigrationService/Arm", 0, true},
		{"nova may call its service", "/safeconduct.v1.MigrationService/Establish", 64060, true},
		{"a method's entry replaces its service's", "/safeconduct.v1.MigrationService/Arm", 64060, false},
		{"and lets its own uid in", "/safeconduct.v1.MigrationService/Arm", 64061, true},
		{"nova may not call what the helper may", "/safeconduct.v1.CryptoService/ProtectState", 64060, false},
		{"a stranger may not call anything", "/safeconduct.v1.CryptoService/ProtectState", 1000, false},
		{"a method that is not registered is refused", "/safeconduct.v1.CryptoService/Nothing", 0, false},
		{"health is open", "/grpc.health.v1.Health/Check", 1000, true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			err := list.Check(as(tc.uid), tc.method)
			if (err == nil) != tc.allowed {
				t.Fatalf("got %v", err)
			}
			if err != nil && !errors.Is(err, refusal.Because(v1.Reason_REASON_CALLER_NOT_ALLOWED)) {
				t.Errorf("not typed: %v", err)
			}
		})
	}
	if err := list.Check(context.Background(), "/safeconduct.v1.MigrationService/Arm"); err == nil {
		t.Error("a caller without credentials is let in")
	}
	if err := new(AllowList).Check(as(0), "/safeconduct.v1.MigrationService/Arm"); err == nil {
		t.Error("the zero list lets somebody in")
	}
}

func TestAMisspeltNameIsRefused(t *testing.T) {
	_, err := NewAllowList(services(), map[string][]uint32{"MigrationServce": {1}})
	if err == nil || !strings.Contains(err.Error(), `"MigrationServce"`) {
		t.Errorf("got %v", err)
	}
}

func TestTheKernelNamesTheCaller(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	client, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	server, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	_, info, err := Credentials{}.ServerHandshake(server)
	if err != nil {
		t.Fatal(err)
	}
	c := info.(Caller)
	if int(c.UID) != os.Getuid() || int(c.GID) != os.Getgid() || int(c.PID) != os.Getpid() {
		t.Errorf("got %+v", c)
	}
}

func TestOtherConnectionsAreRefused(t *testing.T) {
	a, b := net.Pipe()
	defer a.Close()
	defer b.Close()
	if _, _, err := (Credentials{}).ServerHandshake(a); err == nil {
		t.Error("a pipe passes for a unix socket")
	}
	if _, _, err := (Credentials{}).ClientHandshake(context.Background(), "", a); err == nil {
		t.Error("a client handshake succeeds")
	}
}

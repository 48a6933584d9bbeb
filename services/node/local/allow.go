package local

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"

	"google.golang.org/grpc"

	v1 "github.com/safeconduct/safeconduct/api/safeconduct/v1"
	"github.com/safeconduct/safeconduct/attestation/refusal"
)

// ours prefixes the full method names of our own services.
const ours = "/safeconduct.v1."

// AllowList says which uids may call which method. The zero value lets nobody call anything of ours; health and reflection, which
// reveal nothing, are open to whoever may open the socket.
type AllowList struct {
	byMethod map[string][]uint32 // "Service/Method"
	anyOne   map[string]bool     // full methods of other packages
}

// NewAllowList builds the list for the services registered on a server. byName maps "MigrationService" or "MigrationService/Arm" to
// uids; a method's entry replaces its service's. always are allowed everywhere. A name that the server does not have is an error.
func NewAllowList(services map[string]grpc.ServiceInfo, byName map[string][]uint32, always ...uint32) (*AllowList, error) {
	list := &AllowList{byMethod: map[string][]uint32{}, anyOne: map[string]bool{}}
	used := map[string]bool{}
	for service, info := range services {
		short, isOurs := strings.CutPrefix("/"+service, ours)
		for _, m := range info.Methods {
			if !isOurs {
				list.anyOne["/"+service+"/"+m.Name] = true
				continue
			}
			method := short + "/" + m.Name
			uids := slices.Clone(always)
			if own, ok := byName[method]; ok {
				uids = append(uids, own...)
			} else {
				uids = append(uids, byName[short]...)
			}
			used[method], used[short] = true, true
			list.byMethod[method] = uids
		}
	}
	for _, name := range slices.Sorted(maps.Keys(byName)) {
		if !used[name] {
			return nil, fmt.Errorf("local.callers: there is no service or method %q", name)
		}
	}
	return list, nil
}

// Check returns nil if the caller in ctx may call fullMethod.
func (l *AllowList) Check(ctx context.Context, fullMethod string) error {
	if l.anyOne[fullMethod] {
		return nil
	}
	method := strings.TrimPrefix(fullMethod, ours)
	caller, ok := From(ctx)
	if !ok {
		return refusal.New(v1.Reason_REASON_CALLER_NOT_ALLOWED, "%s: the caller is unknown", method)
	}
	if !slices.Contains(l.byMethod[method], caller.UID) {
		return refusal.New(v1.Reason_REASON_CALLER_NOT_ALLOWED, "uid %d (pid %d) may not call %s", caller.UID, caller.PID, method).
			On(method).Want(fmt.Sprintf("uid %d", caller.UID), fmt.Sprintf("one of uids %v", l.byMethod[method]))
	}
	return nil
}

package openstack

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	healthpb "google.golang.org/grpc/health/grpc_health_v1"

	v1 "github.com/safeconduct/safeconduct/api/safeconduct/v1"
	"github.com/safeconduct/safeconduct/services/node/metrics"
)

func keeper(t *testing.T, f *fakeCloud, n *fakeNode) (*TraitKeeper, *book) {
	t.Helper()
	cloud, node, log := f.cloud(t), n.client(t), new(book)
	return &TraitKeeper{
		Mode: v1.Mode_MODE_INTEL, Host: "compute1", Provider: "compute1", Standing: node.Standing,
		Helper: func() (bool, string) { return true, "" },
		Tunnel: func(context.Context, v1.Mode) (bool, string) { return true, "" },
		Set: func(ctx context.Context, provider string, wanted []Trait) (TraitChange, error) {
			return cloud.SetTraits(ctx, provider, wanted, noWait)
		},
		Record: NewRecorder("intel", "v1", time.Now), Log: log.logger(),
	}, log
}

// foreign are the traits that somebody else has set.
var foreign = []string{"HW_CPU_X86_AVX", "CUSTOM_GOLD"}

func with(ours ...Trait) []string {
	out := slices.Clone(foreign)
	for _, t := range ours {
		out = append(out, string(t))
	}
	return out
}

func TestTheTraitsAreWhatHolds(t *testing.T) {
	no := func(why string) func() (bool, string) { return func() (bool, string) { return false, why } }
	for name, tc := range map[string]struct {
		wrong func(*fakeNode, *TraitKeeper)
		want  []string
		says  string
	}{
		"all three when everything holds": {func(*fakeNode, *TraitKeeper) {}, with(TraitAttested, TraitVTPM, TraitTunnel), "every trait is to be published"[:0]},
		"none when the node is not ready": {func(n *fakeNode, _ *TraitKeeper) {
			n.probe.SetServingStatus(serviceReady, healthpb.HealthCheckResponse_NOT_SERVING)
		}, foreign, "not ready"},
		"none when the node service is down": {func(n *fakeNode, _ *TraitKeeper) { n.server.Stop() }, foreign, "PEER_UNAVAILABLE"},
		"none when its own policy refuses it": {func(n *fakeNode, _ *TraitKeeper) {
			n.status = &v1.GetStatusResponse{Mode: v1.Mode_MODE_INTEL, Host: "compute1", OwnRefusal: &v1.Refusal{Reason: v1.Reason_REASON_TCB_NOT_ACCEPTED, Message: "too old"}}
		}, foreign, "TCB_NOT_ACCEPTED): too old"},
		"none when it is refused and does not say why":   {func(n *fakeNode, _ *TraitKeeper) { n.status.AcceptedByOwnPolicy = false }, foreign, "does not say why"},
		"none while it drains":                           {func(n *fakeNode, _ *TraitKeeper) { n.status.Draining = true }, foreign, "drains"},
		"none when the node is another host":             {func(n *fakeNode, _ *TraitKeeper) { n.status.Host = "compute2" }, foreign, "calls this host compute2"},
		"none when the node is simulated and we are not": {func(n *fakeNode, _ *TraitKeeper) { n.status.Mode = v1.Mode_MODE_SIMULATED }, foreign, "never mix"},
		"none when the node is of no mode":               {func(n *fakeNode, _ *TraitKeeper) { n.status.Mode = v1.Mode_MODE_UNSPECIFIED }, foreign, "never mix"},
		"no vtpm without the helper":                     {func(_ *fakeNode, k *TraitKeeper) { k.Helper = no("no helper") }, with(TraitAttested, TraitTunnel), "CUSTOM_SAFECONDUCT_VTPM: no helper"},
		"no vtpm when it is off":                         {func(_ *fakeNode, k *TraitKeeper) { k.Helper = nil }, with(TraitAttested, TraitTunnel), ""},
		"no tunnel when the policy exports no key":       {func(n *fakeNode, _ *TraitKeeper) { n.policy = strings.Replace(goodPolicy, `["tunnel"]`, `[]`, 1) }, with(TraitAttested, TraitVTPM), "exported_keys"},
		"no tunnel when the policy is of a later release": {func(n *fakeNode, _ *TraitKeeper) {
			n.policy = strings.Replace(goodPolicy, `"tcb"`, `"later": 1, "tcb"`, 1)
		}, with(TraitAttested, TraitVTPM), "not one that this release"},
		"no tunnel when it does not answer": {func(_ *fakeNode, k *TraitKeeper) {
			k.Tunnel = func(context.Context, v1.Mode) (bool, string) { return false, "no answer" }
		}, with(TraitAttested, TraitVTPM), "CUSTOM_SAFECONDUCT_TUNNEL: no answer"},
		"a mark when the whole cloud is simulated": {func(n *fakeNode, k *TraitKeeper) {
			n.status.Mode, k.Mode = v1.Mode_MODE_SIMULATED, v1.Mode_MODE_SIMULATED
		}, with(TraitAttested, TraitVTPM, TraitTunnel, TraitSimulated), ""},
	} {
		t.Run(name, func(t *testing.T) {
			f, n := newFakeCloud(t), newFakeNode(t)
			k, log := keeper(t, f, n)
			tc.wrong(n, k)
			// From nothing, and from everything: what does not hold is withdrawn.
			for _, before := range [][]string{foreign, with(allTraits()...)} {
				f.change(func() {
					f.traits = slices.Clone(before)
					for _, x := range before {
						f.made[x] = true
					}
				})
				if err := k.Pass(t.Context()); err != nil {
					t.Fatal(err)
				}
				got, want := slices.Sorted(slices.Values(f.has())), slices.Sorted(slices.Values(tc.want))
				if !slices.Equal(got, want) {
					t.Errorf("from %v: got %v, want %v", before, got, want)
				}
			}
			if !strings.Contains(log.String(), tc.says) {
				t.Errorf("the log does not say %q:\n%s", tc.says, log)
			}
		})
	}
}

func TestNothingIsWrittenThatIsSoAlready(t *testing.T) {
	f, n := newFakeCloud(t), newFakeNode(t)
	k, _ := keeper(t, f, n)
	for range 3 {
		if err := k.Pass(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if f.puts != 1 {
		t.Errorf("%d changes for one", f.puts)
	}
}

func TestAChangeBySomebodyElseInBetweenIsNotLost(t *testing.T) {
	f, n := newFakeCloud(t), newFakeNode(t)
	k, _ := keeper(t, f, n)
	steal := func(f *fakeCloud) {
		f.generation++
		f.traits = append(f.traits, "CUSTOM_LATE")
		f.made["CUSTOM_LATE"] = true
	}
	drop := func(f *fakeCloud) {
		f.generation++
		f.traits = slices.DeleteFunc(f.traits, func(x string) bool { return x == "CUSTOM_GOLD" })
	}
	f.change(func() { f.between = []func(*fakeCloud){steal, drop} })
	if err := k.Pass(t.Context()); err != nil {
		t.Fatal(err)
	}
	want := []string{"CUSTOM_LATE", "CUSTOM_SAFECONDUCT_ATTESTED", "CUSTOM_SAFECONDUCT_TUNNEL", "CUSTOM_SAFECONDUCT_VTPM", "HW_CPU_X86_AVX"}
	if got := slices.Sorted(slices.Values(f.has())); !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	if n := sample(t, k.Record, metrics.AgentTraitConflicts); n != 2 {
		t.Errorf("%v conflicts counted, want 2", n)
	}
}

func TestPlacementThatFailsIsAskedAgainAndGivenUpInTheEnd(t *testing.T) {
	f, n := newFakeCloud(t), newFakeNode(t)
	k, _ := keeper(t, f, n)
	fail := func(f *fakeCloud) { f.down[Placement] = 503 } // for this answer
	f.change(func() { f.between = []func(*fakeCloud){fail, fail} })
	if err := k.Pass(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := f.has(); len(got) != 5 {
		t.Errorf("got %v", got)
	}
	f.change(func() { f.down[Placement] = 500 })
	err := k.Pass(t.Context())
	e, ok := errors.AsType[*CloudError](err)
	if !ok || e.Service != Placement || e.Kind() != kindUnavailable {
		t.Errorf("got %v", err)
	}
	// A conflict each time ends too.
	f.change(func() {
		f.down[Placement] = 0
		f.traits = slices.Clone(foreign)
		for range attempts {
			f.between = append(f.between, func(f *fakeCloud) { f.generation++ })
		}
	})
	err = k.Pass(t.Context())
	if e, ok = errors.AsType[*CloudError](err); !ok || e.Kind() != kindConflict {
		t.Errorf("got %v", err)
	}
	if got := f.has(); !slices.Equal(got, foreign) {
		t.Errorf("got %v", got)
	}
}

func TestAnUnknownResourceProviderIsNamed(t *testing.T) {
	f, n := newFakeCloud(t), newFakeNode(t)
	k, _ := keeper(t, f, n)
	k.Provider = "compute1.example"
	err := k.Pass(t.Context())
	if !isNoProvider(err) || !strings.Contains(err.Error(), "traits.resource_provider") {
		t.Errorf("got %v", err)
	}
	if e, ok := errors.AsType[*CloudError](err); !ok || e.Kind() != kindOther {
		t.Errorf("kind of %v", err)
	}
}

func TestTheTunnelMustAnswerInTheSameMode(t *testing.T) {
	for name, tc := range map[string]struct {
		code  int
		mode  string
		holds bool
		says  string
	}{
		"ready in our mode":        {200, "intel", true, ""},
		"ready in the other mode":  {200, "simulated", false, `mode "simulated", expected "intel"`},
		"without the node service": {503, "intel", false, "does not tell of its sessions"},
	} {
		t.Run(name, func(t *testing.T) {
			mux := http.NewServeMux()
			mux.HandleFunc("/readyz", func(w http.ResponseWriter, _ *http.Request) {
				w.WriteHeader(tc.code)
				_, _ = w.Write([]byte("the node service does not tell of its sessions"))
			})
			mux.HandleFunc("/connections", func(w http.ResponseWriter, _ *http.Request) { answer(w, 200, map[string]any{"mode": tc.mode}) })
			s := httptest.NewServer(mux)
			defer s.Close()
			holds, why := NewTunnelProbe(s.URL+"/").Answers(t.Context(), v1.Mode_MODE_INTEL)
			if holds != tc.holds || !strings.Contains(why, tc.says) {
				t.Errorf("got %v, %q", holds, why)
			}
		})
	}
	if holds, why := NewTunnelProbe("http://127.0.0.1:1").Answers(t.Context(), v1.Mode_MODE_INTEL); holds || why == "" {
		t.Errorf("nobody there: %v, %q", holds, why)
	}
}

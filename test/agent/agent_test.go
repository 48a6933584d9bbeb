package agent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/gophercloud/gophercloud/v2"
	"github.com/gophercloud/gophercloud/v2/openstack"
	"github.com/gophercloud/gophercloud/v2/openstack/compute/v2/servers"
	"github.com/gophercloud/gophercloud/v2/openstack/identity/v3/applicationcredentials"
	"github.com/gophercloud/gophercloud/v2/openstack/identity/v3/endpoints"
	"github.com/gophercloud/gophercloud/v2/openstack/identity/v3/services"
	"github.com/gophercloud/gophercloud/v2/openstack/identity/v3/tokens"
	"github.com/gophercloud/gophercloud/v2/openstack/placement/v1/resourceproviders"
	"github.com/gophercloud/gophercloud/v2/openstack/placement/v1/traits"

	v1 "github.com/safeconduct/safeconduct/api/safeconduct/v1"
	"github.com/safeconduct/safeconduct/test/cluster"
)

const (
	server    = "6b8a9d3e-2f41-4c57-9a1e-0d6f3b7c8e21"
	migration = "0c5e7d2a-9b14-4f60-8a3d-5e7f1b2c4d6e"
	gold      = "CUSTOM_GOLD"
)

// rig is the cloud, two node services, and an agent for each.
type rig struct {
	*cloud
	*cluster.Cluster
	t         *testing.T
	ctx       context.Context
	placement *gophercloud.ServiceClient
	providers map[string]string // host: resource provider
	agents    map[string]*cluster.Process
	starts    int
}

func (r *rig) must(err error) {
	r.t.Helper()
	if err != nil {
		r.t.Fatal(err)
	}
}

// until waits for something, and shows the agents' logs if it does not come.
func (r *rig) until(what string, holds func() error) {
	r.t.Helper()
	begun := time.Now()
	err := cluster.Until(r.ctx, what, holds)
	for range 2 { // a machine that is busy with other things
		if err != nil {
			err = cluster.Until(r.ctx, what, holds)
		}
	}
	if err != nil {
		logs, _ := filepath.Glob(r.path("agent-*.log"))
		for _, l := range logs {
			raw, _ := os.ReadFile(l)
			r.t.Logf("%s:\n%s", l, raw)
		}
		r.t.Fatal(err)
	}
	r.t.Logf("%6.2f s until %s", time.Since(begun).Seconds(), what)
}

// catalogue makes services, a resource provider for each host, and the agents' application credential.
func (r *rig) catalogue() (id, secret string) {
	provider, err := openstack.AuthenticatedClient(r.ctx, gophercloud.AuthOptions{
		IdentityEndpoint: r.url("identity") + "/v3", Username: "admin", Password: password, DomainID: "default", TenantName: "admin", AllowReauth: true,
	})
	r.must(err)
	identity, err := openstack.NewIdentityV3(provider, gophercloud.EndpointOpts{})
	r.must(err)
	for kind, url := range map[string]string{"placement": r.url("placement"), "compute": r.url("compute") + "/v2.1"} {
		s, err := services.Create(r.ctx, identity, services.CreateOpts{Type: kind, Extra: map[string]any{"name": kind}}).Extract()
		r.must(err)
		_, err = endpoints.Create(r.ctx, identity, endpoints.CreateOpts{
			Availability: gophercloud.AvailabilityPublic, Name: kind, Region: "RegionOne", ServiceID: s.ID, URL: url,
		}).Extract()
		r.must(err)
	}
	// The catalogue comes with the token.
	provider, err = openstack.AuthenticatedClient(r.ctx, gophercloud.AuthOptions{
		IdentityEndpoint: r.url("identity") + "/v3", Username: "admin", Password: password, DomainID: "default", TenantName: "admin", AllowReauth: true,
	})
	r.must(err)
	r.placement, err = openstack.NewPlacementV1(provider, gophercloud.EndpointOpts{})
	r.must(err)
	r.placement.Microversion = "1.39"
	r.must(traits.Create(r.ctx, r.placement, gold).ExtractErr())
	for _, h := range r.Hosts {
		rp, err := resourceproviders.Create(r.ctx, r.placement, resourceproviders.CreateOpts{Name: h.Name + ".example"}).Extract()
		r.must(err)
		r.providers[h.Name] = rp.UUID
		r.must(resourceproviders.UpdateTraits(r.ctx, r.placement, rp.UUID, resourceproviders.UpdateTraitsOpts{Traits: []string{gold, "HW_CPU_X86_AVX"}}).Err)
	}
	token, ok := provider.GetAuthResult().(tokens.CreateResult)
	if !ok {
		r.t.Fatal("no token")
	}
	user, err := token.ExtractUser()
	r.must(err)
	credential, err := applicationcredentials.Create(r.ctx, identity, user.ID, applicationcredentials.CreateOpts{Name: "agent", AccessRules: accessRules(r.t)}).Extract()
	r.must(err)
	return credential.ID, credential.Secret
}

// accessRules are those that docs/agent.md tells operators to use.
func accessRules(t *testing.T) []applicationcredentials.AccessRule {
	t.Helper()
	raw, err := os.ReadFile("../../docs/agent.md")
	if err != nil {
		t.Fatal(err)
	}
	var rules []applicationcredentials.AccessRule
	for line := range strings.Lines(string(raw)) {
		words := strings.Split(line, `"`)
		if len(words) > 11 && words[1] == "service" {
			rules = append(rules, applicationcredentials.AccessRule{Service: words[3], Method: words[7], Path: words[11]})
		}
	}
	if len(rules) != 8 {
		t.Fatalf("docs/agent.md has %d access rules: %+v", len(rules), rules)
	}
	return rules
}

func (r *rig) http(host string) string {
	return map[string]string{"compute1": "127.0.0.1:17571", "compute2": "127.0.0.1:17572", "central": "127.0.0.1:17573"}[host]
}

// agent starts an agent; of a host, or the central one.
func (r *rig) agent(name string) {
	r.t.Helper()
	text := "mode: simulated\nopenstack: {clouds: {file: " + r.path("clouds.yaml") + ", cloud: sc}}\nhttp: {listen: '" + r.http(name) + "'}\nlog: {level: debug}\n"
	if name == "central" {
		text += "role: central\nfleet: {every: 5s}\n"
	} else {
		text += "host: " + name + "\nnode: unix://" + r.Host(name).Socket + "\ntraits: {every: 2s, resource_provider: " + name +
			".example, vtpm: stated, tunnel: 'off'}\npreflight: {every: 5s}\nsessions: {every: 2s, grace: 4s}\n"
	}
	file := r.path("agent-" + name + ".yaml")
	r.must(os.WriteFile(file, []byte(text), 0o600))
	r.starts++
	p, err := cluster.Start(r.path(fmt.Sprintf("agent-%02d-%s.log", r.starts, name)), nil, filepath.Join(r.Bin, "safeconduct-agent"), "--config", file)
	r.must(err)
	r.agents[name] = p
}

// traits of a host's resource provider.
func (r *rig) traits(host string) ([]string, error) {
	have, err := resourceproviders.GetTraits(r.ctx, r.placement, r.providers[host]).Extract()
	if err != nil {
		return nil, err
	}
	return have.Traits, nil
}

// has says whether a host has exactly the traits of ours, and those that others have set.
func (r *rig) has(host string, ours ...string) func() error {
	return func() error {
		have, err := r.traits(host)
		if err != nil {
			return err
		}
		var found []string
		foreign := 0
		for _, t := range have {
			if short, is := strings.CutPrefix(t, "CUSTOM_SAFECONDUCT_"); is {
				found = append(found, short)
			} else {
				foreign++
			}
		}
		slices.Sort(found)
		if !slices.Equal(found, ours) || foreign < 2 {
			return fmt.Errorf("%s has %v", host, have)
		}
		return nil
	}
}

// metric says whether an agent serves a series with a value.
func (r *rig) metric(name, line string) func() error {
	return func() error {
		resp, err := http.Get("http://" + r.http(name) + "/metrics")
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		raw, err := io.ReadAll(resp.Body)
		if err != nil || strings.Contains("\n"+string(raw), "\n"+line+"\n") {
			return err
		}
		series, _, _ := strings.Cut(line, "{")
		var found []string
		for l := range strings.Lines(string(raw)) {
			if strings.HasPrefix(l, series+"{") {
				found = append(found, strings.TrimSpace(l))
			}
		}
		return fmt.Errorf("%s serves %q", name, found)
	}
}

func newRig(t *testing.T) *rig {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 12*time.Minute)
	t.Cleanup(cancel)
	root, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	dir, err := os.MkdirTemp("", "sc-os-") // t.TempDir() makes paths that are too long for a unix socket
	if err != nil {
		t.Fatal(err)
	}
	memory, err := os.MkdirTemp("/dev/shm", "sc-os-") // hundreds of migrations of schemas, each synced to disk, take minutes
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if !t.Failed() {
			_ = errors.Join(os.RemoveAll(dir), os.RemoveAll(memory))
		}
	})
	r := &rig{
		t: t, ctx: ctx, providers: map[string]string{}, agents: map[string]*cluster.Process{},
		cloud: &cloud{dir: filepath.Join(memory, "cloud"), source: filepath.Join(root, "test", "agent")},
		Cluster: &cluster.Cluster{Bin: filepath.Join(root, "build", "bin"), Dir: filepath.Join(dir, "nodes"), Hosts: []*cluster.Host{
			{Name: "compute1", Peer: "127.0.0.1:17561"}, {Name: "compute2", Peer: "127.0.0.1:17562"},
		}},
	}
	t.Cleanup(func() {
		for _, p := range r.agents {
			p.Stop()
		}
		r.stop("identity", "placement", "compute")
		r.Close()
	})
	r.must(errors.Join(os.Mkdir(r.dir, 0o700), os.Mkdir(r.Dir, 0o700)))
	begun := time.Now()
	r.must(r.prepare(ctx))
	r.must(errors.Join(r.start(ctx, "identity"), r.start(ctx, "placement"), r.start(ctx, "compute")))
	t.Logf("Keystone, Placement and nova-api run after %.1f s", time.Since(begun).Seconds())
	r.must(r.Prepare(ctx))
	for _, h := range r.Hosts {
		r.must(r.StartNode(ctx, h, ""))
	}
	r.must(r.rows(ctx, "services", "compute1", "compute2"))
	return r
}

func TestTheAgentAgainstKeystonePlacementAndNova(t *testing.T) {
	if os.Getenv("SAFECONDUCT_E2E") == "" {
		t.Skip("it needs OpenStack's Python packages, QEMU and swtpm: make test-agent")
	}
	r := newRig(t)
	id, secret := r.catalogue()
	r.must(os.WriteFile(r.path("clouds.yaml"), []byte("clouds:\n  sc:\n    auth_type: v3applicationcredential\n    region_name: RegionOne\n    auth: {auth_url: '"+
		r.url("identity")+"/v3', application_credential_id: "+id+"}\n"), 0o600))
	r.must(os.WriteFile(r.path("secure.yaml"), []byte("clouds: {sc: {auth: {application_credential_secret: '"+secret+"'}}}\n"), 0o600))
	r.theRulesHold(id, secret)

	// Keystone is down when the agents start.
	r.stop("identity")
	for _, name := range []string{"compute1", "compute2", "central"} {
		r.agent(name)
	}
	r.until("the agents say that Keystone is down", r.metric("compute1", `safeconduct_agent_cloud_errors_total{kind="unavailable",mode="simulated",service="identity"} 3`))
	r.must(r.start(r.ctx, "identity"))
	all := []string{"ATTESTED", "SIMULATED", "VTPM"}
	r.until("compute1 has its traits", r.has("compute1", all...))
	r.until("compute2 has its traits", r.has("compute2", all...))
	r.until("compute1 has preflighted compute2", r.metric("compute1", `safeconduct_agent_preflight_peer{mode="simulated",peer="compute2"} 1`))
	r.until("the central agent sees both", r.metric("central", `safeconduct_agent_fleet_hosts{mode="simulated",state="attested"} 2`))

	r.theTraitsFollowTheNode(all)
	r.nobodysTraitIsLost(all)
	r.aSessionEndsWithItsMigration()

	for _, p := range r.agents {
		p.Stop()
	}
	r.must(errors.Join(r.has("compute1")(), r.has("compute2")()))
	logs, err := filepath.Glob(r.path("*.log"))
	r.must(err)
	for _, l := range logs {
		if raw, _ := os.ReadFile(l); strings.HasPrefix(filepath.Base(l), "agent-") && strings.Contains(string(raw), secret) {
			t.Errorf("the secret is in %s", l)
		}
	}
}

// theRulesHold: the credential that the documentation makes is good for nothing else.
func (r *rig) theRulesHold(id, secret string) {
	r.t.Helper()
	provider, err := openstack.AuthenticatedClient(r.ctx, gophercloud.AuthOptions{
		IdentityEndpoint: r.url("identity") + "/v3", ApplicationCredentialID: id, ApplicationCredentialSecret: secret,
	})
	r.must(err)
	compute, err := openstack.NewComputeV2(provider, gophercloud.EndpointOpts{})
	r.must(err)
	if _, err := servers.List(compute, servers.ListOpts{}).AllPages(r.ctx); !gophercloud.ResponseCodeIs(err, http.StatusUnauthorized) {
		r.t.Errorf("the credential lists servers: %v", err)
	}
	placement, err := openstack.NewPlacementV1(provider, gophercloud.EndpointOpts{})
	r.must(err)
	if err := resourceproviders.Delete(r.ctx, placement, r.providers["compute1"]).ExtractErr(); !gophercloud.ResponseCodeIs(err, http.StatusUnauthorized) {
		r.t.Errorf("the credential deletes resource providers: %v", err)
	}
}

// theTraitsFollowTheNode: down and up again, with Placement down in between, or Keystone and Nova.
func (r *rig) theTraitsFollowTheNode(all []string) {
	r.t.Helper()
	h := r.Host("compute1")
	h.Daemon.Stop()
	r.until("the traits of compute1 are withdrawn: its node service is down", r.has("compute1"))
	r.until("the central agent sees that", r.metric("central", `safeconduct_agent_fleet_hosts{mode="simulated",state="not_attested"} 1`))
	r.must(r.has("compute2", all...)())
	r.must(r.StartNode(r.ctx, h, ""))
	r.until("the traits of compute1 are back", r.has("compute1", all...))

	r.stop("placement")
	h.Daemon.Kill()
	r.until("the agent says that Placement is down", r.metric("compute1", `safeconduct_agent_cloud_errors_total{kind="unavailable",mode="simulated",service="placement"} 2`))
	r.must(r.start(r.ctx, "placement"))
	r.until("the traits of compute1 are withdrawn as soon as Placement is back", r.has("compute1"))

	r.stop("identity", "compute")
	r.must(r.StartNode(r.ctx, h, ""))
	r.must(r.start(r.ctx, "identity"))
	r.until("the traits of compute1 are back while Nova is down", r.has("compute1", all...))
	r.must(r.start(r.ctx, "compute"))
}

// nobodysTraitIsLost: somebody else adds traits one by one while the agent's come and go.
func (r *rig) nobodysTraitIsLost(all []string) {
	r.t.Helper()
	for i := range 12 {
		name := fmt.Sprintf("CUSTOM_OTHER_%d", i)
		r.must(traits.Create(r.ctx, r.placement, name).ExtractErr())
		if i%4 == 0 {
			r.agents["compute1"].Stop()
			r.agent("compute1")
		}
		r.must(cluster.Until(r.ctx, name, func() error {
			have, err := resourceproviders.GetTraits(r.ctx, r.placement, r.providers["compute1"]).Extract()
			if err != nil {
				return err
			}
			return resourceproviders.UpdateTraits(r.ctx, r.placement, r.providers["compute1"], resourceproviders.UpdateTraitsOpts{
				ResourceProviderGeneration: have.ResourceProviderGeneration, Traits: append(have.Traits, name),
			}).Err
		}))
	}
	r.until("the traits of compute1 are back", r.has("compute1", all...))
	have, err := r.traits("compute1")
	r.must(err)
	if len(have) != 12+2+len(all) {
		r.t.Errorf("traits are lost: %v", have)
	}
}

// guest makes a process that looks like a server's QEMU.
func (r *rig) guest() *cluster.Process {
	r.t.Helper()
	exe := filepath.Join(r.Dir, "qemu-of-a-test")
	r.must(cluster.CopyExecutable("/bin/sh", exe, nil))
	p, err := cluster.Start(r.path("guest.log"), nil, exe, "-c", "while :; do sleep 1; done", "-uuid", server)
	r.must(err)
	return p
}

// aSessionEndsWithItsMigration: not while it runs, not on Nova's word alone, and then on both nodes.
func (r *rig) aSessionEndsWithItsMigration() {
	r.t.Helper()
	source := r.Host("compute1").Migrations()
	stream, err := source.Establish(r.ctx, &v1.EstablishRequest{InstanceId: server, PeerHost: "compute2", Role: v1.Role_ROLE_SOURCE})
	r.must(err)
	for err == nil {
		_, err = stream.Recv()
	}
	if !errors.Is(err, io.EOF) {
		r.t.Fatal(err)
	}
	_, err = source.Arm(r.ctx, &v1.ArmRequest{InstanceId: server, DestinationHost: "compute2", MigrationId: migration, ReturnPath: true, WithoutVtpm: true})
	r.must(err)
	open := func(n int) func() error {
		return func() error {
			for _, h := range r.Hosts {
				list, err := h.Migrations().List(r.ctx, &v1.ListRequest{})
				if err != nil || len(list.GetSessions()) != n {
					return fmt.Errorf("%s has %d sessions, want %d: %w", h.Name, len(list.GetSessions()), n, err)
				}
			}
			return nil
		}
	}
	guest := r.guest()
	defer guest.Kill()
	say := func(status string) {
		r.t.Helper()
		r.must(r.rows(r.ctx, "migration", migration, server, status, "compute1", "compute2"))
	}
	by := func(v string) string { return `safeconduct_agent_sessions{migration="` + v + `",mode="simulated"} 1` }
	for _, status := range []string{"running", "error", "completed"} {
		say(status)
		r.until("both agents see that it is "+status, func() error {
			return errors.Join(r.metric("compute1", by(status))(), r.metric("compute2", by(status))())
		})
		if status == "running" {
			r.until("the central agent counts it", r.metric("central", `safeconduct_agent_fleet_migrations{hosts="attested",mode="simulated"} 1`))
			continue
		}
		r.until("the agents say that they leave it alone: "+status, func() error {
			logs, _ := filepath.Glob(r.path("agent-*.log"))
			for _, l := range logs {
				if raw, _ := os.ReadFile(l); strings.Contains(string(raw), `is left alone`) && strings.Contains(string(raw), `"nova":"`+status+`"`) {
					return nil
				}
			}
			return errors.New("not yet")
		})
		r.must(open(1)())
	}
	say("failed")
	r.until("the session is aborted on both nodes", open(0))
	r.must(r.metric("compute1", `safeconduct_agent_sessions_aborted_total{migration="failed",mode="simulated"} 1`)())
}

package metrics

// The names of safeconduct-agent's metrics. It has a registry and a listener of its own; the catalogue is this package's.
const (
	AgentTrait             = "safeconduct_agent_trait"
	AgentTraitChanges      = "safeconduct_agent_trait_changes_total"
	AgentTraitConflicts    = "safeconduct_agent_trait_conflicts_total"
	AgentPasses            = "safeconduct_agent_passes_total"
	AgentPassAge           = "safeconduct_agent_pass_age_seconds"
	AgentCloudErrors       = "safeconduct_agent_cloud_errors_total"
	AgentPreflights        = "safeconduct_agent_preflights_total"
	AgentPreflightRefusals = "safeconduct_agent_preflight_refusals_total"
	AgentPreflightPeer     = "safeconduct_agent_preflight_peer"
	AgentSessions          = "safeconduct_agent_sessions"
	AgentSessionsAborted   = "safeconduct_agent_sessions_aborted_total"
	AgentFleetHosts        = "safeconduct_agent_fleet_hosts"
	AgentFleetMigrations   = "safeconduct_agent_fleet_migrations"
	AgentBuildInfo         = "safeconduct_agent_build_info"
)

// AgentCatalogue is every metric of safeconduct-agent, in the order of the documentation. Each has the label "mode" besides its own.
func AgentCatalogue() []Metric {
	task := Label{Name: "task", Values: []string{"traits", "preflight", "sessions", "fleet"}}
	return []Metric{
		{AgentTrait, Gauge, "1 if the node's resource provider has the trait, as the agent last left it, else 0.",
			[]Label{{Name: "trait", Values: []string{"attested", "vtpm", "tunnel", "simulated"}}}},
		{AgentTraitChanges, Counter, "Traits that the agent changed in Placement, by what it did.",
			[]Label{{Name: "change", Values: []string{"published", "withdrawn"}}}},
		{AgentTraitConflicts, Counter, "Changes of traits that were made again because somebody else had changed the resource provider.", nil},
		{AgentPasses, Counter, "Times that a task of the agent was done, by task and outcome.",
			[]Label{task, {Name: "outcome", Values: []string{ok, failed}}}},
		{AgentPassAge, Gauge, "Time since a task of the agent was last done with success; since the start if it never was.", []Label{task}},
		{AgentCloudErrors, Counter, "Calls to OpenStack that failed for good, by service and kind.",
			[]Label{{Name: "service", Values: []string{"identity", "placement", "compute"}},
				{Name: "kind", Values: []string{"unavailable", "denied", "conflict", "other"}}}},
		{AgentPreflights, Counter, "Preflights that the agent asked for, by outcome.", []Label{{Name: "outcome", Values: []string{ok, refused}}}},
		{AgentPreflightRefusals, Counter, "Preflights that were refused, by typed reason.", []Label{{Name: "reason", Values: reasons()}}},
		{AgentPreflightPeer, Gauge, "1 if the last preflight with the host was accepted, else 0.",
			[]Label{{Name: "peer", Bound: "the compute hosts that Nova lists as up, at most preflight.max_peers"}}},
		{AgentSessions, Gauge, "Open sessions of this node, by what Nova says of their migration.",
			[]Label{{Name: "migration", Values: []string{"not_armed", "young", "running", "completed", "failed", "cancelled", "error", "vanished", "unknown"}}}},
		{AgentSessionsAborted, Counter, "Sessions that the agent aborted, by what Nova said of their migration.",
			[]Label{{Name: "migration", Values: []string{"failed", "cancelled", "error", "vanished"}}}},
		{AgentFleetHosts, Gauge, "Compute hosts that are up, by what their resource provider says. Of a central agent.",
			[]Label{{Name: "state", Values: []string{"attested", "not_attested", "other_mode", "no_provider"}}}},
		{AgentFleetMigrations, Gauge, "Live migrations in progress, by whether both hosts have the trait. Of a central agent.",
			[]Label{{Name: "hosts", Values: []string{"attested", "not_attested"}}}},
		{AgentBuildInfo, Gauge, "Always 1; the labels say what runs.",
			[]Label{{Name: "version", Bound: "one: that of this build"}, {Name: "goversion", Bound: "one: that of this build"}}},
	}
}

package cli

import v1 "github.com/safeconduct/safeconduct/api/safeconduct/v1"

// explainService: the node service itself, its callers, its policy.
func explainService() []explanation {
	return []explanation{
		{v1.Reason_REASON_UNSPECIFIED, "A service gave no reason, or one that this command does not know",
			[]string{"the node service is of a newer release than this command"},
			[]string{"safeconduct version and safeconduct status: both releases"}},
		{v1.Reason_REASON_INTERNAL, "Something unexpected happened inside the node service; its log has the detail",
			[]string{"a full or read-only file system under state_dir", "a defect of safeconductd"},
			[]string{"safeconductd's log on this host, at the time of the call", "df on state_dir of its configuration"}},
		{v1.Reason_REASON_INVALID_REQUEST, "The request itself is malformed: nothing was looked at",
			[]string{"an identifier that is not a UUID in lower case, or a session id of another length", "a caller written for another release"},
			[]string{"the message, which names the field"}},
		{v1.Reason_REASON_CALLER_NOT_ALLOWED, "The uid of the caller is not on the allow-list of the call",
			[]string{"nova-compute or swtpm run as another user than the configuration says", "the command was run without root"},
			[]string{"local.callers in safeconductd's configuration", "id of the calling user"}},
		{v1.Reason_REASON_POLICY_REFUSED, "The policy is missing, invalid, or does not allow this",
			[]string{"a policy file with a key that this release does not know", "a policy for the other mode",
				"the tunnel is used, and exported_keys of the policy does not name it", "the policy changed while a handshake ran"},
			[]string{"safeconduct policy verify --keys PEM POLICY", "safeconduct policy show POLICY"}},
		{v1.Reason_REASON_POLICY_ROLLED_BACK,
			"The policy file is older than one that this node has accepted before, or another one with the same policy_svn",
			[]string{"a policy restored from a backup or deployed by an old pipeline", "a policy that was changed without a higher policy_svn",
				"somebody tries to bring back what an older policy allowed"},
			[]string{"safeconduct status: the policy_svn in force", "safeconduct policy show POLICY: that of the file"}},
		{v1.Reason_REASON_DRAINING, "The node is draining: it takes no new sessions and will stop",
			[]string{"an operator ran safeconduct drain for maintenance"},
			[]string{"safeconduct status on that node"}},
		{v1.Reason_REASON_LIMIT_EXCEEDED, "A bound on sessions, sizes or rates is reached",
			[]string{"more migrations at once than sessions.max_open",
				"a peer, or a script with preflight, begins handshakes faster than peer.handshakes_per_second",
				"an IMA list or an image larger than what one node takes from another"},
			[]string{"safeconduct migrations list", "metric safeconduct_sessions, by state",
				"sessions and peer in safeconductd's configuration"}},
	}
}

// explainPeers: finding the peer and agreeing on what to speak.
func explainPeers() []explanation {
	return []explanation{
		{v1.Reason_REASON_PEER_UNAVAILABLE, "The peer could not be reached, or broke off",
			[]string{"safeconductd does not run there", "a firewall between the peer ports",
				"one side has TLS on the peer port and the other has not",
				"the peer was stopped or restarted during the call"},
			[]string{"safeconduct status on the peer", "peers and peer.tls in both configurations", "safeconduct preflight PEER"}},
		{v1.Reason_REASON_PEER_REFUSED, "The peer refused and, rightly, does not say why to a node that it has not accepted",
			[]string{"this node's enclave, platform or host does not pass the peer's policy",
				"the two nodes have different policies or collateral"},
			[]string{"safeconductd's log on the peer, at the same moment: it names reason, item, found and expected",
				"safeconduct preflight from the peer to this node",
				"safeconduct status on this node: whether its own policy accepts it"}},
		{v1.Reason_REASON_PROTOCOL_VIOLATION, "The peer sent something that the protocol does not allow",
			[]string{"nodes of releases that do not fit", "somebody between the nodes, or a peer that is not what it seems"},
			[]string{"safeconduct status on both nodes: their releases", "safeconductd's logs of both nodes"}},
		{v1.Reason_REASON_SAME_NODE, "Source and destination are the same node",
			[]string{"two hosts are configured under one name", "Nova was asked to migrate a VM to where it is"},
			[]string{"host in safeconductd's configuration of both nodes"}},
		{v1.Reason_REASON_MODE_MISMATCH, "One node runs on SGX hardware and the other in a simulation; they never speak to each other",
			[]string{"a node of a test environment among the peers", "a node without SGX whose configuration says mode: simulated"},
			[]string{"safeconduct status on both nodes: the mode", "peers in safeconductd's configuration"}},
		{v1.Reason_REASON_SUITE_MISMATCH, "The nodes have no protocol version or cipher suite in common",
			[]string{"one node was upgraded across a version of the protocol and the other was not"},
			[]string{"safeconduct status on both nodes: their releases"}},
		{v1.Reason_REASON_UNKNOWN_PEER, "The host pair is not one that this node migrates with",
			[]string{"a new host that is missing under peers", "Nova and safeconductd know the host by different names"},
			[]string{"host and peers in safeconductd's configuration, against the names in openstack compute service list"}},
	}
}

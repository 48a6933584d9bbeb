package cli

import v1 "github.com/safeconduct/safeconduct/api/safeconduct/v1"

// explainSessions: the course of a migration.
func explainSessions() []explanation {
	list := "safeconduct migrations list --all, on both nodes"
	show := "safeconduct migrations show SESSION: its state and why"
	return []explanation{
		{v1.Reason_REASON_NO_SESSION, "There is no such session on this node",
			[]string{"it ended and is no longer remembered", "the session was made with another node", "safeconductd was restarted"},
			[]string{list}},
		{v1.Reason_REASON_NO_ARMED_SESSION,
			"There is no armed session for this VM in this direction, so its vTPM's state does not leave, or enter, the host",
			[]string{"a migration that was started by virsh, past Nova", "a snapshot, or suspend to file, of a protected VM",
				"the session expired before the migration reached the vTPM"},
			[]string{list, "the log of safeconduct-swtpm of that VM"}},
		{v1.Reason_REASON_WRONG_STATE, "The session is in a state that does not allow this",
			[]string{"a call that came twice, or late, after the session had ended",
				"only a part of the vTPM's state, or of an image, had crossed"},
			[]string{show}},
		{v1.Reason_REASON_SESSION_EXPIRED, "The session's time is up",
			[]string{"a migration that takes longer than sessions.armed_ttl", "nobody armed the session within sessions.unarmed_ttl"},
			[]string{show, "sessions in safeconductd's configuration"}},
		{v1.Reason_REASON_ALREADY_USED, "The migration id, the attempt, the blob or the secret was used before: each serves once",
			[]string{"a migration that is tried again with the id of the first try", "somebody plays back what was sent before"},
			[]string{list}},
		{v1.Reason_REASON_SESSION_CONFLICT, "Another session for this VM is open",
			[]string{"two migrations of one VM at once", "a migration that ended without Commit or Abort, until its session expires",
				"a newer session of the same VM took this one's place"},
			[]string{"safeconduct migrations list --instance UUID, on both nodes", "openstack server migration list"}},
		{v1.Reason_REASON_ABORTED, "The migration was aborted by an operator, by Nova or by the peer",
			[]string{"openstack server migration abort", "safeconduct migrations abort",
				"the migration failed in libvirt, and nova-compute cleaned up"},
			[]string{show, "nova-compute's log of the source"}},
		{v1.Reason_REASON_RESTARTED, "The node service restarted while the session was open; its keys existed only in memory",
			[]string{"an upgrade or reboot without safeconduct drain", "safeconductd was killed or crashed"},
			[]string{"safeconductd's log and journal of the host", show}},
		{v1.Reason_REASON_UNSAFE_MIGRATION, "The migration would run without what makes a failed restore recoverable: QEMU's return-path",
			[]string{"libvirt was told --tunnelled", "a caller of Arm that does not state return_path"},
			[]string{"live_migration settings of nova-compute"}},
	}
}

// explainData: ciphertexts, sealed files, secrets and receipts.
func explainData() []explanation {
	return []explanation{
		{v1.Reason_REASON_CIPHERTEXT_INVALID, "The ciphertext is not authentic: altered on its way, or of another session",
			[]string{"a broken network device or disk between the hosts", "an image that was protected for another migration",
				"somebody altered it"},
			[]string{"safeconductd's logs of both nodes", "safeconduct migrations show SESSION on both nodes: the blobs"}},
		{v1.Reason_REASON_CIPHERTEXT_TRUNCATED, "The ciphertext ends before its end record: not all of it has arrived",
			[]string{"the migration or the copy broke off", "a full file system at the destination"},
			[]string{"libvirt's log of the source", "df at the destination"}},
		{v1.Reason_REASON_SEALED_DATA_INVALID, "Sealed data does not open on this node",
			[]string{"a state_dir that was copied from another node, or restored from a backup of before a repair",
				"an enclave with another signer or a lower version",
				"a damaged file"},
			[]string{"the message, which names the file", "state_dir in safeconductd's configuration"}},
		{v1.Reason_REASON_NO_SECRET, "No secret is escrowed for this VM on this node",
			[]string{"a VM that was spawned before Safeconduct was installed", "the VM has several secrets and none was named",
				"the secret was forgotten after the VM left"},
			[]string{"safeconduct secrets list --instance UUID, on both nodes"}},
		{v1.Reason_REASON_SECRET_CONFLICT, "Another secret is escrowed under this id",
			[]string{"a passphrase that was replaced and kept its id", "an incoming migration brings another secret than the one that is here"},
			[]string{"safeconduct secrets list --instance UUID"}},
		{v1.Reason_REASON_NO_RECEIPT, "There is no such receipt on this node",
			[]string{"the id of another node's receipt", "a migration that ended before it was armed leaves none"},
			[]string{"safeconduct receipt list"}},
		{v1.Reason_REASON_HELPER_NOT_ATTACHED, "No helper is attached for the VM: its swtpm does not run behind safeconduct-swtpm",
			[]string{"a VM that was started before the helper was installed", "the helper is not installed on this host, or libvirtd was not restarted since",
				"the helper was killed: the VM keeps its vTPM, and cannot be migrated before its next hard reboot",
				"the node service has just started: helpers attach again within seconds"},
			[]string{"safeconduct helper status", "safeconduct status: the VMs with a helper", "libvirt's log of the VM's swtpm"}},
		{v1.Reason_REASON_HELPER_CONFLICT, "Another helper is attached for the VM",
			[]string{"a swtpm of an earlier start of the VM that has not ended", "a process that speaks for a VM that is not its own"},
			[]string{"safeconductd's log: the pid", "ps on the host: safeconduct-swtpm and swtpm of the VM"}},
	}
}

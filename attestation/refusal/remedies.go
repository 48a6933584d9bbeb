package refusal

import v1 "github.com/safeconduct/safeconduct/api/safeconduct/v1"

// Remedies returns what an operator can usually do about a reason. Every reason has one; a test enumerates them.
func Remedies(reason v1.Reason) string {
	switch reason {
	case v1.Reason_REASON_INVALID_REQUEST:
		return "correct the request; the message names the field"
	case v1.Reason_REASON_CALLER_NOT_ALLOWED:
		return "add the caller's uid to local.callers in safeconductd's configuration if it should be allowed"
	case v1.Reason_REASON_PEER_UNAVAILABLE:
		return "check that safeconductd runs on the peer, and that its peer port is reachable from here"
	case v1.Reason_REASON_PEER_REFUSED:
		return "read safeconductd's log on the peer: it has the reason and the item"
	case v1.Reason_REASON_PROTOCOL_VIOLATION:
		return "check that both nodes run the same release; if they do, treat it as an attack"
	case v1.Reason_REASON_SAME_NODE:
		return "choose a destination other than the source"
	case v1.Reason_REASON_MODE_MISMATCH:
		return "run both nodes in the same mode; simulated and intel never mix"
	case v1.Reason_REASON_SUITE_MISMATCH:
		return "bring both nodes to releases that share a protocol version"
	case v1.Reason_REASON_UNKNOWN_PEER:
		return "list the peer under peers in safeconductd's configuration on both nodes"
	case v1.Reason_REASON_QUOTE_INVALID, v1.Reason_REASON_QUOTE_NOT_BOUND:
		return "treat it as an attack until explained: the quote is not one made for this handshake"
	case v1.Reason_REASON_COLLATERAL_INVALID:
		return "refresh the collateral; the message names the artefact and its dates"
	case v1.Reason_REASON_CERTIFICATE_REVOKED:
		return "take the platform out of service: Intel has revoked its certificate"
	case v1.Reason_REASON_MEASUREMENT_NOT_ALLOWED:
		return "install the release that the policy allows, or add the measurement to the policy if you built it"
	case v1.Reason_REASON_DEBUG_ENCLAVE:
		return "install a production enclave: a debug enclave's memory can be read by its host"
	case v1.Reason_REASON_TCB_NOT_ACCEPTED:
		return "update the platform's BIOS and microcode, or accept the status or advisory by name in the policy"
	case v1.Reason_REASON_PLATFORM_NOT_ENROLLED:
		return "enrol the platform in the policy under its host name"
	case v1.Reason_REASON_TPM_QUOTE_INVALID:
		return "check the host's TPM and that its attestation key is the one enrolled in the policy"
	case v1.Reason_REASON_INTEGRITY_MISMATCH:
		return "find out why the item differs on that host; if the change is intended, add its digest to the policy"
	case v1.Reason_REASON_INTEGRITY_STALE:
		return "establish a new session"
	case v1.Reason_REASON_KEY_CONFIRMATION_FAILED:
		return "treat it as an attack until explained: the two enclaves saw different handshakes"
	case v1.Reason_REASON_NO_SESSION, v1.Reason_REASON_SESSION_EXPIRED, v1.Reason_REASON_RESTARTED, v1.Reason_REASON_ABORTED:
		return "establish a new session; the VM is safe on the source"
	case v1.Reason_REASON_NO_ARMED_SESSION:
		return "migrate through Nova, or call Establish and Arm first; the VM is safe on the source"
	case v1.Reason_REASON_WRONG_STATE:
		return "look at the session's state; a session serves one attempt only"
	case v1.Reason_REASON_ALREADY_USED:
		return "establish a new session with a new migration id: each serves once"
	case v1.Reason_REASON_SESSION_CONFLICT:
		return "wait for the VM's other migration to end, or abort it"
	case v1.Reason_REASON_LIMIT_EXCEEDED:
		return "try again later, or raise the limit in safeconductd's configuration"
	case v1.Reason_REASON_CIPHERTEXT_INVALID, v1.Reason_REASON_CIPHERTEXT_TRUNCATED:
		return "look at the network between the nodes, then migrate again; the VM is safe on the source"
	case v1.Reason_REASON_SEALED_DATA_INVALID:
		return "the sealed file is of another node, another mode or damaged; restore it or remove it"
	case v1.Reason_REASON_MEASUREMENT_FAILED:
		return "check the paths under integrity in safeconductd's configuration, and the host's TPM"
	case v1.Reason_REASON_QUOTE_FAILED:
		return "check the SGX devices, aesmd and the PCCS on this host"
	case v1.Reason_REASON_NO_SECRET:
		return "escrow the VM's secret when it is spawned; a hard reboot of the VM does it"
	case v1.Reason_REASON_POLICY_REFUSED:
		return "check the policy file; the message names the rule"
	case v1.Reason_REASON_DRAINING:
		return "choose another host: this node is going down for maintenance"
	case v1.Reason_REASON_UNSAFE_MIGRATION:
		return "turn on QEMU's return-path capability (libvirt: do not use --tunnelled)"
	case v1.Reason_REASON_POLICY_ROLLED_BACK:
		return "give the node the newest signed policy; to go back, sign the old content again with a higher policy_svn"
	case v1.Reason_REASON_SECRET_CONFLICT:
		return "escrow the new secret under an id of its own, and forget the old one once nothing needs it"
	case v1.Reason_REASON_NO_RECEIPT:
		return "list the receipts of this node; the peer has its own copy"
	case v1.Reason_REASON_HELPER_NOT_ATTACHED:
		return "run safeconduct helper status on the VM's host, then hard-reboot the VM, so that its swtpm starts behind the helper"
	case v1.Reason_REASON_HELPER_CONFLICT:
		return "find the process that is attached for the VM: safeconduct status on the host, then its log; the VM's own helper attaches as soon as it is gone"
	case v1.Reason_REASON_STATE_ROLLED_BACK:
		return "put the newest state back; if the old one is meant to count: safeconduct secrets accept-state UUID"
	case v1.Reason_REASON_STATE_NOT_RECORDED:
		return "find out why: a crash of the host explains it; then safeconduct secrets accept-state UUID"
	case v1.Reason_REASON_NO_STATE_KEY:
		return "start the VM where its key is; a state without such a key comes under one by a migration here, or stays as it is with state_key: libvirt for the VM"
	case v1.Reason_REASON_STATE_KEY_UNUSED:
		return "set state_key: enclave in helper.yaml of the destination, then migrate again; the VM is safe on the source"
	case v1.Reason_REASON_UNSPECIFIED, v1.Reason_REASON_INTERNAL:
		return "read safeconductd's log on this host and report what it says"
	}
	return ""
}

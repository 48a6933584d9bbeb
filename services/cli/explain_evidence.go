package cli

import v1 "github.com/safeconduct/safeconduct/api/safeconduct/v1"

// explainEvidence: quotes, collateral, and what the policy says of them.
func explainEvidence() []explanation {
	attest := "safeconduct attest on the node whose evidence it is"
	verify := "safeconduct quote verify --collateral DIR QUOTE, with a quote that attest --save-quote wrote"
	return []explanation{
		{v1.Reason_REASON_QUOTE_INVALID, "The quote does not parse, or does not verify: it is not known to come from an SGX enclave",
			[]string{"a simulated node among real ones, or another root of trust", "a quote altered on its way",
				"a quote of another kind: EPID, or of a TD"},
			[]string{attest, verify}},
		{v1.Reason_REASON_QUOTE_NOT_BOUND, "The quote is genuine but was made for something else: another nonce, handshake or key",
			[]string{"a quote played back from an earlier handshake", "somebody between the two enclaves"},
			[]string{"safeconductd's logs of both nodes", verify}},
		{v1.Reason_REASON_COLLATERAL_INVALID, "The collateral that quotes are judged by is missing, expired, forged, or older than the policy asks for",
			[]string{"the PCCS has been unreachable for weeks", "the clock of this host is wrong",
				"a processor model whose collateral was never fetched",
				"the policy's min_evaluation_data_number is ahead of what the PCCS serves"},
			[]string{"safeconduct status: when the collateral expires", "docs/collateral.md, At three in the morning", "date -u on this host"}},
		{v1.Reason_REASON_CERTIFICATE_REVOKED, "A certificate of the quote's chain is revoked: Intel no longer vouches for it",
			[]string{"the platform's keys were compromised, or are believed to be"},
			[]string{attest, "Intel's advisories, and the vendor of the platform"}},
		{v1.Reason_REASON_MEASUREMENT_NOT_ALLOWED, "The enclave's measurement is not accepted by the policy",
			[]string{"a release of safeconductd that the policy does not name yet", "a rule of the policy whose not_after has passed",
				"a binary that was changed or built differently"},
			[]string{"safeconduct status: mrenclave, mrsigner and version", "safeconduct policy show --document POLICY: enclaves"}},
		{v1.Reason_REASON_DEBUG_ENCLAVE, "A debug enclave, whose memory its host can read, and which the policy does not name",
			[]string{"a build for development on a node in production"},
			[]string{attest}},
		{v1.Reason_REASON_TCB_NOT_ACCEPTED, "The platform's TCB status, or a security advisory that applies to it, is not accepted by the policy",
			[]string{"BIOS or microcode is behind what Intel's newest collateral asks for",
				"hyper-threading or another setting that an advisory is about",
				"new collateral was loaded, under which the same platform has another status"},
			[]string{attest + ": tcb status and advisories", "tcb in the policy: statuses and tolerated_advisories",
				"the vendor's BIOS for the platform"}},
		{v1.Reason_REASON_PLATFORM_NOT_ENROLLED, "The platform is not enrolled in the policy, or not under this host name",
			[]string{"a new host", "a processor, board or TPM that was replaced", "two hosts whose names were exchanged"},
			[]string{"safeconduct status on that node: its platform", "platforms in the policy"}},
		{v1.Reason_REASON_QUOTE_FAILED, "The enclave could not produce a quote",
			[]string{"aesmd does not run, or the SGX devices are missing or not accessible", "the PCCS has no PCK certificate for the platform"},
			[]string{"ls -l /dev/sgx_enclave /dev/sgx_provision", "the logs of aesmd and of safeconductd on this host"}},
		{v1.Reason_REASON_KEY_CONFIRMATION_FAILED, "The two enclaves did not derive the same keys: they have not seen the same handshake",
			[]string{"somebody between the nodes", "a defect"},
			[]string{"safeconductd's logs of both nodes"}},
	}
}

// explainIntegrity: what runs on the hosts.
func explainIntegrity() []explanation {
	return []explanation{
		{v1.Reason_REASON_TPM_QUOTE_INVALID, "The TPM's quote over the host's measurements is missing, does not verify, or is another TPM's",
			[]string{"integrity.tpm is not configured while the policy asks for a TPM",
				"a TPM that was cleared or replaced, so that its attestation key is another",
				"the TPM was reset since the host was accepted"},
			[]string{"integrity.tpm in safeconductd's configuration of that host", "platforms in the policy: tpm_key",
				"safeconductd's log on that host"}},
		{v1.Reason_REASON_INTEGRITY_MISMATCH, "The host's integrity log does not match the reference values: something on it is not what the operator signed",
			[]string{"an update of kernel, QEMU, swtpm, libvirt or firmware whose digests are not in the policy",
				"a boot option or secure boot that was changed",
				"a program that was replaced"},
			[]string{"item, found and expected of the refusal", "the package version of that file on the host",
				"safeconduct preflight PEER after the policy was extended"}},
		{v1.Reason_REASON_INTEGRITY_STALE, "The integrity appraisal is older than the policy allows",
			[]string{"a long pause between Establish and Arm", "clocks of the two hosts that are minutes apart"},
			[]string{"sessions.arm_max_age in safeconductd's configuration", "date -u on both hosts"}},
		{v1.Reason_REASON_MEASUREMENT_FAILED, "The measurement of this host failed: there is no log to show",
			[]string{"a path under integrity.items that is not there", "the TPM does not answer, or another program holds it",
				"IMA or the boot log is not readable for safeconductd"},
			[]string{"integrity in safeconductd's configuration", "ls -l of the TPM device and of the paths", "safeconductd's log on this host"}},
	}
}

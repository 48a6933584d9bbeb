package node

import (
	"bytes"
	"crypto"
	"crypto/sha1"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	v1 "github.com/safeconduct/safeconduct/api/safeconduct/v1"
	"github.com/safeconduct/safeconduct/attestation/handshake"
	"github.com/safeconduct/safeconduct/attestation/policy"
	"github.com/safeconduct/safeconduct/integrity/appraise"
	"github.com/safeconduct/safeconduct/integrity/bootlog"
	"github.com/safeconduct/safeconduct/integrity/hosttpm"
	"github.com/safeconduct/safeconduct/services/rpcerror"
	"github.com/safeconduct/safeconduct/test/swtpmtest"
)

// machine is a host with a TPM (a real swtpm), a boot log of a real machine that was replayed into it, and an IMA list that is extended as the kernel
// would.
type machine struct {
	tpm, bootLog, imaList string
}

// imaEntry is an ima-ng measurement, as the kernel writes it into the binary list.
func imaEntry(path string, content []byte) (entry []byte, extended [32]byte) {
	sum := sha256.Sum256(content)
	digest := append([]byte("sha256:\x00"), sum[:]...)
	field := func(b []byte) []byte { return append(binary.LittleEndian.AppendUint32(nil, uint32(len(b))), b...) }
	data := append(field(digest), field(append([]byte(path), 0))...)
	template := sha1.Sum(data)
	entry = binary.LittleEndian.AppendUint32(nil, 10)
	entry = append(entry, template[:]...)
	entry = append(entry, field([]byte("ima-ng"))...)
	return append(entry, field(data)...), sha256.Sum256(data)
}

// run makes the machine's kernel measure a file.
func (m *machine) run(t *testing.T, path string, content []byte) {
	t.Helper()
	entry, extended := imaEntry(path, content)
	f, err := os.OpenFile(m.imaList, os.O_APPEND|os.O_WRONLY|os.O_CREATE, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.Write(entry); err != nil {
		t.Fatal(err)
	}
	swtpmtest.Extend(t, m.tpm, 10, extended)
}

// boot starts a machine by the boot log of a real one.
func boot(t *testing.T, dir string) *machine {
	t.Helper()
	vectors := os.Getenv("SAFECONDUCT_VECTORS")
	if vectors == "" {
		vectors = filepath.Join("..", "..", "..", "shared", "vectors")
	}
	raw, err := os.ReadFile(filepath.Join(vectors, "eventlog", "ubuntu-2104-no-dbx.bin"))
	if err != nil {
		t.Skipf("skipped: no boot log of a real machine at %s; set SAFECONDUCT_VECTORS", vectors)
	}
	m := &machine{tpm: swtpmtest.Start(t), bootLog: filepath.Join(dir, "boot.log"), imaList: filepath.Join(dir, "ima.list")}
	if err := os.WriteFile(m.bootLog, raw, 0o600); err != nil {
		t.Fatal(err)
	}
	m.replay(t)
	m.run(t, "boot_aggregate", []byte("aggregate"))
	m.run(t, "/usr/bin/qemu-system-x86_64", []byte("a VMM"))
	m.run(t, "/usr/lib/systemd/systemd", []byte("systemd"))
	return m
}

// replay extends the TPM by the boot log.
func (m *machine) replay(t *testing.T) {
	t.Helper()
	raw, err := os.ReadFile(m.bootLog)
	if err != nil {
		t.Fatal(err)
	}
	log, err := bootlog.Parse(raw)
	if err != nil || log.Locality != 0 {
		t.Fatal(err, log.Locality)
	}
	for _, e := range log.Events {
		if e.Extends() {
			swtpmtest.Extend(t, m.tpm, e.PCR, [32]byte(e.Digests[crypto.SHA256]))
		}
	}
}

// measured gives both nodes such a machine, and the policy its reference values: what is golden now is accepted.
func measured(t *testing.T, machines map[string]*machine) change {
	return func(r *rig, p *policy.Policy) {
		list := map[string]any{"digests": map[string][]string{}}
		for path, content := range map[string]string{"boot_aggregate": "aggregate", "/usr/bin/qemu-system-x86_64": "a VMM", "/usr/lib/systemd/systemd": "systemd"} {
			sum := sha256.Sum256([]byte(content))
			list["digests"].(map[string][]string)[path] = []string{hex.EncodeToString(sum[:])}
		}
		runtime, err := json.Marshal(list)
		if err != nil {
			t.Fatal(err)
		}
		p.Integrity.IMA = appraise.IMA{Required: true, RuntimePolicy: runtime}
		p.Integrity.Boot.Required = true
		p.Integrity.TPM.Required = nil
		p.Integrity.PCRs = map[int][]appraise.Digest{}
		for i, n := range []*testNode{r.src, r.dst} {
			m := boot(t, n.dir)
			machines[n.name] = m
			n.cfg.Integrity.TPM, n.cfg.Integrity.BootLog, n.cfg.Integrity.IMAList = m.tpm, m.bootLog, m.imaList
			n.cfg.Integrity.PCRs = []int{0, 1, 2, 3, 4, 5, 6, 7, 10}
			tpm, err := hosttpm.Open(m.tpm)
			if err != nil {
				t.Fatal(err)
			}
			quote, err := tpm.Quote(t.Context(), [32]byte{}, n.cfg.Integrity.PCRs)
			if err != nil {
				t.Fatal(err)
			}
			for _, v := range quote.GetPcrs() {
				if v.GetIndex() == 7 {
					p.Integrity.PCRs[7] = []appraise.Digest{appraise.Digest(v.GetValue())}
				}
			}
			id := handshake.PlatformID([16]byte{byte(i + 1)}, quote.GetAkPublic())
			p.Platforms[i].PlatformID, p.Platforms[i].TPMKey = id[:], quote.GetAkPublic()
		}
	}
}

func TestAHostIsJudgedByItsBootLogItsIMAListAndItsTPM(t *testing.T) {
	machines := map[string]*machine{}
	r := newRig(t, measured(t, machines))
	s, err := r.src.establish(t.Context(), "compute2", v1.Role_ROLE_SOURCE)
	if err != nil {
		t.Fatal(err)
	}
	a := s.GetPeerAppraised()
	if a.GetImaEntries() != 3 || a.GetBootEvents() == 0 || !a.GetTpmQuoteVerified() || a.GetSecureBoot() == "" {
		t.Errorf("appraised %v", a)
	}
	if _, err := r.src.arm("m1"); err != nil {
		t.Fatal(err)
	}
}

func TestWhatChangesOnAHostIsRefusedByName(t *testing.T) {
	for name, tc := range map[string]struct {
		change func(t *testing.T, r *rig, m *machine)
		want   v1.Reason
		item   string
	}{
		"one more program was run": {func(t *testing.T, _ *rig, m *machine) { m.run(t, "/tmp/rootkit", []byte("x")) },
			v1.Reason_REASON_INTEGRITY_MISMATCH, "ima//tmp/rootkit"},
		"another QEMU was run": {func(t *testing.T, _ *rig, m *machine) { m.run(t, "/usr/bin/qemu-system-x86_64", []byte("another")) },
			v1.Reason_REASON_INTEGRITY_MISMATCH, "ima//usr/bin/qemu-system-x86_64"},
		"a program was run and taken out of the list": {func(t *testing.T, _ *rig, m *machine) {
			swtpmtest.Extend(t, m.tpm, 10, [32]byte{1})
		}, v1.Reason_REASON_INTEGRITY_MISMATCH, "ima"},
		"an entry of the list was altered": {func(t *testing.T, _ *rig, m *machine) {
			raw, err := os.ReadFile(m.imaList)
			if err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(m.imaList, bytes.Replace(raw, []byte("/systemd\x00"), []byte("/systemx\x00"), 1), 0o600); err != nil {
				t.Fatal(err)
			}
		}, v1.Reason_REASON_INTEGRITY_MISMATCH, "ima"},
		"a PCR that the boot log does not explain": {func(t *testing.T, _ *rig, m *machine) { swtpmtest.Extend(t, m.tpm, 4, [32]byte{1}) },
			v1.Reason_REASON_INTEGRITY_MISMATCH, "boot/pcr/4"},
		"another Secure Boot state": {func(t *testing.T, _ *rig, m *machine) { swtpmtest.Extend(t, m.tpm, 7, [32]byte{1}) },
			v1.Reason_REASON_INTEGRITY_MISMATCH, "pcr/7"},
		"a file of the VMM": {func(t *testing.T, r *rig, _ *machine) {
			if err := os.WriteFile(r.dst.file, []byte("another"), 0o600); err != nil {
				t.Fatal(err)
			}
		}, v1.Reason_REASON_INTEGRITY_MISMATCH, "vmm/qemu"},
	} {
		t.Run(name, func(t *testing.T) {
			machines := map[string]*machine{}
			r := newRig(t, measured(t, machines))
			tc.change(t, r, machines["compute2"])
			_, err := r.src.establish(t.Context(), "compute2", v1.Role_ROLE_SOURCE)
			got := rpcerror.Refusal(err)
			if err == nil || got.Reason != tc.want || got.Item != tc.item && !strings.Contains(got.Message, tc.item+":") {
				t.Errorf("got %v, item %q; want %v on %s", err, got.Item, tc.want, tc.item)
			}
			r.dst.wantAborted(t)
		})
	}
}

// wantAborted waits until the node's only session has ended: it hears of a refusal a moment after the other side.
func (n *testNode) wantAborted(t *testing.T) {
	t.Helper()
	for range 1000 {
		if s := n.sessions(t); len(s) == 1 && s[0].GetState() == v1.SessionState_SESSION_STATE_ABORTED {
			return
		}
		time.Sleep(5 * time.Millisecond)
	}
	t.Errorf("%s keeps %v", n.name, n.sessions(t))
}

func TestAnotherHostsTPMDoesNotAnswerForThisOne(t *testing.T) {
	machines := map[string]*machine{}
	r := newRig(t, measured(t, machines))
	r.dst.stop()
	clean := boot(t, r.dst.dir)
	r.dst.cfg.Integrity.TPM = clean.tpm
	r.dst.start(t)
	_, err := r.src.establish(t.Context(), "compute2", v1.Role_ROLE_SOURCE)
	want(t, "a clean machine's TPM behind the destination", err, v1.Reason_REASON_PLATFORM_NOT_ENROLLED)
}

func TestAListThatGrewSinceIsJudgedAgainBeforeArm(t *testing.T) {
	machines := map[string]*machine{}
	r := newRig(t, measured(t, machines), func(r *rig, _ *policy.Policy) { r.src.cfg.Sessions.ArmMaxAge = "1ns" })
	if _, err := r.src.establish(t.Context(), "compute2", v1.Role_ROLE_SOURCE); err != nil {
		t.Fatal(err)
	}
	machines["compute2"].run(t, "/usr/lib/systemd/systemd", []byte("systemd")) // known
	if _, err := r.src.arm("m1"); err != nil {
		t.Fatalf("a list that grew by a known entry: %v", err)
	}
	r = newRig(t, measured(t, machines), func(r *rig, _ *policy.Policy) { r.src.cfg.Sessions.ArmMaxAge = "1ns" })
	if _, err := r.src.establish(t.Context(), "compute2", v1.Role_ROLE_SOURCE); err != nil {
		t.Fatal(err)
	}
	machines["compute2"].run(t, "/tmp/rootkit", []byte("x"))
	_, err := r.src.arm("m1")
	want(t, "a list that grew by an unknown entry", err, v1.Reason_REASON_INTEGRITY_MISMATCH)
}

// A host that went through another boot in mid-session, into the very same state: what was established before says nothing about it.
func TestATPMThatWasResetSinceIsRefusedAtArm(t *testing.T) {
	machines := map[string]*machine{}
	r := newRig(t, measured(t, machines), func(r *rig, _ *policy.Policy) { r.src.cfg.Sessions.ArmMaxAge = "1ns" })
	if _, err := r.src.establish(t.Context(), "compute2", v1.Role_ROLE_SOURCE); err != nil {
		t.Fatal(err)
	}
	m := machines["compute2"]
	swtpmtest.Reset(t, m.tpm)
	m.replay(t)
	if err := os.Remove(m.imaList); err != nil {
		t.Fatal(err)
	}
	m.run(t, "boot_aggregate", []byte("aggregate"))
	m.run(t, "/usr/bin/qemu-system-x86_64", []byte("a VMM"))
	m.run(t, "/usr/lib/systemd/systemd", []byte("systemd"))
	_, err := r.src.arm("m1")
	want(t, "a TPM that was reset", err, v1.Reason_REASON_TPM_QUOTE_INVALID)
	if err != nil && !strings.Contains(err.Error(), "reset") {
		t.Errorf("the refusal does not speak of the reset: %v", err)
	}
}

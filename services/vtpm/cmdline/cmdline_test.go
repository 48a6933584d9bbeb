package cmdline

import (
	"errors"
	"slices"
	"strings"
	"testing"
)

const id = "6b8a9d3e-2f41-4c57-9a1e-0d6f3b7c8e21"

func fields(s string) []string { return strings.Fields(s) }

func TestWhatLibvirtBuildsRunsBehindTheHelper(t *testing.T) {
	for name, tc := range map[string]struct {
		line string
		want Call
		args string
	}{
		"libvirt 9.0, TPM 2.0": {
			"socket --ctrl type=unixio,path=/run/libvirt/qemu/swtpm/1-vm-swtpm.sock,mode=0600 --tpmstate dir=/var/lib/libvirt/swtpm/" + id +
				"/tpm2,mode=0600 --log file=/var/log/swtpm/libvirt/qemu/vm-swtpm.log --terminate --tpm2",
			Call{Ctrl: Socket{"/run/libvirt/qemu/swtpm/1-vm-swtpm.sock", 0o600, -1, -1}, Instance: id, TPM2: true, State: "/var/lib/libvirt/swtpm/" + id + "/tpm2",
				LogFile: "/var/log/swtpm/libvirt/qemu/vm-swtpm.log"},
			"socket --tpmstate dir=/var/lib/libvirt/swtpm/" + id + "/tpm2,mode=0600 --log file=/var/log/swtpm/libvirt/qemu/vm-swtpm.log --terminate --tpm2" +
				" --ctrl type=unixio,clientfd=9",
		},
		"with <encryption>": {
			"socket --ctrl type=unixio,path=/s,mode=0600 --tpmstate dir=/var/lib/libvirt/swtpm/" + id + "/tpm2,mode=0600 --log file=/l --terminate --tpm2" +
				" --key pwdfd=27,mode=aes-256-cbc --migration-key pwdfd=29,mode=aes-256-cbc",
			Call{Ctrl: Socket{"/s", 0o600, -1, -1}, Instance: id, TPM2: true, HasKey: true, KeyFDs: []int{27, 29}, State: "/var/lib/libvirt/swtpm/" + id + "/tpm2", LogFile: "/l"},
			"socket --tpmstate dir=/var/lib/libvirt/swtpm/" + id + "/tpm2,mode=0600 --log file=/l --terminate --tpm2" +
				" --key pwdfd=27,mode=aes-256-cbc --migration-key pwdfd=29,mode=aes-256-cbc --ctrl type=unixio,clientfd=9",
		},
		"shared storage, incoming": {
			"socket --ctrl type=unixio,path=/s,mode=0600 --tpmstate dir=/shared/" + id + "/tpm2,mode=0600 --log file=/l --terminate --tpm2 --migration release-lock-outgoing,incoming",
			Call{Ctrl: Socket{"/s", 0o600, -1, -1}, Instance: id, TPM2: true, Incoming: true, State: "/shared/" + id + "/tpm2", LogFile: "/l"},
			"socket --tpmstate dir=/shared/" + id + "/tpm2,mode=0600 --log file=/l --terminate --tpm2 --migration release-lock-outgoing,incoming --ctrl type=unixio,clientfd=9",
		},
		"libvirt 11, locked, debug level": {
			"socket --ctrl type=unixio,path=/s,mode=0600 --tpmstate dir=/v/" + id + "/tpm2,mode=0600,lock --log file=/l,level=20 --terminate --tpm2",
			Call{Ctrl: Socket{"/s", 0o600, -1, -1}, Instance: id, TPM2: true, State: "/v/" + id + "/tpm2", LogFile: "/l"},
			"socket --tpmstate dir=/v/" + id + "/tpm2,mode=0600,lock --log file=/l,level=20 --terminate --tpm2 --ctrl type=unixio,clientfd=9",
		},
		"libvirt 11, <source type='file'>": {
			"socket --ctrl type=unixio,path=/s,mode=0600 --tpmstate backend-uri=file:///v/" + id + ".d/" + id + "/state,lock --log file=/l --terminate --tpm2",
			Call{Ctrl: Socket{"/s", 0o600, -1, -1}, Instance: id, TPM2: true, State: "/v/" + id + ".d/" + id + "/state", LogFile: "/l"},
			"socket --tpmstate backend-uri=file:///v/" + id + ".d/" + id + "/state,lock --log file=/l --terminate --tpm2 --ctrl type=unixio,clientfd=9",
		},
		"a state directory that names no VM": {
			"socket --ctrl type=unixio,path=/s --tpmstate dir=/v/mine --tpm2",
			Call{Ctrl: Socket{"/s", 0o770, -1, -1}, TPM2: true, State: "/v/mine"}, "socket --tpmstate dir=/v/mine --tpm2 --ctrl type=unixio,clientfd=9",
		},
		"TPM 1.2": {
			"socket --ctrl type=unixio,path=/s,mode=0600 --tpmstate dir=/v/" + id + "/tpm1.2,mode=0600 --log file=/l --terminate",
			Call{Ctrl: Socket{"/s", 0o600, -1, -1}, Instance: id, State: "/v/" + id + "/tpm1.2", LogFile: "/l"},
			"socket --tpmstate dir=/v/" + id + "/tpm1.2,mode=0600 --log file=/l --terminate --ctrl type=unixio,clientfd=9",
		},
		"owner, pid file, the = form, an abbreviation and an option of the future": {
			"socket --ctr=type=unixio,path=/s,mode=660,uid=7,gid=8 --tpmstate=dir=/v/" + id + " --pid file=/p --future a=b -t",
			Call{Ctrl: Socket{"/s", 0o660, 7, 8}, Instance: id, PIDFile: "/p", State: "/v/" + id},
			"socket --tpmstate=dir=/v/" + id + " --future a=b -t --ctrl type=unixio,clientfd=9",
		},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := Parse(fields(tc.line))
			if err != nil {
				t.Fatal(err)
			}
			if !got.Behind || got.Ctrl != tc.want.Ctrl || got.Instance != tc.want.Instance || got.State != tc.want.State || got.HasKey != tc.want.HasKey ||
				got.Incoming != tc.want.Incoming || got.TPM2 != tc.want.TPM2 || got.PIDFile != tc.want.PIDFile || got.LogFile != tc.want.LogFile ||
				!slices.Equal(got.KeyFDs, tc.want.KeyFDs) {
				t.Errorf("%+v, expected %+v", got, tc.want)
			}
			if args := strings.Join(got.Args(9), " "); args != tc.args {
				t.Errorf("swtpm gets\n%s, expected\n%s", args, tc.args)
			}
		})
	}
}

func TestTheRestGoesStraightThrough(t *testing.T) {
	for _, line := range []string{
		"", "--version", "socket --print-capabilities", "socket --print-states --tpmstate dir=/x --ctrl type=unixio,path=/s",
		"chardev --vtpm-proxy --ctrl type=unixio,path=/s", "cuse -n x", "socket --help", "socket --print-cap",
		// swtpm_setup's own use
		"socket --flags not-need-init,startup-clear --tpmstate dir=/x --tpm2 --server type=tcp,fd=5 --ctrl type=unixio,clientfd=6",
		"socket --tpm2 --ctrl type=tcp,port=2322 --server type=tcp,port=2321 --tpmstate dir=/x --daemon",
	} {
		got, err := Parse(fields(line))
		if err != nil || got.Behind {
			t.Errorf("%q: %+v, %v", line, got, err)
		}
	}
}

func TestWhatCannotBeServedIsRefused(t *testing.T) {
	for name, line := range map[string]string{
		"daemon":             "socket --daemon --ctrl type=unixio,path=/s --tpmstate dir=/v/" + id,
		"daemon, short":      "socket -d --ctrl type=unixio,path=/s --tpmstate dir=/v/" + id,
		"a user by name":     "socket --ctrl type=unixio,path=/s,uid=tss",
		"a mode that is not": "socket --ctrl type=unixio,path=/s,mode=rw",
		"a key descriptor":   "socket --ctrl type=unixio,path=/s --key pwdfd=-3",
		"a pid descriptor":   "socket --ctrl type=unixio,path=/s --pid fd=x",
		"a flood":            "socket " + strings.Repeat("-t ", MaxArguments),
		"a long one":         "socket --log " + strings.Repeat("x", MaxArgument+1),
	} {
		if got, err := Parse(fields(line)); err == nil {
			t.Errorf("%s: %+v", name, got)
		}
	}
	if _, err := Parse(fields("socket -d --ctrl type=unixio,path=/s")); !errors.Is(err, ErrUnsupported) {
		t.Errorf("%v", err)
	}
}

func FuzzParse(f *testing.F) {
	f.Add("socket --ctrl type=unixio,path=/s,mode=0600 --tpmstate dir=/v/" + id + "/tpm2 --key pwdfd=3 --pid fd=4 -t --tpm2")
	f.Add("socket --ctrl=type=unixio,path=/s --ctrl type=unixio,path=/t -d")
	f.Fuzz(func(t *testing.T, line string) {
		c, err := Parse(fields(line))
		if err != nil {
			return
		}
		if !c.Behind {
			return
		}
		// Whatever was on the line, swtpm has one way of control, and it is ours.
		for _, arg := range c.Args(9) {
			if strings.Contains(arg, "path="+c.Ctrl.Path) && strings.HasPrefix(arg, "type=unixio") {
				t.Errorf("swtpm gets %q", arg)
			}
		}
		again, err := Parse(c.Args(9))
		if err != nil || again.Behind {
			t.Errorf("the rewritten line is %+v, %v", again, err)
		}
	})
}

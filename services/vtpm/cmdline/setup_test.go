package cmdline

import (
	"slices"
	"strings"
	"testing"
)

func TestSetupGetsAnotherKeyAndStaysAsItIs(t *testing.T) {
	const state = "/var/lib/libvirt/swtpm/" + id + "/tpm2"
	for name, tc := range map[string]struct {
		line   string
		want   Setup
		args   string
		passes bool
	}{
		"libvirt 9.0, a new VM": {
			"--tpm2 --tpm-state " + state + " --vmid vm:" + id + " --logfile /l --createek --create-ek-cert --create-platform-cert --lock-nvram --not-overwrite",
			Setup{State: state, Instance: id, LogFile: "/l"},
			"--tpm2 --tpm-state " + state + " --vmid vm:" + id + " --logfile /l --createek --create-ek-cert --create-platform-cert --lock-nvram --not-overwrite --k",
			false,
		},
		"an incoming VM with <encryption>": {
			"--tpm2 --pwdfile-fd 27 --cipher aes-256-cbc --tpm-state " + state + " --overwrite",
			Setup{State: state, Instance: id, KeyFDs: []int{27}, HasKey: true}, "--tpm2 --tpm-state " + state + " --overwrite --k", false,
		},
		"PCR banks, as one word, of a directory by its URI": {
			"--tpm2 --tpmstate=dir://" + state + " --keyfile=/k --cip aes-256-cbc --pcr-banks=sha256 --reconfigure",
			Setup{State: state, Instance: id, HasKey: true}, "--tpm2 --tpmstate=dir://" + state + " --pcr-banks=sha256 --reconfigure --k", false,
		},
		"a file": {
			"--tpm2 --tpm-state file:///v/" + id + "/state --future x", Setup{State: "/v/" + id + "/state", Instance: id, StateFile: true},
			"--tpm2 --tpm-state file:///v/" + id + "/state --future x --k", false,
		},
		"its capabilities":           {"--print-capabilities --tpm-state " + state, Setup{}, "", true},
		"its configuration files":    {"--create-config-files skip-if-exist", Setup{}, "", true},
		"no state":                   {"--tpm2", Setup{}, "", true},
		"a value that is missing":    {"--tpm-state", Setup{}, "", true},
		"a state that names no VM":   {"--tpm-state /v/mine", Setup{State: "/v/mine"}, "--tpm-state /v/mine --k", false},
		"an option cut short":        {"--tpm-s " + state, Setup{State: state, Instance: id}, "--tpm-s " + state + " --k", false},
		"help, by its short option":  {"-h --tpm-state " + state, Setup{}, "", true},
		"a word that means nothing":  {"word --tpm-state " + state, Setup{State: state, Instance: id}, "word --tpm-state " + state + " --k", false},
		"a TPM 1.2":                  {"--tpm-state " + state, Setup{State: state, Instance: id}, "--tpm-state " + state + " --k", false},
		"the last of several states": {"--tpm-state /a --tpm-state " + state, Setup{State: state, Instance: id}, "--tpm-state /a --tpm-state " + state + " --k", false},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := ParseSetup(fields(tc.line))
			if err != nil {
				t.Fatal(err)
			}
			if got.Makes == tc.passes {
				t.Fatalf("%+v", got)
			}
			if tc.passes {
				return
			}
			if got.State != tc.want.State || got.Instance != tc.want.Instance || got.StateFile != tc.want.StateFile || got.HasKey != tc.want.HasKey ||
				got.LogFile != tc.want.LogFile || !slices.Equal(got.KeyFDs, tc.want.KeyFDs) {
				t.Errorf("%+v, expected %+v", got, tc.want)
			}
			if args := strings.Join(got.Args("--k"), " "); args != tc.args {
				t.Errorf("swtpm_setup gets\n%s, expected\n%s", args, tc.args)
			}
		})
	}
	for _, line := range []string{"--pwdfile-fd x", "--keyfile-fd -1", "--tpm-state " + strings.Repeat("x", MaxArgument+1)} {
		if got, err := ParseSetup(fields(line)); err == nil {
			t.Errorf("%.40q: %+v", line, got)
		}
	}
}

func TestSWTPMIsLeftWithoutTheCallersKey(t *testing.T) {
	for line, want := range map[string]struct {
		args   string
		unused []int
		left   []int
	}{
		"socket --ctrl type=unixio,path=/s --tpm2 --key pwdfd=27,mode=aes-256-cbc --migration-key pwdfd=29,mode=aes-256-cbc --terminate": {
			"socket --tpm2 --migration-key pwdfd=29,mode=aes-256-cbc --terminate --ctrl type=unixio,clientfd=9 --x", []int{27}, []int{29},
		},
		"socket --ctrl type=unixio,path=/s --key=fd=5 --key file=/k --migration-key fd=5 --tpm2": {
			"socket --migration-key fd=5 --tpm2 --ctrl type=unixio,clientfd=9 --x", nil, []int{5},
		},
		"socket --ctrl type=unixio,path=/s --tpm2": {"socket --tpm2 --ctrl type=unixio,clientfd=9 --x", nil, nil},
	} {
		c, err := Parse(fields(line))
		if err != nil {
			t.Fatal(err)
		}
		unused := c.DropKey()
		if args := strings.Join(c.Args(9, "--x"), " "); args != want.args || !slices.Equal(unused, want.unused) || !slices.Equal(c.KeyFDs, want.left) || c.HasKey {
			t.Errorf("%q:\n%s, unused %v, left %v, expected\n%s, unused %v, left %v", line, args, unused, c.KeyFDs, want.args, want.unused, want.left)
		}
	}
}

func FuzzParseSetup(f *testing.F) {
	f.Add("--tpm2 --pwdfile-fd 27 --cipher aes-256-cbc --tpm-state /v/" + id + " --overwrite")
	f.Add("--keyfile=/k --print-capabilities")
	f.Fuzz(func(t *testing.T, line string) {
		args := fields(line)
		s, err := ParseSetup(args)
		if err != nil {
			return
		}
		again, err := ParseSetup(s.Args())
		if err != nil || again.HasKey || len(again.KeyFDs) > 0 || s.Makes && (again.State != s.State || !again.Makes) {
			t.Errorf("%q leaves %q: %+v, %v", args, s.Args(), again, err)
		}
	})
}

package cmdline

import (
	"fmt"
	"slices"
)

// Setup is a command line of swtpm_setup, without the program's name.
type Setup struct {
	// Makes says that it makes or changes the state of a TPM. Everything else (--print-capabilities and the like) is for swtpm_setup as it is.
	Makes bool
	// State is the path of the state directory or, with StateFile, of the file, and Instance the UUID of the VM in it: empty if there is none.
	State, Instance string
	StateFile       bool
	// KeyFDs are the descriptors that carry the caller's key or passphrase, and HasKey says that there is one, however it is given.
	KeyFDs []int
	HasKey bool
	// LogFile is swtpm_setup's log; empty if it has none of its own.
	LogFile string

	rest []string
}

// setup has swtpm_setup's options, of 0.7.1 to 0.10.1. That of --create-config-files is optional, and follows after an equals sign only.
var setup = grammar{long: map[string]bool{
	"runas": true, "tpm-state": true, "tpmstate": true, "tpm": true, "swtpm_ioctl": true, "tpm2": false, "createek": false, "allow-signing": false,
	"decryption": false, "ecc": false, "take-ownership": false, "ownerpass": true, "owner-well-known": false, "srkpass": true, "srk-well-known": false,
	"create-ek-cert": false, "create-platform-cert": false, "create-spk": false, "lock-nvram": false, "display": false, "config": true, "vmid": true,
	"logfile": true, "keyfile": true, "keyfile-fd": true, "pwdfile": true, "pwdfile-fd": true, "cipher": true, "overwrite": false, "not-overwrite": false,
	"pcr-banks": true, "rsa-keysize": true, "write-ek-cert-files": true, "create-config-files": false, "tcsd-system-ps-file": true,
	"reconfigure": false, "print-capabilities": false, "print-profiles": false, "profile": true, "profile-name": true, "profile-file": true,
	"profile-file-fd": true, "profile-remove-disabled": true, "version": false, "help": false,
}, short: map[string]string{"-h": "help", "-?": "help"}}

// setupAsks are options with which swtpm_setup makes no state.
var setupAsks = []string{"print-capabilities", "print-profiles", "create-config-files", "version", "help"}

// ParseSetup reads a command line of swtpm_setup.
func ParseSetup(args []string) (*Setup, error) {
	if err := checkSize(args); err != nil {
		return nil, err
	}
	s := &Setup{}
	asked := false
	for i := 0; i < len(args); i++ {
		name, value, consumed := setup.option(args[i:])
		keep := true
		switch name {
		case "tpm-state", "tpmstate":
			s.State, s.StateFile = location(value)
			s.Instance = instanceOf(s.State)
		case "logfile":
			s.LogFile = value
		case "keyfile-fd", "pwdfile-fd":
			fd, err := descriptor(value)
			if err != nil {
				return nil, fmt.Errorf("swtpm_setup's --%s: %w", name, err)
			}
			s.KeyFDs = append(s.KeyFDs, fd)
			s.HasKey, keep = true, false
		case "keyfile", "pwdfile":
			s.HasKey, keep = true, false
		case "cipher":
			keep = false
		default:
			asked = asked || slices.Contains(setupAsks, name)
		}
		if keep {
			s.rest = append(s.rest, args[i:min(len(args), i+consumed)]...)
		}
		i += consumed - 1
	}
	s.Makes = s.State != "" && !asked
	return s, nil
}

// Args are swtpm_setup's arguments without the caller's key, and with what is added for another.
func (s *Setup) Args(key ...string) []string { return slices.Concat(s.rest, key) }

package enclave

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/safeconduct/safeconduct/tee/sgx"
)

// document is every key that EGo v1.9.0 reads (docs/reference/config.md there). EGo itself ignores a key that it does not know.
type document struct {
	Exe             string `json:"exe"`
	Key             string `json:"key"`
	Debug           *bool  `json:"debug"`
	HeapSize        int    `json:"heapSize"`
	ExecutableHeap  *bool  `json:"executableHeap"`
	ProductID       uint16 `json:"productID"`
	SecurityVersion uint16 `json:"securityVersion"`
	Mounts          []struct {
		Source   string `json:"source"`
		Target   string `json:"target"`
		Type     string `json:"type"`
		ReadOnly *bool  `json:"readOnly"`
	} `json:"mounts"`
	Env []struct {
		Name     string `json:"name"`
		Value    string `json:"value"`
		FromHost bool   `json:"fromHost"`
	} `json:"env"`
	Files []struct {
		Source string `json:"source"`
		Target string `json:"target"`
	} `json:"files"`
}

func parse(raw []byte) (*document, error) {
	var d document
	dec := json.NewDecoder(bytes.NewReader(raw))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&d); err != nil {
		return nil, err
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return nil, errors.New("something follows the document")
	}
	return &d, nil
}

// writable are the host's directories that the enclave writes to; it reads all others.
func writable() []string { return []string{"/var/lib/safeconduct", "/run/safeconduct", "/host/dev"} }

func check(raw []byte, debug bool) error {
	d, err := parse(raw)
	if err != nil {
		return err
	}
	switch {
	case d.Exe != "safeconductd" || d.Key != "signing-key.pem":
		// "ego sign" writes both into the payload that is measured: another spelling is another MRENCLAVE.
		return fmt.Errorf("exe and key: found %q and %q", d.Exe, d.Key)
	case d.Debug == nil || *d.Debug != debug:
		return fmt.Errorf("debug must be given, and %v", debug)
	case d.ExecutableHeap == nil || *d.ExecutableHeap:
		return errors.New("executableHeap must be given, and false")
	case d.HeapSize < 512 || d.HeapSize > 16384:
		return fmt.Errorf("heapSize: found %d, expected 512 (EGo's minimum for a service) to 16384 (the most without ego_largeheap)", d.HeapSize)
	case d.ProductID == 0 || d.SecurityVersion == 0:
		return errors.New("productID and securityVersion must be given")
	}
	return errors.Join(checkMounts(d), checkEnv(d), checkFiles(d))
}

func checkMounts(d *document) error {
	seen := map[string]bool{}
	for _, m := range d.Mounts {
		switch {
		case m.Type != "hostfs":
			return fmt.Errorf("mount %s: type %q, expected hostfs", m.Target, m.Type)
		case !path.IsAbs(m.Source) || path.Clean(m.Source) != m.Source || !path.IsAbs(m.Target) || path.Clean(m.Target) != m.Target:
			return fmt.Errorf("mount %q at %q: EGo takes a relative source from the host's working directory", m.Source, m.Target)
		case seen[m.Target]:
			return fmt.Errorf("mount %s: twice", m.Target)
		case m.ReadOnly == nil || *m.ReadOnly == slices.Contains(writable(), m.Target):
			return fmt.Errorf("mount %s: readOnly must be given, and false only for %v", m.Target, writable())
		}
		// The enclave's own files stay its own: the measured keys, /dev (randomness), and what libraries look for.
		for _, own := range []string{path.Dir(sgx.PolicyKeysPath), "/dev", "/proc", "/sys", "/edg", "/etc/ssl", "/etc/resolv.conf", "/usr", "/tmp"} {
			if within(own, m.Target) || within(m.Target, own) {
				return fmt.Errorf("mount %s: hides %s from the enclave", m.Target, own)
			}
		}
		if m.Target != "/host" && !strings.HasPrefix(m.Target, "/host/") && m.Target != m.Source {
			return fmt.Errorf("mount %s: found source %s; unix sockets are named as the host names them", m.Target, m.Source)
		}
		seen[m.Target] = true
	}
	for _, target := range append(writable(), "/etc/safeconduct", "/host") {
		if !seen[target] {
			return fmt.Errorf("mount %s: missing", target)
		}
	}
	return nil
}

// within says whether a is b or below it.
func within(a, b string) bool { return a == b || strings.HasPrefix(a, strings.TrimSuffix(b, "/")+"/") }

func checkEnv(d *document) error {
	for _, e := range d.Env {
		if e.FromHost || e.Name != "GOMEMLIMIT" {
			return fmt.Errorf("env %s: the enclave takes nothing from the host's environment, and nothing but GOMEMLIMIT is set", e.Name)
		}
		limit, err := strconv.Atoi(strings.TrimSuffix(e.Value, "MiB"))
		if err != nil || limit > d.HeapSize*7/8 || limit < d.HeapSize/2 {
			return fmt.Errorf("env GOMEMLIMIT: found %s, expected MiB, from a half to 7/8 of heapSize %d", e.Value, d.HeapSize)
		}
	}
	if len(d.Env) != 1 {
		return fmt.Errorf("env: found %d variables, expected GOMEMLIMIT", len(d.Env))
	}
	return nil
}

func checkFiles(d *document) error {
	if len(d.Files) != 1 || d.Files[0].Source != "policy-keys.pem" || d.Files[0].Target != sgx.PolicyKeysPath {
		return fmt.Errorf("files: found %v, expected policy-keys.pem at %s alone", d.Files, sgx.PolicyKeysPath)
	}
	return nil
}

func read(t *testing.T, name string) []byte {
	t.Helper()
	raw, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

func TestEnclaveJSONIsSound(t *testing.T) {
	if err := check(read(t, "enclave.json"), false); err != nil {
		t.Error(err)
	}
}

func TestPreproductionDiffersInDebugAndProductOnly(t *testing.T) {
	raw := read(t, "enclave.preproduction.json")
	if err := check(raw, true); err != nil {
		t.Error(err)
	}
	pre, err := parse(raw)
	if err != nil {
		t.Fatal(err)
	}
	production, err := parse(read(t, "enclave.json"))
	if err != nil {
		t.Fatal(err)
	}
	if pre.ProductID == production.ProductID {
		t.Error("both have one product id: a policy for the one would accept the other's signer and product")
	}
	pre.Debug, pre.ProductID = production.Debug, production.ProductID
	if !reflect.DeepEqual(pre, production) {
		t.Error("they differ in more than debug and productID")
	}
}

func TestAnUnsoundEnclaveJSONIsRefused(t *testing.T) {
	good := string(read(t, "enclave.json"))
	for name, tc := range map[string]struct{ from, to, says string }{
		"a key that EGo does not know":              {`"debug"`, `"debugg"`, "unknown field"},
		"something after the document":              {"\n}\n", "\n}\n{}", "something follows"},
		"a debug enclave":                           {`"debug": false`, `"debug": true`, "debug must be given"},
		"no word on debug":                          {`"debug": false,`, ``, "debug must be given"},
		"an executable heap":                        {`"executableHeap": false`, `"executableHeap": true`, "executableHeap"},
		"a heap below EGo's minimum":                {`"heapSize": 2048`, `"heapSize": 256`, "heapSize"},
		"a heap that needs another build":           {`"heapSize": 2048`, `"heapSize": 20000`, "heapSize"},
		"another executable":                        {`"exe": "safeconductd"`, `"exe": "x/safeconductd"`, "exe and key"},
		"another key":                               {`"signing-key.pem"`, `"private.pem"`, "exe and key"},
		"no product":                                {`"productID": 1`, `"productID": 0`, "productID"},
		"a product beyond 16 bits":                  {`"productID": 1`, `"productID": 65536`, "productID"},
		"no security version":                       {`"securityVersion": 1,`, ``, "securityVersion"},
		"a mount over the policy keys":              {`"target": "/host"`, `"target": "/safeconduct"`, "hides /safeconduct"},
		"a mount over the policy keys' file":        {`"target": "/host"`, `"target": "/safeconduct/policy-keys.pem"`, "hides /safeconduct"},
		"the host's root as root":                   {`"target": "/host"`, `"target": "/"`, "hides"},
		"the host's devices as devices":             {`"target": "/host/dev"`, `"target": "/dev"`, "readOnly"},
		"the host's devices as devices, read only":  {`"source": "/dev",` + "\n            " + `"target": "/host/dev",` + "\n            " + `"type": "hostfs",` + "\n            " + `"readOnly": false`, `"source": "/dev", "target": "/dev", "type": "hostfs", "readOnly": true`, "hides /dev"},
		"the host's /etc":                           {`"target": "/etc/safeconduct"`, `"target": "/etc"`, "hides /etc/ssl"},
		"a relative source":                         {`"source": "/etc/safeconduct"`, `"source": "etc"`, "working directory"},
		"a source that is not clean":                {`"source": "/etc/safeconduct"`, `"source": "/etc/../safeconduct"`, "working directory"},
		"a writable configuration":                  {`"readOnly": true`, `"readOnly": false`, "readOnly must be given"},
		"a mount without a word on writing":         {`"type": "hostfs",` + "\n            " + `"readOnly": true`, `"type": "hostfs"`, "readOnly must be given"},
		"a state directory in the enclave's memory": {`"target": "/var/lib/safeconduct",` + "\n            " + `"type": "hostfs"`, `"target": "/var/lib/safeconduct", "type": "memfs"`, "expected hostfs"},
		"a socket under another name":               {`"source": "/run/safeconduct"`, `"source": "/var/run/safeconduct"`, "unix sockets"},
		"a target twice":                            {`"target": "/run/safeconduct"`, `"target": "/var/lib/safeconduct"`, "twice"},
		"no mount of the host's files":              {`"target": "/host"`, `"target": "/hosts"`, "unix sockets"},
		"a variable of the host":                    {`"value": "1792MiB"`, `"fromHost": true`, "nothing from the host's environment"},
		"GODEBUG":                                   {`"GOMEMLIMIT"`, `"GODEBUG"`, "nothing but GOMEMLIMIT"},
		"a memory limit beyond the heap":            {`"1792MiB"`, `"4096MiB"`, "GOMEMLIMIT: found 4096MiB"},
		"a memory limit that is no number":          {`"1792MiB"`, `"off"`, "GOMEMLIMIT: found off"},
		"policy keys elsewhere":                     {`/policy-keys.pem"`, `/keys.pem"`, "files"},
		"policy keys of another name":               {`"source": "policy-keys.pem"`, `"source": "/etc/policy-keys.pem"`, "files"},
	} {
		t.Run(name, func(t *testing.T) {
			bad := strings.Replace(good, tc.from, tc.to, 1)
			if bad == good {
				t.Fatal("the change changes nothing")
			}
			if err := check([]byte(bad), false); err == nil || !strings.Contains(err.Error(), tc.says) {
				t.Errorf("got %v, want an error that says %q", err, tc.says)
			}
		})
	}
}

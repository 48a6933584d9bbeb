package chart

import (
	"bufio"
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func newBuffered(raw []byte) *bufio.Reader { return bufio.NewReader(bytes.NewReader(raw)) }

// Every mistake is refused before anything reaches the cluster, with words that name the value and, where they can, what to do.
func TestMistakesInValuesAreRefused(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		base, set string
		says      []string
	}{
		"a mode that there is not":                 {"intel", "mode=sgx", []string{"/mode", "'intel', 'simulated'"}},
		"a key that there is not":                  {"intel", "modes=intel", []string{"additional properties 'modes' not allowed"}},
		"a mistyped key deep inside":               {"intel", "conf.safeconductd.peer.max_handshake=3", []string{"/conf/safeconductd/peer", "'max_handshake' not allowed"}},
		"one node":                                 {"intel", "nodes[1]=null", []string{"/nodes"}},
		"a node's name with an underscore":         {"intel", "nodes[0].host=compute_1", []string{"/nodes/0/host", "compute_1"}},
		"an address with a port":                   {"intel", "nodes[0].address=192.0.2.11:7443", []string{"/nodes/0/address"}},
		"a node twice":                             {"intel", "nodes[1].host=compute1", []string{"host compute1 is listed twice"}},
		"a port out of range":                      {"intel", "network.node.port=70000", []string{"/network/node/port", "want 65,535"}},
		"a port in words":                          {"intel", "network.node.port=peer", []string{"/network/node/port", "want integer"}},
		"a quantity with a space":                  {"intel", "sgx.resources.sgx\\.intel\\.com/epc=2 Gi", []string{"sgx.intel.com~1epc", "2 Gi"}},
		"a duration without a unit":                {"intel", "conf.safeconductd.sessions.armed_ttl=120x", []string{"/conf/safeconductd/sessions/armed_ttl"}},
		"a caller that is a name":                  {"intel", "conf.safeconductd.local.callers.MigrationService[0]=nova", []string{"/callers/MigrationService/0", "want integer"}},
		"a service that is none":                   {"intel", "conf.safeconductd.local.callers.migration[0]=1", []string{"invalid propertyName 'migration'"}},
		"a pull policy of lower case":              {"intel", "images.pull_policy=always", []string{"/images/pull_policy", "'Always'"}},
		"an image without a version":               {"intel", "images.tags.safeconduct=registry.example/node", []string{"/images/tags/safeconduct"}},
		"the image latest":                         {"intel", "images.tags.safeconduct=registry.example/node:latest", []string{"images.tags.safeconduct", "different measurements"}},
		"a manifest that is neither on nor off":    {"intel", "manifests.daemonset=enabled", []string{"/manifests/daemonset", "want boolean"}},
		"an update strategy that there is not":     {"intel", "pod.lifecycle.pod_replacement_strategy=Recreate", []string{"'RollingUpdate', 'OnDelete'"}},
		"a drain that outlasts the pod":            {"intel", "pod.lifecycle.drain_deadline=200", []string{"drain_deadline is 200 s", "termination_grace_period, 180 s"}},
		"a toleration's effect":                    {"intel", "pod.tolerations[0].effect=NoRun", []string{"/pod/tolerations/0/effect"}},
		"a Secret for all nodes' certificates":     {"intel", "certificates.source=secret", []string{"/certificates/source", "'host_path'"}},
		"a CSI driver without a name":              {"intel", "certificates.source=csi", []string{"certificates.csi.driver is missing"}},
		"a PCR that there is not":                  {"intel", "conf.safeconductd.integrity.pcrs[0]=24", []string{"/integrity/pcrs/0"}},
		"a kind of item that there is not":         {"intel", "conf.safeconductd.integrity.items[0].kind=binary", []string{"/integrity/items/0/kind", "'kernel-image'"}},
		"an IMA list without a TPM":                {"intel", "tpm.resource=", []string{"ima_list needs a TPM"}},
		"two sources of collateral":                {"intel", "conf.safeconductd.collateral.dir=/etc/x", []string{"2 of pccs, bundle and dir are given, expected one"}},
		"no policy":                                {"intel", "conf.policy.existing_configmap=", []string{"conf.policy: give envelope"}},
		"a policy that is not signed":              {"simulated", `conf.policy.envelope=\{"schema": 1\}`, []string{"is not a signed policy"}},
		"the keys of a simulation on hardware":     {"intel", "conf.policy.keys=-----BEGIN PUBLIC KEY-----", []string{"for mode simulated"}},
		"a simulation without keys":                {"simulated", "conf.policy.keys=", []string{"conf.policy.keys and conf.simulated.root are missing"}},
		"a private key":                            {"simulated", "conf.policy.keys=-----BEGIN PRIVATE KEY-----", []string{"this is a private key"}},
		"the quote library's file in a simulation": {"simulated", "conf.qcnl.pccs_url=x", []string{"conf.qcnl is for mode intel"}},
		"the tunnel as root":                       {"simulated", "tunnel.uid=0", []string{"/tunnel/uid"}},
		"the tunnel as the node service":           {"simulated", "tunnel.uid=64061", []string{"that uid may call everything"}},
		"a helper's directory that is shared":      {"intel", "helper.directory=/usr/local/bin", []string{"/helper/directory"}},
		"a helper's method":                        {"intel", "helper.method=divert", []string{"/helper/method", "'directory', 'host'"}},
		"an agent without a clouds.yaml":           {"simulated", "agent.clouds_secret=", []string{"agent.clouds_secret is missing"}},
		"the agent as the tunnel":                  {"simulated", "agent.uid=64062", []string{"tells its callers apart by uid"}},
		"metrics on loopback for Prometheus":       {"simulated", "network.metrics.address=127.0.0.1", []string{"Prometheus cannot reach"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, err := render(t, "-f", values(c.base), "--set", c.set)
			if err == nil {
				t.Fatal("accepted")
			}
			for _, s := range c.says {
				if !strings.Contains(err.Error(), s) {
					t.Errorf("it says %v; expected %q in it", err, s)
				}
			}
		})
	}
}

func TestValuesAreRequired(t *testing.T) {
	t.Parallel()
	_, err := render(t)
	if err == nil || !strings.Contains(err.Error(), "/nodes") {
		t.Errorf("%v", err)
	}
}

func TestExtraObjectsAreTemplatesInAListOrAMap(t *testing.T) {
	t.Parallel()
	for name, text := range map[string]string{
		"map":  "extraObjects: {one: {apiVersion: v1, kind: ConfigMap, metadata: {name: '{{ .Release.Name }}-one'}}}",
		"list": "extraObjects: [{apiVersion: v1, kind: ConfigMap, metadata: {name: '{{ .Release.Name }}-one'}}]",
	} {
		file := filepath.Join(t.TempDir(), "values.yaml")
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		raw, err := render(t, "-f", values("intel"), "-f", file)
		if err != nil {
			t.Fatal(err)
		}
		if _, ok := configMaps(decode(t, raw))["sc-one"]; !ok {
			t.Errorf("%s: the object is not there", name)
		}
	}
}

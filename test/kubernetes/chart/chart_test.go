// Package chart renders charts/safeconduct and holds the result to the types of Kubernetes, Prometheus' operator and our own configuration, all strictly:
// a key that nobody knows is a mistake.
package chart

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	monitoring "github.com/prometheus-operator/prometheus-operator/pkg/apis/monitoring/v1"
	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	utilyaml "k8s.io/apimachinery/pkg/util/yaml"
	"k8s.io/client-go/kubernetes/scheme"
	"sigs.k8s.io/yaml"

	"github.com/safeconduct/safeconduct/services/node/config"
	"github.com/safeconduct/safeconduct/services/openstack"
	"github.com/safeconduct/safeconduct/services/tunnel"
	"github.com/safeconduct/safeconduct/services/vtpm/helper"
)

const chart = "../../../charts/safeconduct"

// kubernetesVersions that the chart is rendered for: the oldest that it supports, and two of now.
var kubernetesVersions = []string{"1.27.16", "1.31.14", newest}

// newest is what is rendered for where a test does not care: helm itself believes in 1.20.
const newest = "1.34.4"

func helm(t *testing.T) string {
	t.Helper()
	path, err := filepath.Abs("../../../build/tools/helm")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(path); err != nil {
		t.Skip("helm is not built: make lint-charts")
	}
	return path
}

// render runs helm template; what helm says of the chart's links is left out.
func render(t *testing.T, args ...string) ([]byte, error) {
	t.Helper()
	c := exec.Command(helm(t), append([]string{"template", "sc", chart, "-n", "openstack", "--kube-version", newest}, args...)...)
	var out, diag bytes.Buffer
	c.Stdout, c.Stderr = &out, &diag
	if err := c.Run(); err != nil {
		var lines []string
		for _, l := range strings.Split(diag.String(), "\n") {
			if !strings.Contains(l, "found symbolic link") {
				lines = append(lines, l)
			}
		}
		return nil, errors.New(strings.Join(lines, "\n"))
	}
	return out.Bytes(), nil
}

func values(name string) string { return filepath.Join(chart, "ci", name+"-values.yaml") }

// decode reads every object strictly.
func decode(t *testing.T, raw []byte) []runtime.Object {
	t.Helper()
	s := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{scheme.AddToScheme, monitoring.AddToScheme} {
		if err := add(s); err != nil {
			t.Fatal(err)
		}
	}
	decoder := serializer.NewCodecFactory(s, serializer.EnableStrict).UniversalDeserializer()
	var all []runtime.Object
	for r := utilyaml.NewYAMLReader(newBuffered(raw)); ; {
		doc, err := r.Read()
		if errors.Is(err, io.EOF) {
			return all
		}
		if err != nil {
			t.Fatal(err)
		}
		if strings.TrimSpace(stripComments(string(doc))) == "" {
			continue
		}
		o, _, err := decoder.Decode(doc, nil, nil)
		if err != nil {
			t.Errorf("%v in\n%s", err, doc)
			continue
		}
		all = append(all, o)
	}
}

func stripComments(s string) string {
	var lines []string
	for _, l := range strings.Split(s, "\n") {
		if !strings.HasPrefix(l, "#") && l != "---" {
			lines = append(lines, l)
		}
	}
	return strings.Join(lines, "\n")
}

func TestEverythingIsOfKubernetesTypes(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"simulated", "intel"} {
		for _, version := range kubernetesVersions {
			t.Run(name+" on "+version, func(t *testing.T) {
				t.Parallel()
				raw, err := render(t, "-f", values(name), "--kube-version", version)
				if err != nil {
					t.Fatal(err)
				}
				if n := len(decode(t, raw)); n < 8 {
					t.Errorf("%d objects", n)
				}
			})
		}
	}
}

func TestAnOldKubernetesIsRefused(t *testing.T) {
	t.Parallel()
	if _, err := render(t, "-f", values("intel"), "--kube-version", "1.26.0"); err == nil || !strings.Contains(err.Error(), "kubeVersion") {
		t.Errorf("%v", err)
	}
}

func configMaps(all []runtime.Object) map[string]map[string]string {
	found := map[string]map[string]string{}
	for _, o := range all {
		if c, ok := o.(*corev1.ConfigMap); ok {
			found[c.Name] = c.Data
		}
	}
	return found
}

func TestTheServicesAcceptTheirConfigurations(t *testing.T) {
	t.Parallel()
	for name, nodes := range map[string][]string{"simulated": {"compute1", "compute2", "compute3"}, "intel": {"compute1", "compute2"}} {
		raw, err := render(t, "-f", values(name))
		if err != nil {
			t.Fatal(err)
		}
		all := configMaps(decode(t, raw))
		etc := all["sc-safeconduct-etc"]
		for _, n := range nodes {
			c, err := config.Parse([]byte(etc[n+".yaml"]))
			if err != nil {
				t.Errorf("%s, %s: %v", name, n, err)
				continue
			}
			if c.Host != n || string(c.Mode) != name || len(c.Peers) != len(nodes)-1 || c.Integrity.Root != "/host" {
				t.Errorf("%+v", c)
			}
		}
		if text, ok := etc["tunnel.yaml"]; ok {
			c, err := tunnel.ParseConfig([]byte(text))
			if err != nil || len(c.Peers) != len(nodes) {
				t.Errorf("tunnel: %v %+v", err, c)
			}
		}
		for _, n := range nodes {
			if text, ok := etc["agent-"+n+".yaml"]; ok {
				c, err := openstack.ParseConfig([]byte(text))
				if err != nil || c.Role != openstack.RoleNode || c.Host != n {
					t.Errorf("agent: %v %+v", err, c)
				}
			}
		}
		if text, ok := all["sc-safeconduct-agent"]["agent.yaml"]; ok {
			c, err := openstack.ParseConfig([]byte(text))
			if err != nil || c.Role != openstack.RoleCentral {
				t.Errorf("central agent: %v %+v", err, c)
			}
		}
		file := filepath.Join(t.TempDir(), "helper.yaml")
		if err := os.WriteFile(file, []byte(etc["helper.yaml"]), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := helper.ReadSettings(file); err != nil {
			t.Errorf("helper: %v", err)
		}
	}
}

// pods of a release, by the name of what makes them.
func pods(all []runtime.Object) map[string]corev1.PodSpec {
	found := map[string]corev1.PodSpec{}
	for _, o := range all {
		switch o := o.(type) {
		case *appsv1.DaemonSet:
			found[o.Name] = o.Spec.Template.Spec
		case *appsv1.Deployment:
			found[o.Name] = o.Spec.Template.Spec
		case *batchv1.Job:
			found[o.Name+"-job"] = o.Spec.Template.Spec
		case *corev1.Pod:
			found[o.Name] = o.Spec
		}
	}
	return found
}

func TestNoContainerHasMoreThanItNeeds(t *testing.T) {
	t.Parallel()
	// Init containers and the hook touch the host's directories as root, with these and no more.
	more := map[string][]corev1.Capability{
		"directories": {"CHOWN", "DAC_OVERRIDE", "FOWNER", "FSETID"}, "helper": {"CHOWN", "DAC_OVERRIDE", "FOWNER", "SYS_CHROOT"}, "clean": {"DAC_OVERRIDE", "FOWNER", "SYS_CHROOT"},
	}
	for _, name := range []string{"simulated", "intel"} {
		raw, err := render(t, "-f", values(name))
		if err != nil {
			t.Fatal(err)
		}
		for pod, spec := range pods(decode(t, raw)) {
			if token := spec.AutomountServiceAccountToken; token == nil || *token && pod != "sc-safeconduct-clean-job" {
				t.Errorf("%s: %s has a token of Kubernetes' API", name, pod)
			}
			if spec.SecurityContext == nil || spec.SecurityContext.SeccompProfile == nil || spec.SecurityContext.SeccompProfile.Type != corev1.SeccompProfileTypeRuntimeDefault {
				t.Errorf("%s: %s has no seccomp profile", name, pod)
			}
			for _, c := range slices.Concat(spec.InitContainers, spec.Containers) {
				s := c.SecurityContext
				if s == nil || s.AllowPrivilegeEscalation == nil || *s.AllowPrivilegeEscalation || s.ReadOnlyRootFilesystem == nil || !*s.ReadOnlyRootFilesystem ||
					s.Privileged != nil || s.Capabilities == nil || !slices.Equal(s.Capabilities.Drop, []corev1.Capability{"ALL"}) {
					t.Errorf("%s: %s/%s is not confined: %+v", name, pod, c.Name, s)
					continue
				}
				for _, has := range s.Capabilities.Add {
					if !slices.Contains(more[c.Name], has) {
						t.Errorf("%s: %s/%s has capability %s", name, pod, c.Name, has)
					}
				}
				if len(c.Resources.Limits) == 0 || len(c.Resources.Requests) == 0 {
					t.Errorf("%s: %s/%s has no requests or limits", name, pod, c.Name)
				}
			}
		}
	}
}

func TestSGXIsAskedForOnHardwareOnly(t *testing.T) {
	t.Parallel()
	for name, args := range map[string][]string{"intel": nil, "simulated": nil, "rehearsed": {"--set", "sgx.rehearse=true"}} {
		file := name
		if name == "rehearsed" {
			file = "simulated"
		}
		raw, err := render(t, append([]string{"-f", values(file)}, args...)...)
		if err != nil {
			t.Fatal(err)
		}
		spec := pods(decode(t, raw))["sc-safeconduct"]
		_, epc := spec.Containers[0].Resources.Limits["sgx.intel.com/epc"]
		_, label := spec.NodeSelector["intel.feature.node.kubernetes.io/sgx"]
		if expected := name != "simulated"; epc != expected || label != expected || (len(spec.Tolerations) > 0) != expected {
			t.Errorf("%s: EPC %v, node label %v, tolerations %v", name, epc, label, spec.Tolerations)
		}
	}
}

// TestTheEPCHoldsTheEnclave compares what a pod asks for with what the enclave's configuration takes: its heap, whole from the start, 32 stacks of 4 MiB, and
// its code.
func TestTheEPCHoldsTheEnclave(t *testing.T) {
	t.Parallel()
	files, err := filepath.Glob("../../../deploy/enclave/*.json")
	if err != nil || len(files) == 0 {
		t.Fatal(files, err)
	}
	for _, file := range files {
		raw, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		var enclave struct{ HeapSize int64 }
		if err := json.Unmarshal(raw, &enclave); err != nil || enclave.HeapSize == 0 {
			t.Fatalf("%s: heap %d, %v", file, enclave.HeapSize, err)
		}
		rendered, err := render(t, "-f", values("intel"))
		if err != nil {
			t.Fatal(err)
		}
		for _, c := range pods(decode(t, rendered))["sc-safeconduct"].Containers {
			if c.Name != "safeconduct" {
				continue
			}
			epc, least := c.Resources.Limits["sgx.intel.com/epc"], (enclave.HeapSize+32*4+30)<<20
			if epc.Value() < least || epc.Value() > least+256<<20 {
				t.Errorf("%s: the pod asks for %d MiB of EPC, the enclave takes %d", filepath.Base(file), epc.Value()>>20, least>>20)
			}
			if memory := c.Resources.Limits["memory"]; memory.Value() < epc.Value() {
				t.Errorf("the limit of memory, %s, is below the EPC, which counts towards it", memory.String())
			}
		}
	}
}

func TestASimulationSaysSoEverywhere(t *testing.T) {
	t.Parallel()
	raw, err := render(t, "-f", values("simulated"))
	if err != nil {
		t.Fatal(err)
	}
	for _, o := range decode(t, raw) {
		d, ok := o.(*appsv1.DaemonSet)
		if !ok || d.Name != "sc-safeconduct" {
			continue
		}
		for where, m := range map[string]map[string]string{"daemonset": d.Annotations, "pods": d.Spec.Template.Annotations} {
			if !strings.Contains(m["safeconduct/warning"], "SIMULATED") {
				t.Errorf("annotations of the %s: %v", where, m)
			}
		}
		if d.Spec.Template.Labels["safeconduct/mode"] != "simulated" {
			t.Errorf("labels %v", d.Spec.Template.Labels)
		}
	}
}

func TestAPolicyRestartsNoPodAndAConfigurationDoes(t *testing.T) {
	t.Parallel()
	hash := func(args ...string) string {
		raw, err := render(t, append([]string{"-f", values("simulated")}, args...)...)
		if err != nil {
			t.Fatal(err)
		}
		for _, o := range decode(t, raw) {
			if d, ok := o.(*appsv1.DaemonSet); ok && d.Name == "sc-safeconduct" {
				return d.Spec.Template.Annotations["configmap-etc-hash"]
			}
		}
		return ""
	}
	base := hash()
	if hash("--set-string", `conf.policy.envelope=\{"payloadType": "other"\}`) != base {
		t.Error("a new policy restarts the pods")
	}
	if hash("--set", "conf.safeconductd.log.level=debug") == base {
		t.Error("a new configuration does not restart the pods")
	}
}

func TestRulesAreThoseThatAreTested(t *testing.T) {
	t.Parallel()
	raw, err := render(t, "-f", values("simulated"), "--set", "monitoring.rules.severity.critical=critical,monitoring.rules.severity.warning=warning,monitoring.rules.severity.info=info")
	if err != nil {
		t.Fatal(err)
	}
	tested, err := os.ReadFile("../../../deploy/prometheus/safeconduct.rules.yaml")
	if err != nil {
		t.Fatal(err)
	}
	for _, o := range decode(t, raw) {
		r, ok := o.(*monitoring.PrometheusRule)
		if !ok {
			continue
		}
		got, err := yaml.Marshal(r.Spec)
		if err != nil {
			t.Fatal(err)
		}
		var spec monitoring.PrometheusRuleSpec
		if err := yaml.UnmarshalStrict(tested, &spec); err != nil {
			t.Fatal(err)
		}
		expected, err := yaml.Marshal(spec)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got, expected) {
			t.Errorf("the chart's rules are not those of deploy/prometheus")
		}
		if promtool, err := exec.LookPath("promtool"); err == nil {
			file := filepath.Join(t.TempDir(), "rules.yaml")
			if err := os.WriteFile(file, got, 0o600); err != nil {
				t.Fatal(err)
			}
			if out, err := exec.Command(promtool, "check", "rules", file).CombinedOutput(); err != nil {
				t.Errorf("%v: %s", err, out)
			}
		}
		return
	}
	t.Error("there is no PrometheusRule")
}

func TestSeveritiesAreTheValues(t *testing.T) {
	t.Parallel()
	raw, err := render(t, "-f", values("simulated"))
	if err != nil {
		t.Fatal(err)
	}
	for _, o := range decode(t, raw) {
		r, ok := o.(*monitoring.PrometheusRule)
		if !ok {
			continue
		}
		for _, g := range r.Spec.Groups {
			for _, rule := range g.Rules {
				if s := rule.Labels["severity"]; rule.Alert != "" && s != "P1" && s != "P3" && s != "P5" {
					t.Errorf("%s has severity %q", rule.Alert, s)
				}
			}
		}
	}
}

func TestTheDashboardIsTheTestedOne(t *testing.T) {
	t.Parallel()
	raw, err := render(t, "-f", values("simulated"))
	if err != nil {
		t.Fatal(err)
	}
	tested, err := os.ReadFile("../../../deploy/grafana/safeconduct.json")
	if err != nil {
		t.Fatal(err)
	}
	var a, b any
	if err := errors.Join(json.Unmarshal(tested, &a), json.Unmarshal([]byte(configMaps(decode(t, raw))["sc-safeconduct-dashboard"]["safeconduct.json"]), &b)); err != nil {
		t.Fatal(err)
	}
	if fmt.Sprint(a) != fmt.Sprint(b) {
		t.Error("the dashboard is not that of deploy/grafana")
	}
}

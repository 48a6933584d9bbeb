// Package handover checks deploy/openstack-helm: the values that an operator adds to somebody else's charts. What they say of our side (paths, uids,
// options) is always checked. Whether those charts hand it on to the pods is checked by rendering them, from checkouts that the operator names, since no
// registry that the build may use has them:
//
//	make test-openstack-helm OPENSTACK_HELM=DIR ATMOSPHERE=DIR GENESTACK=DIR
package handover

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime"
	utilyaml "k8s.io/apimachinery/pkg/util/yaml"
	"k8s.io/client-go/kubernetes/scheme"
	"sigs.k8s.io/yaml"
)

const (
	root  = "../../.."
	here  = root + "/deploy/openstack-helm"
	image = "registry.example/nova-safeconduct:2026.1"
	// Where the chart safeconduct puts the helper, and where it has to be in libvirt's pod.
	helperDir = "/var/lib/safeconduct-helper"
)

// novaValues and libvirtValues are what this package knows of the files.
type novaValues struct {
	Images struct {
		Tags map[string]string `json:"tags"`
	} `json:"images"`
	Conf struct {
		Nova map[string]map[string]any `json:"nova"`
	} `json:"conf"`
}

type libvirtValues struct {
	Pod struct {
		Mounts struct {
			Libvirt struct {
				Libvirt struct {
					VolumeMounts []corev1.VolumeMount `json:"volumeMounts"`
					Volumes      []corev1.Volume      `json:"volumes"`
				} `json:"libvirt"`
			} `json:"libvirt"`
		} `json:"mounts"`
	} `json:"pod"`
}

func read(t *testing.T, path string, into any) {
	t.Helper()
	raw, err := os.ReadFile(path)
	must(t, err)
	if err := yaml.UnmarshalStrict(raw, into); err != nil {
		t.Fatalf("%s: %v", path, err)
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestTheValuesSayWhatOurChartAndDriverSay(t *testing.T) {
	var ours struct {
		Mode   string `json:"mode"`
		Helper struct {
			Directory string `json:"directory"`
		} `json:"helper"`
		Conf struct {
			Safeconductd struct {
				Local struct {
					Callers map[string][]int `json:"callers"`
				} `json:"local"`
			} `json:"safeconductd"`
		} `json:"conf"`
	}
	raw, err := os.ReadFile(root + "/charts/safeconduct/values.yaml")
	must(t, err)
	must(t, yaml.Unmarshal(raw, &ours))
	sample, err := os.ReadFile(root + "/deploy/nova/etc/nova-safeconduct.conf.sample")
	must(t, err)

	var nova novaValues
	read(t, here+"/nova.yaml", &nova)
	options := nova.Conf.Nova["safeconduct"]
	if options["mode"] != ours.Mode {
		t.Errorf("nova.yaml has mode %v, the chart %q", options["mode"], ours.Mode)
	}
	for option, value := range options {
		if !strings.Contains(string(sample), "\n#"+option+" = ") {
			t.Errorf("the driver has no option %q", option)
		}
		if option == "endpoint" && !strings.Contains(string(sample), "\n#endpoint = "+fmt.Sprint(value)+"\n") {
			t.Errorf("endpoint is %v, expected the default", value)
		}
	}
	for _, service := range []string{"MigrationService", "SecretService", "AdminService/GetStatus"} {
		if !slices.Contains(ours.Conf.Safeconductd.Local.Callers[service], 42424) {
			t.Errorf("the chart's default callers of %s are %v, without openstack-helm's nova", service, ours.Conf.Safeconductd.Local.Callers[service])
		}
	}

	var libvirt libvirtValues
	read(t, here+"/libvirt.yaml", &libvirt)
	var paths []string
	for _, v := range libvirt.Pod.Mounts.Libvirt.Libvirt.Volumes {
		paths = append(paths, v.HostPath.Path)
	}
	if expected := []string{ours.Helper.Directory + "/safeconduct-swtpm", ours.Helper.Directory + "/helper.yaml"}; !slices.Equal(paths, expected) {
		t.Errorf("libvirt mounts %v, the chart places %v", paths, expected)
	}
}

func TestAtmospheresValuesAreTheSame(t *testing.T) {
	var both struct {
		Nova    novaValues    `json:"nova_helm_values"`
		Libvirt libvirtValues `json:"libvirt_helm_values"`
	}
	read(t, here+"/atmosphere.yaml", &both)
	var nova novaValues
	var libvirt libvirtValues
	read(t, here+"/nova.yaml", &nova)
	read(t, here+"/libvirt.yaml", &libvirt)
	same(t, both.Nova, nova)
	same(t, both.Libvirt, libvirt)
}

func same(t *testing.T, a, b any) {
	t.Helper()
	x, err := yaml.Marshal(a)
	must(t, err)
	y, err := yaml.Marshal(b)
	must(t, err)
	if !bytes.Equal(x, y) {
		t.Errorf("found\n%s\nexpected\n%s", x, y)
	}
}

// checkout is the directory that an environment variable names.
func checkout(t *testing.T, name string) string {
	t.Helper()
	dir := os.Getenv(name)
	if dir == "" {
		t.Skip("set " + name + " to a checkout of it")
	}
	return dir
}

// render renders one of somebody's charts. toolkit is the chart that it depends on; empty if it is there already.
func render(t *testing.T, chart, toolkit string, files ...string) []runtime.Object {
	t.Helper()
	helm, err := filepath.Abs(root + "/build/tools/helm")
	must(t, err)
	work := t.TempDir()
	run(t, "cp", "-rL", chart, work+"/chart")
	if toolkit != "" {
		must(t, os.MkdirAll(work+"/chart/charts", 0o755))
		run(t, "cp", "-rL", toolkit, work+"/chart/charts/helm-toolkit")
	}
	args := []string{"template", "x", work + "/chart", "-n", "openstack", "--kube-version", "1.34.4"}
	for _, f := range files {
		args = append(args, "-f", f)
	}
	out := run(t, helm, args...)
	var all []runtime.Object
	for _, doc := range strings.Split("\n"+out, "\n---\n") {
		raw, err := utilyaml.ToJSON([]byte(doc))
		must(t, err)
		// Kinds that Kubernetes itself does not have are none of ours.
		if o, _, err := scheme.Codecs.UniversalDeserializer().Decode(raw, nil, nil); err == nil {
			all = append(all, o)
		}
	}
	return all
}

func run(t *testing.T, name string, args ...string) string {
	t.Helper()
	c := exec.Command(name, args...)
	var out, diag bytes.Buffer
	c.Stdout, c.Stderr = &out, &diag
	if err := c.Run(); err != nil {
		t.Fatalf("%s: %v: %s", filepath.Base(name), err, diag.String())
	}
	return out.String()
}

func TestOpenStackHelmHandsItOn(t *testing.T) {
	dir := checkout(t, "OPENSTACK_HELM")
	toolkit := filepath.Join(dir, "helm-toolkit")
	checkNova(t, render(t, filepath.Join(dir, "nova"), toolkit, here+"/nova.yaml"))
	checkLibvirt(t, render(t, filepath.Join(dir, "libvirt"), toolkit, here+"/libvirt.yaml"))
}

// TestGenestackHandsItOn renders as its bin/install-nova.sh does: openstack-helm's charts, its base-helm-configs first, an operator's files after them.
func TestGenestackHandsItOn(t *testing.T) {
	dir, charts := checkout(t, "GENESTACK"), checkout(t, "OPENSTACK_HELM")
	toolkit := filepath.Join(charts, "helm-toolkit")
	for _, name := range []string{"nova", "libvirt"} {
		objects := render(t, filepath.Join(charts, name), toolkit, filepath.Join(dir, "base-helm-configs", name, name+"-helm-overrides.yaml"), here+"/"+name+".yaml")
		if name == "nova" {
			checkNova(t, objects)
			continue
		}
		checkLibvirt(t, objects)
	}
}

// TestAtmosphereHandsItOn renders Atmosphere's own copies of the charts with what its roles hand them.
func TestAtmosphereHandsItOn(t *testing.T) {
	dir := checkout(t, "ATMOSPHERE")
	var both map[string]map[string]any
	read(t, here+"/atmosphere.yaml", &both)
	for _, name := range []string{"nova", "libvirt"} {
		raw, err := yaml.Marshal(both[name+"_helm_values"])
		must(t, err)
		values := filepath.Join(t.TempDir(), "values.yaml")
		must(t, os.WriteFile(values, raw, 0o600))
		objects := render(t, filepath.Join(dir, "charts", name), "", values)
		if name == "nova" {
			checkNova(t, objects)
			continue
		}
		checkLibvirt(t, objects)
	}
}

func checkNova(t *testing.T, objects []runtime.Object) {
	t.Helper()
	compute, api, conf := 0, 0, 0
	for _, o := range objects {
		switch o := o.(type) {
		case *appsv1.DaemonSet:
			spec := o.Spec.Template.Spec
			for _, c := range spec.Containers {
				if c.Name != "nova-compute" {
					continue
				}
				compute++
				if c.Image != image {
					t.Errorf("nova-compute's image is %s", c.Image)
				}
				// The socket is /run/safeconduct/node.sock.
				i := slices.IndexFunc(c.VolumeMounts, func(m corev1.VolumeMount) bool { return m.MountPath == "/run" })
				if i < 0 || hostPath(spec, c.VolumeMounts[i].Name) != "/run" {
					t.Error("nova-compute does not see the host's /run")
				}
				if u := userOf(spec, c); u != 42424 {
					t.Errorf("nova-compute runs as %d", u)
				}
			}
		case *appsv1.Deployment:
			for _, c := range o.Spec.Template.Spec.Containers {
				if strings.Contains(c.Name, "nova-osapi") {
					api++
					if c.Image != image {
						t.Errorf("nova-api's image is %s", c.Image)
					}
				}
			}
		case *corev1.Secret:
			text := string(o.Data["nova.conf"]) + o.StringData["nova.conf"]
			if text == "" {
				continue
			}
			conf++
			for _, line := range []string{"compute_driver = safeconduct.SafeconductDriver", "[safeconduct]", "endpoint = unix:///run/safeconduct/node.sock", "mode = intel"} {
				if !slices.Contains(strings.Split(text, "\n"), line) {
					t.Errorf("nova.conf has no line %q", line)
				}
			}
		}
	}
	if compute == 0 || api == 0 || conf == 0 {
		t.Errorf("found %d nova-compute, %d nova-api, %d nova.conf", compute, api, conf)
	}
}

func checkLibvirt(t *testing.T, objects []runtime.Object) {
	t.Helper()
	found := 0
	for _, o := range objects {
		set, ok := o.(*appsv1.DaemonSet)
		if !ok {
			continue
		}
		spec := set.Spec.Template.Spec
		for _, c := range spec.Containers {
			if c.Name != "libvirt" {
				continue
			}
			found++
			for mounted, source := range map[string]string{
				"/usr/local/bin/swtpm": helperDir + "/safeconduct-swtpm", "/etc/safeconduct/helper.yaml": helperDir + "/helper.yaml",
			} {
				i := slices.IndexFunc(c.VolumeMounts, func(m corev1.VolumeMount) bool { return m.MountPath == mounted })
				if i < 0 || !c.VolumeMounts[i].ReadOnly || hostPath(spec, c.VolumeMounts[i].Name) != source {
					t.Errorf("libvirt's pod does not have %s as %s, read-only", source, mounted)
				}
			}
		}
	}
	if found == 0 {
		t.Error("no container libvirt in any daemonset")
	}
}

func hostPath(spec corev1.PodSpec, volume string) string {
	for _, v := range spec.Volumes {
		if v.Name == volume && v.HostPath != nil {
			return v.HostPath.Path
		}
	}
	return ""
}

func userOf(spec corev1.PodSpec, c corev1.Container) int64 {
	switch {
	case c.SecurityContext != nil && c.SecurityContext.RunAsUser != nil:
		return *c.SecurityContext.RunAsUser
	case spec.SecurityContext != nil && spec.SecurityContext.RunAsUser != nil:
		return *spec.SecurityContext.RunAsUser
	}
	return -1
}

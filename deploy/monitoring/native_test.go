package monitoring

import (
	"fmt"
	"net"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/safeconduct/safeconduct/services/node/metrics"
)

// TestARealPrometheusTakesNativeHistograms has Debian's Prometheus scrape a recorder with native histograms enabled, and asks for a quantile of them.
func TestARealPrometheusTakesNativeHistograms(t *testing.T) {
	prometheus, err := exec.LookPath("prometheus")
	if err != nil {
		t.Skip("no prometheus: make deps installs it")
	}
	r := metrics.New("simulated", "v1")
	for range 100 {
		r.Phase(metrics.PhaseProtect, 50*time.Microsecond, nil)
	}
	server := httptest.NewServer(r.Handler())
	defer server.Close()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	listen := l.Addr().String()
	l.Close()
	dir := t.TempDir()
	config := fmt.Sprintf("global: {scrape_interval: 1s}\nscrape_configs:\n  - job_name: safeconduct\n    metrics_path: /\n    static_configs: [{targets: [%q]}]\n",
		strings.TrimPrefix(server.URL, "http://"))
	if err := os.WriteFile(filepath.Join(dir, "prometheus.yaml"), []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	c := exec.CommandContext(t.Context(), prometheus, "--config.file="+filepath.Join(dir, "prometheus.yaml"), "--storage.tsdb.path="+filepath.Join(dir, "data"),
		"--web.listen-address="+listen, "--enable-feature=native-histograms")
	log, err := os.Create(filepath.Join(dir, "log"))
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	c.Stdout, c.Stderr = log, log
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Process.Kill(); _ = c.Wait() }()
	expr := `histogram_quantile(0.5, safeconduct_phase_duration_seconds{phase="protect", outcome="ok"}) < 0.00006 > 0.00004`
	deadline := time.After(30 * time.Second)
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		out, _ := exec.CommandContext(t.Context(), "promtool", "query", "instant", "http://"+listen, expr).CombinedOutput()
		if strings.Contains(string(out), `phase="protect"`) {
			return
		}
		select {
		case <-deadline:
			raw, _ := os.ReadFile(log.Name())
			t.Fatalf("Prometheus answers %q\n%s", out, raw)
		case <-tick.C:
		}
	}
}

// Package agent runs safeconduct-agent against real services: Keystone, Placement and nova-api as Debian packages them, on sqlite, under uwsgi.
package agent

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/safeconduct/safeconduct/test/cluster"
)

const password = "a-password-of-this-test"

// cloud is the three services in a directory.
type cloud struct {
	dir, source string // source: where this package's files are
	ports       map[string]int
	running     map[string]*cluster.Process
}

func (c *cloud) url(service string) string {
	return fmt.Sprintf("http://127.0.0.1:%d", c.ports[service])
}

func (c *cloud) path(elem ...string) string {
	return filepath.Join(append([]string{c.dir}, elem...)...)
}

// environment is that of Debian's own Python, wherever another one may be first in PATH.
func (c *cloud) environment() []string {
	return []string{
		"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "PYTHONWARNINGS=ignore", "PYTHONDONTWRITEBYTECODE=1", "LC_ALL=C.UTF-8",
		"OS_KEYSTONE_CONFIG_FILES=" + c.path("keystone.conf"), "OS_KEYSTONE_CONFIG_DIR=" + c.dir, "OS_PLACEMENT_CONFIG_DIR=" + c.dir,
		"OS_NOVA_CONFIG_DIR=" + c.dir, "OS_NOVA_CONFIG_FILES=api-paste.ini;nova.conf",
	}
}

func (c *cloud) run(ctx context.Context, args ...string) error {
	cmd := exec.CommandContext(ctx, args[0], args[1:]...)
	cmd.Env = c.environment()
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%v: %w\n%s", args, err, out)
	}
	return nil
}

// python runs a program of a package that only has a function for it.
func (c *cloud) python(ctx context.Context, module string, args ...string) error {
	return c.run(ctx, append([]string{"/usr/bin/python3", "-c", "import sys; from " + module + " import main; sys.exit(main())"}, args...)...)
}

func (c *cloud) configure() error {
	token := func(service string) string {
		return fmt.Sprintf(`[keystone_authtoken]
auth_type = password
auth_url = %s/v3
www_authenticate_uri = %s/v3
username = admin
password = %s
project_name = admin
user_domain_id = default
project_domain_id = default
region_name = RegionOne
service_type = %s
`, c.url("identity"), c.url("identity"), password, service)
	}
	for name, text := range map[string]string{
		"keystone.conf": fmt.Sprintf("[DEFAULT]\nlog_file = %[1]s/keystone.log\n[database]\nconnection = sqlite:///%[1]s/keystone.db\n[token]\nprovider = fernet\n"+
			"[fernet_tokens]\nkey_repository = %[1]s/fernet\n[credential]\nkey_repository = %[1]s/credential\n[cache]\nenabled = true\nbackend = dogpile.cache.memory\n", c.dir),
		"placement.conf": fmt.Sprintf("[DEFAULT]\nlog_file = %[1]s/placement.log\n[api]\nauth_strategy = keystone\n[placement_database]\nconnection = sqlite:///%[1]s/placement.db\n%[2]s",
			c.dir, token("placement")),
		"nova.conf": fmt.Sprintf("[DEFAULT]\nlog_file = %[1]s/nova.log\nstate_path = %[1]s\ntransport_url = fake:/\nservice_down_time = 86400\nuse_rootwrap_daemon = false\n"+
			"[database]\nconnection = sqlite:///%[1]s/nova.db\n[api_database]\nconnection = sqlite:///%[1]s/nova_api.db\n[api]\nauth_strategy = keystone\n"+
			"[wsgi]\napi_paste_config = %[1]s/api-paste.ini\n[oslo_concurrency]\nlock_path = %[1]s\n%[2]s", c.dir, token("compute")),
		"keystone.wsgi":  "from keystone.server.wsgi import initialize_public_application\napplication = initialize_public_application()\n",
		"placement.wsgi": "from placement.wsgi import init_application\napplication = init_application()\n",
		"nova.wsgi":      "from nova.api.openstack.compute.wsgi import init_application\napplication = init_application()\n",
	} {
		if err := os.WriteFile(c.path(name), []byte(text), 0o600); err != nil {
			return err
		}
	}
	raw, err := os.ReadFile(filepath.Join(c.source, "api-paste.ini"))
	if err != nil {
		return err
	}
	return os.WriteFile(c.path("api-paste.ini"), raw, 0o600)
}

// prepare makes the databases, and Keystone's catalogue.
func (c *cloud) prepare(ctx context.Context) error {
	c.ports, c.running = map[string]int{}, map[string]*cluster.Process{}
	for _, s := range []string{"identity", "placement", "compute"} {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return err
		}
		c.ports[s] = l.Addr().(*net.TCPAddr).Port
		_ = l.Close()
	}
	for _, d := range []string{"fernet", "credential"} {
		if err := os.Mkdir(c.path(d), 0o700); err != nil {
			return err
		}
	}
	if err := c.configure(); err != nil {
		return err
	}
	group, together := errgroup.WithContext(ctx)
	group.Go(func() error {
		manage := []string{"keystone-manage", "--config-file", c.path("keystone.conf")}
		for _, step := range [][]string{
			{"db_sync"}, {"fernet_setup", "--keystone-user", "root", "--keystone-group", "root"},
			{"credential_setup", "--keystone-user", "root", "--keystone-group", "root"},
			{"bootstrap", "--bootstrap-password", password, "--bootstrap-public-url", c.url("identity") + "/v3",
				"--bootstrap-internal-url", c.url("identity") + "/v3", "--bootstrap-admin-url", c.url("identity") + "/v3", "--bootstrap-region-id", "RegionOne"},
		} {
			if err := c.run(together, append(manage, step...)...); err != nil {
				return err
			}
		}
		return c.run(together, "placement-manage", "--config-file", c.path("placement.conf"), "db", "sync")
	})
	group.Go(func() error {
		for _, step := range [][]string{
			{"api_db", "sync"}, {"cell_v2", "map_cell0", "--database_connection", "sqlite:///" + c.path("nova_cell0.db")},
			{"cell_v2", "create_cell", "--name", "cell1", "--database_connection", "sqlite:///" + c.path("nova.db"), "--transport-url", "fake:/"},
			{"db", "sync"},
		} {
			if err := c.python(together, "nova.cmd.manage", append([]string{"--config-file", c.path("nova.conf")}, step...)...); err != nil {
				return err
			}
		}
		return nil
	})
	if err := group.Wait(); err != nil {
		return err
	}
	for _, db := range []string{"keystone.db", "placement.db", "nova.db", "nova_api.db", "nova_cell0.db"} {
		if err := c.run(ctx, "/usr/bin/python3", "-c", "import sqlite3, sys; sqlite3.connect(sys.argv[1]).execute('PRAGMA journal_mode=WAL')", c.path(db)); err != nil {
			return err
		}
	}
	return nil
}

// start runs a service and waits until it answers, whatever it says.
func (c *cloud) start(ctx context.Context, service string) error {
	file := map[string]string{"identity": "keystone.wsgi", "placement": "placement.wsgi", "compute": "nova.wsgi"}[service]
	p, err := cluster.Start(c.path(service+"-uwsgi.log"), c.environment(), "uwsgi_python3", "--plugin", "python3",
		"--http-socket", "127.0.0.1:"+strconv.Itoa(c.ports[service]), "--wsgi-file", c.path(file), "--master", "--lazy-apps", "--need-app", "--die-on-term",
		"--processes", "1", "--threads", "1", "--enable-threads", "--buffer-size", "65535", "--pyargv", "", "--add-header", "Connection: close")
	if err != nil {
		return err
	}
	c.running[service] = p
	return cluster.Until(ctx, service+" does not answer", func() error {
		select {
		case <-p.Done():
			return fmt.Errorf("uwsgi ended: see %s", c.path(service+"-uwsgi.log"))
		default:
		}
		// It listens before its application is there.
		asking, cancel := context.WithTimeout(ctx, 10*time.Second)
		defer cancel()
		req, err := http.NewRequestWithContext(asking, http.MethodGet, c.url(service), http.NoBody)
		if err != nil {
			return err
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			return err
		}
		return resp.Body.Close()
	})
}

func (c *cloud) stop(services ...string) {
	for _, s := range services {
		if p := c.running[s]; p != nil {
			p.Stop()
			delete(c.running, s)
		}
	}
}

// rows writes to Nova's database what nova-compute would.
func (c *cloud) rows(ctx context.Context, args ...string) error {
	return c.run(ctx, append([]string{"/usr/bin/python3", filepath.Join(c.source, "rows.py"), c.path("nova.db"), c.path("nova_api.db")}, args...)...)
}

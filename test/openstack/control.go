package main

import (
	"context"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sync/errgroup"
)

// controlPlane starts MariaDB, RabbitMQ, Keystone, Placement, Glance, Barbican and Nova's central services on the controller.
func (c *cloud) controlPlane(ctx context.Context) error {
	s := settings{Name: "controller", Address: controller, KEK: c.kek}
	err := configure(c.control, s, map[string]string{
		"keystone.conf": "/etc/keystone/keystone.conf", "placement.conf": "/etc/placement/placement.conf", "glance-api.conf": "/etc/glance/glance-api.conf",
		"barbican.conf": "/etc/barbican/barbican.conf", "nova.conf": "/etc/nova/nova.conf", "policy.yaml": "/etc/nova/policy.yaml",
		"rabbitmq.conf": "/etc/rabbitmq/rabbitmq.conf",
	})
	if err != nil {
		return err
	}
	const make = `mkdir -p /var/lib/glance/images /var/lib/glance/tasks /var/lib/glance/staging /etc/keystone/fernet-keys /etc/keystone/credential-keys /var/lib/nova
cp /opt/*-common/usr/share/*-common/*-paste.ini /tmp; cp /tmp/api-paste.ini /etc/nova/; cp /tmp/glance-api-paste.ini /etc/glance/; cp /tmp/barbican-api-paste.ini /etc/barbican/`
	if _, err := c.control.Run(ctx, "sh", "-ec", make); err != nil {
		return err
	}
	if err := c.infrastructure(ctx); err != nil {
		return err
	}
	if !c.stock() {
		if err := c.installDriver(ctx, c.control); err != nil {
			return err
		}
	}
	if err := c.schemas(ctx); err != nil {
		return err
	}
	if err := c.identity(ctx); err != nil {
		return err
	}
	for _, service := range []string{"conductor", "scheduler"} {
		args := c.novaService("nova-"+service, "nova.cmd."+service, "--log-file", logDir+"/nova-"+service+".log")
		if _, err := c.launch(c.control, "nova-"+service, args...); err != nil {
			return err
		}
	}
	group, each := errgroup.WithContext(ctx)
	for _, service := range []string{"placement", "glance", "barbican", "nova"} {
		group.Go(func() error { return c.serve(each, service) })
	}
	return group.Wait()
}

// launcher is the command that runs a service out of its Python module.
func launcher(name, module string, args ...string) []string {
	return append([]string{"/usr/bin/python3", "/opt/e2e/launch.py", name, module}, args...)
}

// manage is a nova-manage command.
func (c *cloud) manage(args ...string) []string {
	return launcher("nova-manage", "nova.cmd.manage", args...)
}

const (
	databaseSocket = "/run/mysqld/mysqld.sock"
	sqlClient      = "mariadb --no-defaults -uroot -S " + databaseSocket
)

var databases = []string{"keystone", "placement", "glance", "barbican", "nova_api", "nova", "nova_cell0"}

// infrastructure is MariaDB with its databases, and RabbitMQ.
func (c *cloud) infrastructure(ctx context.Context) error {
	_, err := c.launch(c.control, "rabbitmq", "env", "HOME=/var/lib/rabbitmq", "RABBITMQ_NODENAME=e2e@localhost", "RABBITMQ_LOG_BASE="+logDir,
		"RABBITMQ_ENABLED_PLUGINS_FILE=/dev/null", "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS=+S 2:2 +sbwt none", "/usr/lib/rabbitmq/bin/rabbitmq-server")
	if err != nil {
		return err
	}
	const install = `mkdir -p /run/mysqld; chown mysql /run/mysqld; rm -rf /var/lib/mysql/*
mariadb-install-db --no-defaults --user=mysql --datadir=/var/lib/mysql --skip-test-db --auth-root-authentication-method=normal`
	if _, err := c.control.Run(ctx, "sh", "-ec", install); err != nil {
		return err
	}
	mariadb, err := c.launch(c.control, "mariadb", "/usr/sbin/mariadbd", "--no-defaults", "--user=mysql", "--datadir=/var/lib/mysql",
		"--socket="+databaseSocket, "--bind-address="+controller, "--innodb-flush-log-at-trx-commit=0", "--innodb-doublewrite=0",
		"--innodb-buffer-pool-size=96M", "--skip-name-resolve", "--max-connections=500", "--performance-schema=OFF", "--character-set-server=utf8mb3")
	if err != nil {
		return err
	}
	if err := listening(ctx, "mariadb", fmt.Sprintf("%s:%d", controller, databasePort), mariadb); err != nil {
		return err
	}
	sql := []string{fmt.Sprintf("CREATE USER 'e2e'@'%%' IDENTIFIED BY '%s'; GRANT ALL ON *.* TO 'e2e'@'%%'", password)}
	for _, name := range databases {
		sql = append(sql, "CREATE DATABASE "+name)
	}
	_, err = c.control.Run(ctx, append(strings.Fields(sqlClient), "-e", strings.Join(sql, "; "))...)
	return err
}

// schemas has every service make its tables. That is most of the work of bringing a cloud up and always gives the same, so the result is kept beside
// the tree.
func (c *cloud) schemas(ctx context.Context) error {
	kept := c.options.rootfs + ".schemas.sql"
	dump, err := os.ReadFile(kept)
	if err == nil {
		if err := c.control.WriteFile("/tmp/schemas.sql", dump, 0o600); err != nil {
			return err
		}
		_, err = c.control.Run(ctx, "sh", "-c", sqlClient+" < /tmp/schemas.sql")
		return err
	}
	group, each := errgroup.WithContext(ctx)
	for _, commands := range [][][]string{
		{
			c.manage("api_db", "sync"), c.manage("cell_v2", "map_cell0", "--database_connection", database("nova_cell0")),
			c.manage("cell_v2", "create_cell", "--name", "cell1"), c.manage("db", "sync"),
		}, {
			{"keystone-manage", "db_sync"}, {"placement-manage", "db", "sync"}, launcher("glance-manage", "glance.cmd.manage", "db_sync"),
			launcher("barbican-manage", "barbican.cmd.barbican_manage", "db", "upgrade"),
		},
	} {
		group.Go(func() error {
			for _, args := range commands {
				if _, err := c.control.Run(each, args...); err != nil {
					return err
				}
			}
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		return err
	}
	made, err := c.control.Run(ctx, append([]string{"mariadb-dump", "--no-defaults", "-uroot", "-S", databaseSocket, "--databases"}, databases...)...)
	if err != nil {
		return err
	}
	return os.WriteFile(kept, []byte(made), 0o600)
}

// identity is Keystone with the catalogue and the accounts.
func (c *cloud) identity(ctx context.Context) error {
	keystone := url("keystone")
	for _, args := range [][]string{
		{"keystone-manage", "fernet_setup", "--keystone-user", "root", "--keystone-group", "root"},
		{"keystone-manage", "credential_setup", "--keystone-user", "root", "--keystone-group", "root"},
		{"keystone-manage", "bootstrap", "--bootstrap-password", password, "--bootstrap-admin-url", keystone, "--bootstrap-internal-url", keystone,
			"--bootstrap-public-url", keystone, "--bootstrap-region-id", "RegionOne"},
	} {
		if _, err := c.control.Run(ctx, args...); err != nil {
			return err
		}
	}
	if err := c.serve(ctx, "keystone"); err != nil {
		return err
	}
	return c.accounts(ctx)
}

// serve runs a WSGI service under uwsgi and waits until it listens.
func (c *cloud) serve(ctx context.Context, service string) error {
	address := fmt.Sprintf("%s:%d", controller, ports[service])
	p, err := c.launch(c.control, service, "env", c.pythonPath(), "uwsgi-core", "--plugin", "python3", "--http-socket", address, "--wsgi-file", "/opt/e2e/"+service+"_api.py", "--master",
		"--lazy-apps", "--need-app", "--die-on-term", "--processes", "2", "--enable-threads", "--buffer-size", "65535", "--add-header", "Connection: close",
		"--pyargv", "")
	if err != nil {
		return err
	}
	return listening(ctx, service, address, p)
}

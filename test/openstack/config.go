package main

import (
	"bytes"
	"embed"
	"fmt"
	"strings"
	"text/template"
)

//go:embed bench etc wsgi
var files embed.FS

// password of every account: nothing outside the world can reach any of them.
const password = "e2e"

// Ports of the control plane's services, all on the controller but Neutron's, which is the suite itself.
var ports = map[string]int{"keystone": 5000, "placement": 8778, "glance": 9292, "barbican": 9311, "nova": 8774}

const (
	network       = "10.213.77"
	world         = network + ".1"
	controller    = network + ".10"
	neutronPort   = 9696
	busPort       = 5672
	databasePort  = 3306
	peerPort      = 7443
	nodeSocket    = "/run/safeconduct/node.sock"
	logDir        = "/var/log/e2e"
	binDir        = "/opt/safeconduct/bin"
	localStorage  = "/var/lib/nova/instances"
	sharedStorage = "/var/lib/nova/shared"
	// storageShared is the name of what both compute nodes see the same.
	storageShared = "shared"
)

// url of a service.
func url(service string) string {
	switch service {
	case "neutron":
		return fmt.Sprintf("http://%s:%d", world, neutronPort)
	case "keystone":
		return fmt.Sprintf("http://%s:%d/v3", controller, ports[service])
	case "nova":
		return fmt.Sprintf("http://%s:%d/v2.1", controller, ports[service])
	}
	return fmt.Sprintf("http://%s:%d", controller, ports[service])
}

// settings are what the configuration files are made from; each uses some.
type settings struct {
	// Name and Address of the machine; UUID of the host, which two libvirtd must not share.
	Name, Address, UUID string
	// KEK is Barbican's key.
	KEK string
	// Compute says that it is for a compute node: no database.
	Compute bool
	// Driver is Nova's compute_driver, Instances where servers' files are.
	Driver, Instances string
	// Safeconduct is the driver's own section of the configuration.
	Safeconduct string
}

// Bus is the tap in front of RabbitMQ.
func (settings) Bus() string { return fmt.Sprintf("rabbit://guest:guest@%s:%d/", world, busPort) }

// URL of a service.
func (settings) URL(service string) string { return url(service) }

func database(name string) string {
	return fmt.Sprintf("mysql+pymysql://e2e:%s@%s:%d/%s?charset=utf8", password, controller, databasePort, name)
}

// account is the section by which a service logs in to others.
func account(section string) string {
	return strings.Join([]string{
		"[" + section + "]", "auth_type = password", "auth_url = " + url("keystone"), "username = svc", "password = " + password, "project_name = service",
		"user_domain_name = Default", "project_domain_name = Default", "region_name = RegionOne",
	}, "\n")
}

// render fills in a file of etc.
func render(name string, s settings) ([]byte, error) {
	functions := template.FuncMap{"db": database, "auth": account, "list": func(items ...string) []string { return items }}
	t, err := template.New(name).Funcs(functions).ParseFS(files, "etc/"+name)
	if err != nil {
		return nil, err
	}
	var b bytes.Buffer
	if err := t.Execute(&b, s); err != nil {
		return nil, err
	}
	return b.Bytes(), nil
}

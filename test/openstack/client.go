package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"

	"github.com/gophercloud/gophercloud/v2"
	"github.com/gophercloud/gophercloud/v2/openstack"
)

// client is one account's access to the cloud. What is asked and answered is in the suite's own small types, so that a scenario reads as Nova's API does.
type client struct {
	compute, identity, image, keys *gophercloud.ServiceClient
}

// novaVersion is the API version of the suite: 2.90 (Zed) has all that it uses.
const novaVersion = "2.90"

// login has Keystone's catalogue name the services. During set-up only Keystone is there.
func login(ctx context.Context, user, project string) (*client, error) {
	provider, err := openstack.AuthenticatedClient(ctx, gophercloud.AuthOptions{
		IdentityEndpoint: url("keystone"), Username: user, Password: password, DomainID: "default", TenantName: project, AllowReauth: true,
	})
	if err != nil {
		return nil, fmt.Errorf("logging in as %s: %w", user, err)
	}
	service := func(name, suffix string) *gophercloud.ServiceClient {
		return &gophercloud.ServiceClient{ProviderClient: provider, Endpoint: url(name) + suffix}
	}
	c := &client{compute: service("nova", "/"), identity: service("keystone", "/"), image: service("glance", "/v2/"), keys: service("barbican", "/v1/")}
	c.compute.Type, c.compute.Microversion = "compute", novaVersion
	return c, nil
}

// send is POST, or PUT without content when body is nil.
func send(ctx context.Context, s *gophercloud.ServiceClient, path string, body, answer any) error {
	options := &gophercloud.RequestOpts{OkCodes: []int{200, 201, 202, 204}}
	var err error
	if body == nil {
		_, err = s.Put(ctx, s.Endpoint+path, nil, answer, options) //nolint:bodyclose // gophercloud reads and closes it
	} else {
		_, err = s.Post(ctx, s.Endpoint+path, body, answer, options) //nolint:bodyclose // gophercloud reads and closes it
	}
	return err
}

func get(ctx context.Context, s *gophercloud.ServiceClient, path string, answer any) error {
	_, err := s.Get(ctx, s.Endpoint+path, answer, nil) //nolint:bodyclose // gophercloud reads and closes it
	return err
}

func notFound(err error) bool { return gophercloud.ResponseCodeIs(err, http.StatusNotFound) }

type object = map[string]any

// accounts fills Keystone: a project and a user who owns servers, the services' own user, and the catalogue.
func (c *cloud) accounts(ctx context.Context) error {
	var err error
	if c.admin, err = login(ctx, "admin", "admin"); err != nil {
		return err
	}
	id := c.admin.identity
	make := func(kind, path string, body object) (string, error) {
		var made map[string]struct{ ID string }
		err := send(ctx, id, path, object{kind: body}, &made)
		return made[kind].ID, err
	}
	roles := map[string]string{}
	var known struct{ Roles []struct{ ID, Name string } }
	if err := get(ctx, id, "roles", &known); err != nil {
		return err
	}
	for _, r := range known.Roles {
		roles[r.Name] = r.ID
	}
	for _, name := range []string{"creator", "service"} { // Barbican's, and the services' among themselves
		if roles[name] == "" {
			if roles[name], err = make("role", "roles", object{"name": name}); err != nil {
				return err
			}
		}
	}
	for _, a := range []struct {
		user, project string
		roles         []string
	}{{"svc", "service", []string{"admin", "service"}}, {"owner", "tenant", []string{"member", "creator"}}} {
		project, err := make("project", "projects", object{"name": a.project, "domain_id": "default"})
		if err != nil {
			return err
		}
		user, err := make("user", "users", object{"name": a.user, "password": password, "domain_id": "default"})
		if err != nil {
			return err
		}
		for _, role := range a.roles {
			if err := send(ctx, id, fmt.Sprintf("projects/%s/users/%s/roles/%s", project, user, roles[role]), nil, nil); err != nil {
				return err
			}
		}
	}
	for service, kind := range map[string]string{"placement": "placement", "nova": "compute", "glance": "image", "neutron": "network", "barbican": "key-manager"} {
		s, err := make("service", "services", object{"name": service, "type": kind})
		if err != nil {
			return err
		}
		for _, side := range []string{"public", "internal", "admin"} {
			if _, err := make("endpoint", "endpoints", object{"service_id": s, "interface": side, "url": url(service), "region_id": "RegionOne"}); err != nil {
				return err
			}
		}
	}
	c.owner, err = login(ctx, "owner", "tenant")
	return err
}

// upload gives Glance an image and returns its id.
func (c *client) upload(ctx context.Context, path string, properties object) (string, error) {
	var made struct{ ID string }
	if err := send(ctx, c.image, "images", properties, &made); err != nil {
		return "", err
	}
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer hangUp(f)
	_, err = c.image.Put(ctx, c.image.Endpoint+"images/"+made.ID+"/file", nil, nil, &gophercloud.RequestOpts{ //nolint:bodyclose // gophercloud closes it
		RawBody: f, MoreHeaders: map[string]string{"Content-Type": "application/octet-stream"}, OkCodes: []int{204},
	})
	return made.ID, err
}

// flavor makes a flavor whose id is its name.
func (c *client) flavor(ctx context.Context, name string, megabytes int, extra map[string]string) error {
	body := object{"flavor": object{"name": name, "id": name, "ram": megabytes, "vcpus": 1, "disk": 1}}
	if err := send(ctx, c.compute, "flavors", body, nil); err != nil || len(extra) == 0 {
		return err
	}
	return send(ctx, c.compute, "flavors/"+name+"/os-extra_specs", object{"extra_specs": extra}, nil)
}

// secret returns what the key manager holds under a reference. Only its owner may read it.
func (c *client) secret(ctx context.Context, id string) ([]byte, error) {
	response, err := c.keys.Get(ctx, c.keys.Endpoint+"secrets/"+id+"/payload", nil, &gophercloud.RequestOpts{
		KeepResponseBody: true, MoreHeaders: map[string]string{"Accept": "application/octet-stream"},
	})
	if err != nil {
		return nil, err
	}
	raw, err := io.ReadAll(response.Body)
	return raw, errors.Join(err, response.Body.Close())
}

// secrets lists the account's secrets: their names by id.
func (c *client) secrets(ctx context.Context) (map[string]string, error) {
	var listed struct {
		Secrets []struct {
			Name string
			Ref  string `json:"secret_ref"`
		}
	}
	if err := get(ctx, c.keys, "secrets?limit=100", &listed); err != nil {
		return nil, err
	}
	names := map[string]string{}
	for _, s := range listed.Secrets {
		names[s.Ref[strings.LastIndex(s.Ref, "/")+1:]] = s.Name
	}
	return names, nil
}

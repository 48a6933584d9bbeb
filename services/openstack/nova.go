package openstack

import (
	"context"
	"fmt"
	"net/url"
	"slices"

	"github.com/gophercloud/gophercloud/v2"
	"github.com/gophercloud/gophercloud/v2/openstack/compute/v2/hypervisors"
	"github.com/gophercloud/gophercloud/v2/openstack/compute/v2/services"
)

// computeBinary is what Nova calls the service of a compute host.
const computeBinary = "nova-compute"

// maxPages bounds how far a listing is followed: Nova gives 1000 at a time.
const maxPages = 20

// ComputesUp returns the hosts whose nova-compute is up, sorted. A host that is disabled is among them: it may have servers that must leave.
func (c *Cloud) ComputesUp(ctx context.Context) ([]string, error) {
	var hosts []string
	err := c.call(ctx, Compute, "list the compute services", func(client *gophercloud.ServiceClient) error {
		page, err := services.List(client, services.ListOpts{Binary: computeBinary}).AllPages(ctx)
		if err != nil {
			return err
		}
		all, err := services.ExtractServices(page)
		for _, s := range all {
			if s.Binary == computeBinary && s.State == "up" && !s.ForcedDown && s.Host != "" {
				hosts = append(hosts, s.Host)
			}
		}
		return err
	})
	slices.Sort(hosts)
	return slices.Compact(hosts), err
}

// Hypervisor is a resource provider's name and the compute host that it is on.
type Hypervisor struct{ Name, Host string }

// Hypervisors returns all hypervisors.
func (c *Cloud) Hypervisors(ctx context.Context) ([]Hypervisor, error) {
	var out []Hypervisor
	err := c.call(ctx, Compute, "list the hypervisors", func(client *gophercloud.ServiceClient) error {
		page, err := hypervisors.List(client, nil).AllPages(ctx)
		if err != nil {
			return err
		}
		all, err := hypervisors.ExtractHypervisors(page)
		for _, h := range all {
			out = append(out, Hypervisor{Name: h.HypervisorHostname, Host: h.Service.Host})
		}
		return err
	})
	return out, err
}

// Migration is a live migration as Nova records it.
type Migration struct {
	// UUID is what the driver arms a session with.
	UUID     string `json:"uuid"`
	Instance string `json:"instance_uuid"`
	Status   string `json:"status"`
	Source   string `json:"source_compute"`
	// Destination is empty until the scheduler has chosen.
	Destination string `json:"dest_compute"`
}

// LiveMigrationsOf returns all live migrations that Nova knows of a server, ended ones too, the last first. There is no filter by time: changes-since
// misses those that have just begun.
func (c *Cloud) LiveMigrationsOf(ctx context.Context, instance string) ([]Migration, error) {
	return c.migrations(ctx, "list the migrations of server "+instance, url.Values{"instance_uuid": {instance}})
}

// LiveMigrations returns the live migrations of a status.
func (c *Cloud) LiveMigrations(ctx context.Context, status string) ([]Migration, error) {
	return c.migrations(ctx, "list the migrations that are "+status, url.Values{"status": {status}})
}

// migrations asks for /os-migrations, which the library does not have.
func (c *Cloud) migrations(ctx context.Context, doing string, query url.Values) ([]Migration, error) {
	query.Set("migration_type", "live-migration")
	var out []Migration
	err := c.call(ctx, Compute, doing, func(client *gophercloud.ServiceClient) error {
		for range maxPages {
			var page struct {
				Migrations []Migration `json:"migrations"`
				Links      []struct {
					Rel string `json:"rel"`
				} `json:"migrations_links"`
			}
			resp, err := client.Get(ctx, client.ServiceURL("os-migrations")+"?"+query.Encode(), &page, nil) //nolint:bodyclose // it is read into page, and closed there
			if _, _, err = gophercloud.ParseResponse(resp, err); err != nil {
				return err
			}
			out = append(out, page.Migrations...)
			if len(page.Links) == 0 || len(page.Migrations) == 0 {
				return nil
			}
			query.Set("marker", page.Migrations[len(page.Migrations)-1].UUID)
		}
		return fmt.Errorf("more than %d pages of migrations", maxPages)
	})
	return out, err
}

package openstack

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"time"

	"github.com/gophercloud/gophercloud/v2"
	"github.com/gophercloud/gophercloud/v2/openstack/placement/v1/resourceproviders"
	"github.com/gophercloud/gophercloud/v2/openstack/placement/v1/traits"
)

// Trait is a trait of ours. There are no others that the agent sets or removes.
type Trait string

// The traits.
const (
	// TraitAttested: the node accepts itself by its own policy, and is ready to take migrations.
	TraitAttested Trait = "CUSTOM_SAFECONDUCT_ATTESTED"
	// TraitVTPM: and every VM that is started there has its vTPM behind the helper, so it can leave again.
	TraitVTPM Trait = "CUSTOM_SAFECONDUCT_VTPM"
	// TraitTunnel: and the whole migration stream can be carried in the tunnel.
	TraitTunnel Trait = "CUSTOM_SAFECONDUCT_TUNNEL"
	// TraitSimulated: and none of that protects anything. It goes with every other one on a node of mode simulated.
	TraitSimulated Trait = "CUSTOM_SAFECONDUCT_SIMULATED"
)

// allTraits are all of ours.
func allTraits() []Trait { return []Trait{TraitAttested, TraitVTPM, TraitTunnel, TraitSimulated} }

// attempts bounds how often a change of traits is tried at once: each time Placement had a change of somebody else in between, or failed.
const attempts = 6

// NoProviderError says that Placement has no resource provider of a name.
type NoProviderError struct{ Name string }

func (e *NoProviderError) Error() string {
	return fmt.Sprintf("Placement has no resource provider %q: set traits.resource_provider to the host's hypervisor_hostname, as openstack hypervisor list shows it, "+
		"and see that nova-compute has started once", e.Name)
}

// TraitChange is what SetTraits did.
type TraitChange struct {
	Published, Withdrawn []Trait
	// Conflicts is how often somebody else's change came between.
	Conflicts int
}

// SetTraits makes the named resource provider have those of our traits that are wanted, and no other of ours. Traits of others stay as they are. A
// change by somebody else in the meantime, and an error of Placement's, are tried again, with pauses by wait.
func (c *Cloud) SetTraits(ctx context.Context, provider string, wanted []Trait, wait Waiter) (TraitChange, error) {
	var total TraitChange
	err := c.call(ctx, Placement, "set the traits of resource provider "+provider, func(client *gophercloud.ServiceClient) error {
		pause := 100 * time.Millisecond
		for n := 1; ; n++ {
			change, err := setTraits(ctx, client, provider, wanted)
			change.Conflicts = total.Conflicts
			total = change
			code := statusOf(err)
			again := code == http.StatusConflict || code >= 500 || code == http.StatusTooManyRequests
			if code == http.StatusConflict {
				total.Conflicts++
			}
			if err == nil || !again || n == attempts {
				return err
			}
			if err := wait(ctx, pause); err != nil {
				return err
			}
			pause = min(2*pause, 2*time.Second)
		}
	})
	return total, err
}

// setTraits is one attempt. Placement replaces the whole set, if its generation is still the one that was read.
func setTraits(ctx context.Context, client *gophercloud.ServiceClient, provider string, wanted []Trait) (TraitChange, error) {
	id, err := providerID(ctx, client, provider)
	if err != nil {
		return TraitChange{}, err
	}
	have, err := resourceproviders.GetTraits(ctx, client, id).Extract()
	if err != nil {
		return TraitChange{}, err
	}
	next, change := merge(have.Traits, wanted)
	if len(change.Published)+len(change.Withdrawn) == 0 {
		return TraitChange{}, nil
	}
	for _, t := range change.Published {
		if err := traits.Create(ctx, client, string(t)).ExtractErr(); err != nil { // answers well if it is there already
			return TraitChange{}, err
		}
	}
	body := resourceproviders.UpdateTraitsOpts{ResourceProviderGeneration: have.ResourceProviderGeneration, Traits: next}
	if err := resourceproviders.UpdateTraits(ctx, client, id, body).Err; err != nil {
		return TraitChange{}, err
	}
	return change, nil
}

// merge returns the set that has of ours those that are wanted, and all that others have set, in their order.
func merge(have []string, wanted []Trait) ([]string, TraitChange) {
	var change TraitChange
	next := []string{} // not nil: JSON's null is no set
	for _, name := range have {
		switch t := Trait(name); {
		case !slices.Contains(allTraits(), t) || slices.Contains(wanted, t):
			next = append(next, name)
		default:
			change.Withdrawn = append(change.Withdrawn, t)
		}
	}
	for _, t := range wanted {
		if !slices.Contains(have, string(t)) {
			next = append(next, string(t))
			change.Published = append(change.Published, t)
		}
	}
	return next, change
}

// providerID finds a resource provider by its exact name.
func providerID(ctx context.Context, client *gophercloud.ServiceClient, name string) (string, error) {
	page, err := resourceproviders.List(client, resourceproviders.ListOpts{Name: name}).AllPages(ctx)
	if err != nil {
		return "", err
	}
	all, err := resourceproviders.ExtractResourceProviders(page)
	if err != nil {
		return "", err
	}
	for _, p := range all {
		if p.Name == name {
			return p.UUID, nil
		}
	}
	return "", &NoProviderError{Name: name}
}

// ProvidersWith returns the names of the resource providers that have a trait of ours.
func (c *Cloud) ProvidersWith(ctx context.Context, t Trait) (map[string]bool, error) {
	names := map[string]bool{}
	err := c.call(ctx, Placement, "list the resource providers with "+string(t), func(client *gophercloud.ServiceClient) error {
		// A trait that nobody has made yet is a bad request as a filter.
		if err := traits.Get(ctx, client, string(t)).ExtractErr(); err != nil {
			if statusOf(err) == http.StatusNotFound {
				return nil
			}
			return err
		}
		page, err := resourceproviders.List(client, resourceproviders.ListOpts{Required: string(t)}).AllPages(ctx)
		if err != nil {
			return err
		}
		all, err := resourceproviders.ExtractResourceProviders(page)
		for _, p := range all {
			names[p.Name] = true
		}
		return err
	})
	return names, err
}

// isNoProvider says whether err is a NoProviderError.
func isNoProvider(err error) bool {
	_, ok := errors.AsType[*NoProviderError](err)
	return ok
}

// Command openstack runs scenarios in an OpenStack of two compute nodes on this one machine: real Keystone, Placement, Glance, Barbican, Nova, RabbitMQ,
// MariaDB, libvirt, QEMU and swtpm of one Debian release, in namespaces that end with it. `make e2e-openstack` runs it; it exits 0 only if every
// scenario held. README.md says what it makes and what it leaves.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"regexp"
	"syscall"
	"time"

	"github.com/safeconduct/safeconduct/test/openstack/machine"
)

// suite is a Debian release and the Nova in it.
type suite struct {
	name string
	nova int
}

var suites = map[string]suite{"bookworm": {"bookworm", 26}, "trixie": {"trixie", 31}, "forky": {"forky", 33}, "sid": {"sid", 34}}

// stockDriver is Nova's own.
const stockDriver = "libvirt.LibvirtDriver"

type options struct {
	suite, rootfs, bin, nova, guest, out, driver, only string
	list, stay                                         bool
	rounds                                             int
}

func main() {
	os.Exit(machine.Enter(run))
}

func run() int {
	var o options
	flag.StringVar(&o.suite, "suite", "bookworm", "Debian release: bookworm, trixie, forky or sid")
	flag.StringVar(&o.rootfs, "rootfs", "", "its tree, by rootfs.sh")
	flag.StringVar(&o.bin, "bin", "build/bin", "directory of safeconductd and the helpers")
	flag.StringVar(&o.nova, "nova", "deploy/nova", "the Nova side of Safeconduct")
	flag.StringVar(&o.guest, "guest", "build/openstack/bin/guest", "the guests' only program")
	flag.StringVar(&o.out, "out", "", "directory of the artefacts; empty: build/openstack/SUITE")
	flag.StringVar(&o.driver, "driver", "safeconduct.SafeconductDriver", "Nova's compute_driver; "+stockDriver+" is Nova's own")
	flag.StringVar(&o.only, "only", "", "run the scenarios whose number or name matches this regular expression")
	flag.IntVar(&o.rounds, "rounds", 10, "migrations of each kind in the bench, scenario 91")
	flag.BoolVar(&o.list, "list", false, "list the scenarios")
	flag.BoolVar(&o.stay, "stay", false, "leave the cloud up after the scenarios, until interrupted, and say how to enter it")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := o.run(ctx); err != nil {
		fmt.Fprintf(os.Stderr, "\ne2e-openstack FAILED: %v\n", err)
		return 1
	}
	return 0
}

func (o *options) run(ctx context.Context) error {
	s, ok := suites[o.suite]
	if !ok {
		return fmt.Errorf("there is no suite %q: bookworm, trixie, forky, sid", o.suite)
	}
	chosen, err := choose(scenarios(), s, o.only)
	if err != nil {
		return err
	}
	if o.list {
		for _, sc := range chosen {
			fmt.Printf("%s  %s\n", sc.number, sc.name)
		}
		return nil
	}
	if err := o.paths(); err != nil {
		return err
	}
	c := &cloud{suite: s, options: *o}
	r := &report{Suite: s.name, Nova: s.nova, Mode: "simulated", Began: time.Now()}
	err = c.bringUp(ctx)
	r.BringUpSeconds = time.Since(r.Began).Seconds()
	if err == nil {
		err = c.play(ctx, chosen, r)
	} else {
		err = fmt.Errorf("bringing the cloud up: %w", err)
	}
	if o.stay && ctx.Err() == nil {
		c.linger(ctx)
	}
	r.Seconds = time.Since(r.Began).Seconds()
	return errors.Join(err, c.tearDown(), r.write(filepath.Join(o.out, "report.json")))
}

// paths makes every path absolute and the directory of artefacts empty.
func (o *options) paths() error {
	if o.out == "" {
		o.out = filepath.Join("build/openstack", o.suite)
	}
	if o.rootfs == "" {
		o.rootfs = filepath.Join("build/openstack/_rootfs", o.suite)
	}
	for _, path := range []*string{&o.rootfs, &o.bin, &o.nova, &o.guest, &o.out} {
		absolute, err := filepath.Abs(*path)
		if err != nil {
			return err
		}
		*path = absolute
	}
	if err := os.RemoveAll(o.out); err != nil {
		return err
	}
	return os.MkdirAll(o.out, 0o755)
}

// choose returns the suite's scenarios that were asked for.
func choose(all []scenario, s suite, only string) ([]scenario, error) {
	match, err := regexp.Compile(only)
	if err != nil {
		return nil, err
	}
	var chosen []scenario
	for _, sc := range all {
		if sc.since <= s.nova && (sc.until == 0 || s.nova <= sc.until) && (match.MatchString(sc.number) || match.MatchString(sc.name)) && (!sc.asked || only != "") {
			chosen = append(chosen, sc)
		}
	}
	if len(chosen) == 0 {
		return nil, fmt.Errorf("no scenario of Nova %d matches %q", s.nova, only)
	}
	return chosen, nil
}

// linger leaves the cloud to be looked at.
func (c *cloud) linger(ctx context.Context) {
	fmt.Println("\nThe cloud stays until Control-C. In another terminal, as root:")
	for _, name := range []string{"controller", "compute1", "compute2"} {
		fmt.Printf("  nsenter --target $(pgrep -f 'exe machine %s ') --mount --uts --ipc --net\n", name)
	}
	<-ctx.Done()
}

// report is report.json.
type report struct {
	Suite          string         `json:"suite"`
	Nova           int            `json:"nova"`
	Mode           string         `json:"mode"`
	Began          time.Time      `json:"began"`
	BringUpSeconds float64        `json:"bring_up_seconds"`
	Seconds        float64        `json:"seconds"`
	Scenarios      []outcome      `json:"scenarios"`
	Figures        map[string]any `json:"figures,omitempty"`
}

type outcome struct {
	Number  string    `json:"number"`
	Name    string    `json:"name"`
	Held    bool      `json:"held"`
	Error   string    `json:"error,omitempty"`
	Began   time.Time `json:"began"`
	Seconds float64   `json:"seconds"`
	Notes   []string  `json:"notes,omitempty"`
}

func (r *report) write(path string) error {
	raw, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(path, append(raw, '\n'), 0o644)
}

func say(format string, args ...any) { fmt.Printf(format+"\n", args...) }

// blankDisk is an empty disk: the guests boot by kernel and initrd, and have it so that there is something to copy.
func blankDisk(path string) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	return errors.Join(f.Truncate(16<<20), f.Close())
}

package tunnel

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/google/uuid"
	"github.com/spf13/cobra"

	"github.com/safeconduct/safeconduct/services/version"
)

// Command is the command line of safeconduct-tunnel.
func Command() *cobra.Command {
	var node string
	c := &cobra.Command{
		Use:   "safeconduct-tunnel",
		Short: "Carry a whole migration stream between two hosts, encrypted under the attested session of its VM",
		Long: `Carry a whole migration stream between two hosts, encrypted under the attested session of its VM.

At the source, QEMU migrates to the unix socket that "source" makes; at the destination, "destination" passes the stream on to the unix socket on
which the incoming QEMU listens. Both need an armed session of the VM and a policy whose exported_keys name "tunnel".`,
		Version: version.Version, SilenceUsage: true, SilenceErrors: true,
	}
	c.PersistentFlags().StringVar(&node, "node", "unix:///run/safeconduct/node.sock", "the node service of this host")
	c.AddCommand(sourceCommand(&node), destinationCommand(&node))
	return c
}

func sourceCommand(node *string) *cobra.Command {
	var instance, listen, peer string
	c := &cobra.Command{
		Use: "source --instance UUID --listen PATH --peer ADDRESS", Short: "The end where QEMU's outgoing migration of one VM connects", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if id, err := uuid.Parse(instance); err != nil || id.String() != instance {
				return fmt.Errorf("--instance %q is not a UUID in canonical lower case", instance)
			}
			network, address := endpoint(peer)
			return run(cmd, *node, "unix", listen, func(ctx context.Context, l net.Listener, keys Keys, log *slog.Logger) error {
				return (&Source{Instance: instance, Keys: keys, Log: log, Dial: func(ctx context.Context) (net.Conn, error) {
					return new(net.Dialer).DialContext(ctx, network, address)
				}}).Serve(ctx, l)
			})
		},
	}
	f := c.Flags()
	f.StringVar(&instance, "instance", "", "UUID of the VM")
	f.StringVar(&listen, "listen", "", "unix socket that QEMU migrates to; made with mode 0600")
	f.StringVar(&peer, "peer", "", "the destination's tunnel: HOST:PORT, or unix:PATH")
	return require(c, "instance", "listen", "peer")
}

func destinationCommand(node *string) *cobra.Command {
	var listen, target string
	c := &cobra.Command{
		Use: "destination --listen ADDRESS --target PATH", Short: "The end that passes incoming migrations on to their QEMUs", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			network, address := endpoint(listen)
			return run(cmd, *node, network, address, func(ctx context.Context, l net.Listener, keys Keys, log *slog.Logger) error {
				return (&Destination{Keys: keys, Log: log, Reach: func(ctx context.Context, instance string) (net.Conn, error) {
					// The instance is that of a session which has been proven, so it is a UUID.
					return new(net.Dialer).DialContext(ctx, "unix", strings.ReplaceAll(target, "{instance}", instance))
				}}).Serve(ctx, l)
			})
		},
	}
	f := c.Flags()
	f.StringVar(&listen, "listen", "", "where the other host's tunnel connects: HOST:PORT, or unix:PATH")
	f.StringVar(&target, "target", "", "unix socket on which the incoming QEMU listens; {instance} stands for the VM's UUID")
	return require(c, "listen", "target")
}

func require(c *cobra.Command, flags ...string) *cobra.Command {
	for _, name := range flags {
		_ = c.MarkFlagRequired(name) // the flag is there
	}
	return c
}

func endpoint(s string) (network, address string) {
	if path, ok := strings.CutPrefix(s, "unix:"); ok {
		return "unix", path
	}
	return "tcp", s
}

// run listens and serves until SIGINT or SIGTERM.
func run(cmd *cobra.Command, node, network, address string, serve func(context.Context, net.Listener, Keys, *slog.Logger) error) error {
	ctx, stop := signal.NotifyContext(cmd.Context(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	log := slog.New(slog.NewJSONHandler(cmd.ErrOrStderr(), nil))
	keys, err := NewNodeKeys(node)
	if err != nil {
		return err
	}
	l, err := listenOn(ctx, network, address)
	if err != nil {
		return errors.Join(err, keys.Close())
	}
	log.Info("listening", "address", l.Addr().String(), "version", version.Version)
	return errors.Join(serve(ctx, l, keys, log), keys.Close())
}

// listenOn makes a socket that only this user may connect to: it is made under another name, given its mode and then its place.
func listenOn(ctx context.Context, network, address string) (net.Listener, error) {
	if network != "unix" {
		return new(net.ListenConfig).Listen(ctx, network, address)
	}
	if info, err := os.Lstat(address); err == nil && info.Mode().Type() != fs.ModeSocket {
		return nil, fmt.Errorf("%s exists and is no socket", address)
	}
	fresh := filepath.Join(filepath.Dir(address), "."+filepath.Base(address)+".new")
	if err := os.Remove(fresh); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	l, err := new(net.ListenConfig).Listen(ctx, "unix", fresh)
	if err != nil {
		return nil, err
	}
	l.(*net.UnixListener).SetUnlinkOnClose(false)
	if err := errors.Join(os.Chmod(fresh, 0o600), os.Rename(fresh, address)); err != nil {
		return nil, errors.Join(err, l.Close())
	}
	return &unlinking{Listener: l, path: address}, nil
}

// unlinking removes its socket when it is closed.
type unlinking struct {
	net.Listener
	path string
}

func (u *unlinking) Close() error {
	err := u.Listener.Close()
	if err == nil {
		err = os.Remove(u.path)
	}
	return err
}

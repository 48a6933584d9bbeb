// Command sgxplugin is a device plugin that hands out SGX's devices by name and nothing behind them: it lets a cluster without SGX schedule as one with it.
package main

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"

	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	plugin "k8s.io/kubelet/pkg/apis/deviceplugin/v1beta1"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, plugin.DevicePluginPath)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "sgxplugin:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, dir string) error {
	group, ctx := errgroup.WithContext(ctx)
	for _, resource := range []string{"enclave", "provision"} {
		group.Go(func() error { return serve(ctx, dir, resource) })
	}
	return group.Wait()
}

type devices struct {
	plugin.UnimplementedDevicePluginServer
	stop <-chan struct{}
}

func (d *devices) GetDevicePluginOptions(context.Context, *plugin.Empty) (*plugin.DevicePluginOptions, error) {
	return &plugin.DevicePluginOptions{}, nil
}

// ListAndWatch says that there are ten, and that they are well, until the end.
func (d *devices) ListAndWatch(_ *plugin.Empty, s plugin.DevicePlugin_ListAndWatchServer) error {
	var all []*plugin.Device
	for i := range 10 {
		all = append(all, &plugin.Device{ID: fmt.Sprintf("device-%d", i), Health: plugin.Healthy})
	}
	if err := s.Send(&plugin.ListAndWatchResponse{Devices: all}); err != nil {
		return err
	}
	select {
	case <-d.stop:
	case <-s.Context().Done():
	}
	return nil
}

// Allocate marks the container and gives it no device.
func (d *devices) Allocate(_ context.Context, r *plugin.AllocateRequest) (*plugin.AllocateResponse, error) {
	out := &plugin.AllocateResponse{}
	for range r.GetContainerRequests() {
		out.ContainerResponses = append(out.ContainerResponses, &plugin.ContainerAllocateResponse{Annotations: map[string]string{"safeconduct.test/sgx": "none"}})
	}
	return out, nil
}

func serve(ctx context.Context, dir, resource string) error {
	socket := filepath.Join(dir, "safeconduct-test-"+resource+".sock")
	if err := os.RemoveAll(socket); err != nil {
		return err
	}
	l, err := new(net.ListenConfig).Listen(ctx, "unix", socket)
	if err != nil {
		return err
	}
	s := grpc.NewServer()
	plugin.RegisterDevicePluginServer(s, &devices{stop: ctx.Done()})
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return s.Serve(l) })
	group.Go(func() error { <-ctx.Done(); s.Stop(); return nil })
	group.Go(func() error {
		conn, err := grpc.NewClient("unix://"+filepath.Join(dir, "kubelet.sock"), grpc.WithTransportCredentials(insecure.NewCredentials()))
		if err != nil {
			return err
		}
		defer conn.Close()
		_, err = plugin.NewRegistrationClient(conn).Register(ctx, &plugin.RegisterRequest{
			Version: plugin.Version, Endpoint: filepath.Base(socket), ResourceName: "sgx.intel.com/" + resource,
		}, grpc.WaitForReady(true))
		return err
	})
	return group.Wait()
}

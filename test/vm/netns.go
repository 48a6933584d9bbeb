package vm

import (
	"errors"
	"fmt"
	"path/filepath"
	"runtime"

	"golang.org/x/sys/unix"
)

// inNetns runs open in a network namespace of `ip netns`; sockets that it makes stay there. An empty name is the present one.
func inNetns(name string, open func() error) error {
	if name == "" {
		return open()
	}
	result := errors.New("the goroutine in the namespace ended early")
	done := make(chan struct{})
	go func() {
		defer close(done)
		// The thread is not unlocked: it ends with the goroutine and takes the namespace along.
		runtime.LockOSThread()
		result = enter(name)
		if result == nil {
			result = open()
		}
	}()
	<-done
	return result
}

func enter(name string) error {
	fd, err := unix.Open(filepath.Join("/run/netns", name), unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("network namespace %s: %w", name, err)
	}
	return errors.Join(unix.Setns(fd, unix.CLONE_NEWNET), unix.Close(fd))
}

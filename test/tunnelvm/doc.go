// Package tunnelvm is the end-to-end suite of the tunnel under a real QEMU: two nodes with their tunnels, a guest with a vTPM, and somebody between the
// tunnels who does to the records of a migration what an attacker on the network can. However it ends, the guest runs in one place.
//
// It needs QEMU, swtpm and a Debian cloud kernel: `make e2e` runs it.
package tunnelvm

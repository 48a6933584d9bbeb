//go:build !race

package receipt

const stride = 1

//go:build race

package receipt

// stride lets the race detector, which is slow and finds nothing in a parser, look at some bytes only.
const stride = 16

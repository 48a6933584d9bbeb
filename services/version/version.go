// Package version says what was built.
package version

// Version is set by the linker (see the Makefile).
var Version = "unknown"

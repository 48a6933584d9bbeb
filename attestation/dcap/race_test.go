//go:build race

package dcap

// raceEnabled says that this is the race detector's build, ten times slower.
const raceEnabled = true

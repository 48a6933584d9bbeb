package cli

import (
	"runtime"

	"github.com/spf13/cobra"

	"github.com/safeconduct/safeconduct/services/version"
)

// versionView is what version prints.
type versionView struct {
	Version string `json:"version"`
	Go      string `json:"go"`
	OS      string `json:"os"`
	Arch    string `json:"arch"`
}

func versionCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "version", Short: "Say which release of the command line this is", Args: cobra.NoArgs,
		Long: "Say which release of the command line this is. The node service's is in safeconduct status.",
		RunE: func(*cobra.Command, []string) error {
			v := versionView{Version: version.Version, Go: runtime.Version(), OS: runtime.GOOS, Arch: runtime.GOARCH}
			return a.show(v, func(s *sheet) { s.line("safeconduct %s (%s, %s/%s)", v.Version, v.Go, v.OS, v.Arch) })
		},
	}
}

package dcap

// Status of a TCB, in Intel's words. The zero value is no status, and nothing accepts it.
type Status string

// The statuses of TCB info v3.
const (
	UpToDate                          Status = "UpToDate"
	SWHardeningNeeded                 Status = "SWHardeningNeeded"
	ConfigurationNeeded               Status = "ConfigurationNeeded"
	ConfigurationAndSWHardeningNeeded Status = "ConfigurationAndSWHardeningNeeded"
	OutOfDate                         Status = "OutOfDate"
	OutOfDateConfigurationNeeded      Status = "OutOfDateConfigurationNeeded"
	Revoked                           Status = "Revoked"
	// Unsupported is not in TCB info: no level of it fits the platform, which is then below every level that Intel has judged.
	Unsupported Status = "UNSUPPORTED"
)

func (s Status) known() bool {
	switch s {
	case UpToDate, SWHardeningNeeded, ConfigurationNeeded, ConfigurationAndSWHardeningNeeded, OutOfDate, OutOfDateConfigurationNeeded, Revoked:
		return true
	default:
		return false
	}
}

// ofEnclave says whether a status can be that of a quoting enclave or TDX module.
func (s Status) ofEnclave() bool { return s == UpToDate || s == OutOfDate || s == Revoked }

// converge is the platform's status with that of a quoting enclave or TDX module taken into account (Intel quote verification library,
// convergeTcbStatus). An empty part is one that does not apply.
func converge(platform, part Status) Status {
	switch {
	case platform == Revoked || part == Revoked:
		return Revoked
	case platform == Unsupported || part == Unsupported:
		return Unsupported
	case part == UpToDate || part == "":
		return platform
	}
	switch platform { // with a part that is out of date
	case ConfigurationNeeded, ConfigurationAndSWHardeningNeeded, OutOfDateConfigurationNeeded:
		return OutOfDateConfigurationNeeded
	default:
		return OutOfDate
	}
}

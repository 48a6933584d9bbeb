// What crypto/statestream is measured against, in a module of its own: minio/sio is no dependency of Safeconduct.
module github.com/safeconduct/safeconduct/test/streambench

go 1.26.0

require (
	github.com/minio/sio v0.4.1
	github.com/safeconduct/safeconduct v0.0.0
)

require (
	golang.org/x/crypto v0.58.0 // indirect
	golang.org/x/sys v0.49.0 // indirect
)

replace github.com/safeconduct/safeconduct => ../..

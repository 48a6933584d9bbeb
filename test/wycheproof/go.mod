// Project Wycheproof's vectors, in a module of their own: they are some 100 MB.
module github.com/safeconduct/safeconduct/test/wycheproof

go 1.26.4

require (
	github.com/c2sp/wycheproof v0.0.0-20260902155932-3fa63dd0344a
	github.com/safeconduct/safeconduct v0.0.0
)

replace github.com/safeconduct/safeconduct => ../..

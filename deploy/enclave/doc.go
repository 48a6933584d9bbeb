// Package enclave holds what an SGX enclave of safeconductd is built and signed from: enclave.json (production), enclave.preproduction.json (a
// debug enclave, which protects nothing), build.sh, sign.sh and reproduce.sh. docs/enclave.md says how to use them. Its tests hold the two
// files to EGo's keys and to what the design rests on. There is no code to import.
package enclave

#!/usr/bin/env bash
# Runs docs/protocol/handshake.pv and its mutants through ProVerif 2.05 or later, which Debian does not package: it must be in PATH. Prints a line a
# case; exits non-zero if one is not as expected, 2 if there is no proverif.
set -euo pipefail
cd "$(dirname "$0")/../.."
model=$PWD/docs/protocol/handshake.pv
command -v proverif >/dev/null || { echo 'proverif is not installed: see docs/protocol/README.md' >&2; exit 2; }
out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT
failed=0

# results FILE: a line of ten letters, t(rue), f(alse) or ?, in the order of the queries of handshake.pv: two of secrecy of what is said, two of
# secrecy of the seeds, two of agreement, two of enrolment, two of reachability.
results() {
  { proverif "$1" 2>&1 || true; } | sed -nE '/^RESULT \(/d; /^RESULT/{s/.* is true\.$/t/; s/.* is false\.$/f/; s/^RESULT.*/?/; p}' | tr -d '\n'
}

expect() { # NAME RESULTS FILE
  local got
  got=$(results "$3")
  if [[ $got == "$2" ]]; then
    echo "$1: $got, as expected"
  else
    echo "FAILED: $1: expected $2, found ${got:-nothing}"
    failed=1
  fi
}

mutant() { # NAME RESULTS SED-SCRIPT: what follows when a part of the protocol is left out
  sed -E "$3" "$model" >"$out/$1.pv"
  if cmp -s "$model" "$out/$1.pv"; then
    echo "FAILED: mutant $1 changes nothing"
    failed=1
  else
    expect "mutant $1" "$2" "$out/$1.pv"
  fi
}

expect handshake.pv ttttttttff "$model"
mutant any-code-is-accepted ffffffttff 's/let \(=safeconduct, /let (anything: measurement, /'
mutant kem-keys-are-not-bound ffffffttff 's/\(ctx, nonce_S, nonce_D, pk_S, pk_D, sign_D\)/(ctx, nonce_S, nonce_D, sign_D)/'
mutant S-asks-for-no-enrolment ftftftftff 's/=pD, polD/pD: platform, polD/'
mutant sealed-before-appraisal ftftftttff '/^let Source/,/^let Destination/{/verify\(pD/d}'
mutant task-is-not-bound ttttffttff 's/\(attempt, instance, hS, hD, pS, pD, polS, polD\)\)\./(hS, hD, pS, pD))./'
mutant one-key-confirms-for-both tttttfttff 's/l_confirm_S, th2/l_confirm_D, th2/'
mutant no-confirmation-by-D ttttftttff 's/^  if confirm_D = .* then$//'
# Two that change nothing: the quotes are verified under the platforms enrolled for the two hosts, and the two evidences have different places in the
# messages, so that in phase 1 names of hosts and roles are belt and braces.
mutant hosts-are-not-in-ctx ttttttttff 's/\(attempt, instance, hS, hD, pS, pD, polS, polD\)\)\./(attempt, instance, polS, polD))./'
mutant roles-have-one-label ttttttttff 's/const to_D, to_S, role_S, role_D: bitstring/const to_D, role_S: bitstring/; s/to_S/to_D/g; s/role_D/role_S/g'
exit $failed

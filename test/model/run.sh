#!/usr/bin/env bash
# Model-checks docs/protocol/session.pml with Spin: the model must hold, each mutant must be rejected by the property that is meant to find
# it, and each witness must be reachable. Prints a line a case; exits non-zero if one is not as expected. Needs spin and gcc (Debian packages of
# these names), 1 GB of memory, and two minutes on two processors that are free.
#
#   test/model/run.sh [DIRECTORY]     keeps what Spin wrote, for a look at a trail; default: a temporary directory, kept if a case fails
set -euo pipefail
cd "$(dirname "$0")/../.."
model=$PWD/docs/protocol/session.pml
kept=${1:-}
out=${kept:-$(mktemp -d)}
mkdir -p "$out"
: >"$out/results"

for tool in spin gcc; do
  command -v "$tool" >/dev/null || { echo "$tool is not installed: apt-get install $tool" >&2; exit 2; }
done

# check NAME SAFETY|LIVENESS FLAG...: builds and runs one verifier in $out/NAME. Leaves what it found in $found: nothing, the name of a broken property,
# "invalid end state" or "acceptance cycle"; and the number of states in $states.
check() {
  local name=$1 kind=$2 build=(-DNOCLAIM -DSAFETY) run=()
  shift 2
  if [[ $kind == LIVENESS ]]; then
    build=(-DNFAIR=3)
    run=(-a -f)
  fi
  mkdir -p "$out/$name"
  (
    cd "$out/$name"
    rm -f -- *
    spin "$@" -a "$model" >spin.log 2>&1 || { cat spin.log >&2; exit 1; }
    # Without optimisation: the compiler would take longer than most of the searches.
    gcc -w -DCOLLAPSE -DMEMLIM=2000 -DVECTORSZ=2048 "${build[@]}" -o pan pan.c
    ./pan "${run[@]}" -m400000 -w24 >pan.log 2>&1 || true
  ) || { found='no verifier'; states=0; return; }
  local log=$out/$name/pan.log
  states=$(sed -nE 's/^ *([0-9.e+]+) states, stored.*/\1/p' "$log")
  if grep -q 'assertion violated' "$log"; then
    found=$(sed -nE 's/.*assertion violated *!\(([a-z_]+)\).*/\1/p' "$log" | head -1)
    found=${found:-an unnamed assertion}
  elif grep -qE 'invalid end state \(' "$log"; then
    found='invalid end state'
  elif grep -qE 'acceptance cycle \(' "$log"; then
    found='acceptance cycle'
  elif grep -q 'errors: 0' "$log" && ! grep -qE 'search depth too small|out of memory|hashtable overflow|max search' "$log"; then
    found=
  else
    found='an unfinished search'
  fi
}

wrong() {
  echo "FAILED: $1: expected ${2:-nothing}, found ${found:-nothing} (see $out/$3)"
}

verify() { # TITLE KIND FLAG...
  local title=$1 name=${1//[^a-z]/-}
  check "$name" "${@:2}"
  if [[ -n $found ]]; then wrong "$title" '' "$name"; else echo "session.pml, $title: verified, $states states"; fi
}

reject() { # MUTANT PROPERTY KIND FLAG...
  local property=$2
  check "$1" "$3" "-DMUTANT_$1" "${@:4}"
  if [[ $found != "$property" ]]; then wrong "mutant $1" "$property" "$1"; else echo "mutant $1: rejected by $property"; fi
}

reach() { # NUMBER NAME
  check "$2" SAFETY "-DWITNESSES=$1"
  if [[ $found != "$2" ]]; then wrong "witness $2" "$2" "$2"; else echo "witness $2: reached"; fi
}

# start runs a case beside the one under way: two at a time.
started=0
start() {
  while (($(jobs -pr | wc -l) >= 2)); do wait -n || true; done
  started=$((started + 1))
  "$@" | tee -a "$out/results" &
}

start verify 'safety and no deadlock' SAFETY
start verify 'safety under a Nova that commits too early' SAFETY -DHASTY_NOVA -DATTEMPTS=1
start verify 'every session ends' LIVENESS -DATTEMPTS=1

start reach 1 moved
start reach 2 moved_at_the_second_attempt
start reach 3 source_never_heard_of_the_commit
start reach 4 moved_in_doubt

# What a line says: without that part of the protocol, this property is the one that breaks.
start reject ARM_SOURCE_FIRST source_armed_alone SAFETY
start reject BLOB_TWICE blob_opened_twice SAFETY
start reject BLOB_UNDER_WAY_OVERLOOKED half_state_committed SAFETY -DHASTY_NOVA -DATTEMPTS=1
start reject CHECK_THEN_DESTROY half_state_committed SAFETY -DHASTY_NOVA -DATTEMPTS=1
start reject COMMIT_AFTER_ABORT ended_session_changed SAFETY
start reject DESTINATION_DOES_NOT_WAIT two_live_copies SAFETY
start reject DISCARD_IN_DOUBT secret_left_behind SAFETY
start reject FORGET_SECRET_EARLY secret_lost SAFETY
start reject ID_REUSE migration_id_reused SAFETY
start reject INCOMING_DROPPED_AT_START secret_left_behind SAFETY
start reject KEEP_KEY_AFTER_ABORT key_after_end SAFETY
start reject LEDGER_IN_MEMORY migration_id_reused SAFETY
start reject NO_EXPIRY 'invalid end state' SAFETY
start reject NO_KEPT_ANSWER request_acted_on_twice SAFETY
start reject NO_RETURN_PATH vm_lost SAFETY
start reject NO_WHOLE_CHECK half_state_committed SAFETY -DHASTY_NOVA -DATTEMPTS=1
start reject ONE_KEY foreign_blob_opened SAFETY
start reject PROMOTION_NOT_DURABLE secret_left_behind SAFETY
start reject RELEASE_AFTER_ABORT blob_released_after_end SAFETY
start reject RETRY_RENEWS_LEASE 'acceptance cycle' LIVENESS -DATTEMPTS=1
start reject SOURCE_COMMITS_FIRST one_sided_commit SAFETY

wait
if [[ $(wc -l <"$out/results") != "$started" ]] || grep -q '^FAILED' "$out/results"; then exit 1; fi
if [[ -z $kept ]]; then rm -rf "$out"; fi

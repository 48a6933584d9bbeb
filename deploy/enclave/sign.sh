#!/usr/bin/env bash
# Signs what build.sh laid out, and prints what a policy names: MRENCLAVE, MRSIGNER, product and version. Needs EGo; no network. Run it where
# the signing key is, which need not be where it was built.
set -euo pipefail
export LC_ALL=C
[ $# = 2 ] || { echo 'usage: sign.sh DIR SIGNING-KEY.pem' >&2; exit 2; }
dir=$1
key=$(readlink -f "$2")
# "ego sign" makes a new key where it finds none, and signs with that.
[ -s "$key" ] || { echo "sign.sh: $2: no such key" >&2; exit 1; }
text=$(openssl rsa -in "$key" -noout -text 2>/dev/null) || { echo "sign.sh: $2: expected an RSA private key in PEM" >&2; exit 1; }
if [[ $text != *'Private-Key: (3072 bit'* || $text != *'publicExponent: 3 (0x3)'* ]]; then # SGX allows no other
  echo 'sign.sh: expected an RSA key of 3072 bits with exponent 3: openssl genrsa -out KEY -3 3072' >&2
  exit 1
fi
command -v ego >/dev/null || { echo 'sign.sh: ego not found: install EGo v1.9.0 and add /opt/ego/bin to PATH' >&2; exit 1; }
cd "$dir"
sha256sum --check --quiet <(grep -E '  (safeconductd|enclave\.json|policy-keys\.pem)$' BUILD)
[ ! -e signing-key.pem ] || { echo "sign.sh: $dir/signing-key.pem is in the way" >&2; exit 1; }
trap 'rm -f signing-key.pem' EXIT
ln -s "$key" signing-key.pem
# In this directory and by this name: "ego sign" writes the paths of executable and key into what is measured.
ego sign enclave.json
{
  echo "mrenclave $(ego uniqueid safeconductd)"
  echo "mrsigner $(ego signerid safeconductd)"
  sed -nE 's/^ *"(productID|securityVersion|debug)": *([a-z0-9]+),?$/\1 \2/p' enclave.json
  sha256sum safeconductd
} | tee SIGNED

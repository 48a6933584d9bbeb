#!/usr/bin/env bash
# Checks that each series applies, without fuzz, to the packaged source of its Nova release: the python3-nova of Debian 12 (26), 13 (31), forky (33) and
# sid (34), got with an apt of its own that checks the archive's signatures, and that what comes out compiles. It changes nothing of this machine's apt.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export PATH=/usr/sbin:/usr/bin:/sbin:/bin
mirror=$(apt-get indextargets --format '$(SITE)' 'Created-By: Packages' 2>/dev/null | grep -v security | head -n 1)
for pair in 26:bookworm 31:trixie 33:forky 34:sid; do
  release=${pair%:*} suite=${pair#*:} dir=$work/$suite
  mkdir -p "$dir"/{etc/apt.conf.d,etc/preferences.d,etc/sources,state/lists/partial,cache/archives/partial,deb,root}
  cat >"$dir/etc/sources/suite.sources" <<EOF
Types: deb
URIs: ${mirror:-http://deb.debian.org/debian}
Suites: $suite
Components: main
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg
EOF
  cat >"$dir/apt.conf" <<EOF
Dir "$dir";
Dir::Etc "etc";
Dir::Etc::parts "apt.conf.d";
Dir::Etc::sourcelist "/dev/null";
Dir::Etc::sourceparts "sources";
Dir::State "state";
Dir::State::status "/dev/null";
Dir::Cache "cache";
Acquire::Languages "none";
Acquire::IndexTargets::deb::Contents-deb::DefaultEnabled "false";
// A mirror that has been still for a while is taken as it is; signatures are checked all the same.
Acquire::Check-Valid-Until "false";
Acquire::AllowInsecureRepositories "false";
APT::Sandbox::User "root";
EOF
  export APT_CONFIG=$dir/apt.conf
  { apt-get update -q -o APT::Update::Error-Mode=any && cd "$dir/deb" && apt-get download -q python3-nova; } >"$dir/log" 2>&1 || { cat "$dir/log" >&2; exit 1; }
  unset APT_CONFIG
  deb=$(ls "$dir"/deb/python3-nova_*.deb)
  version=$(dpkg-deb -f "$deb" Version)
  case $version in
    *:"$release".*) ;;
    *) echo "$suite has Nova $version, not $release: the series need a new release" >&2; exit 1 ;;
  esac
  dpkg-deb -x "$deb" "$dir/root"
  cd "$dir/root/usr/lib/python3/dist-packages"
  before=$(sha256sum nova/compute/api.py)
  while read -r name; do
    patch --strip=1 --fuzz=0 --force --silent --input "$here/$release/$name"
  done <"$here/$release/series"
  [ "$before" != "$(sha256sum nova/compute/api.py)" ]
  /usr/bin/python3 -c 'import ast, sys; ast.parse(open(sys.argv[1]).read())' nova/compute/api.py
  grep -q '^def runs_safeconduct' nova/compute/api.py
  echo "Nova $version ($suite): patches/$release applies"
done

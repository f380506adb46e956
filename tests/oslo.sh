#!/usr/bin/env bash
# OpenStack's image inspector, which only newer releases of Debian's package
# python3-oslo.utils have: unpacked into a folder of its own, not installed. It
# needs the installed packages python3-oslo.i18n and python3-cryptography.
#
#   tests/oslo.sh DIR      then BDRV_OSLO=DIR/usr/lib/python3/dist-packages
set -euo pipefail
folder=$(realpath -m "${1:?a folder}")
state=$folder/.apt
mkdir -p "$state"/{lists/partial,archives/partial,parts}
: >"$state/status"
mirror=$(cat /etc/apt/sources.list /etc/apt/sources.list.d/* 2>/dev/null |
  grep -v '^ *#' | grep -oE 'https?://[^ ]+/debian/?( |$)' | head -n 1 |
  tr -d ' ' || true)
echo "deb ${mirror:?no source of Debian is configured} sid main" \
  >"$state/sources.list"
apt=(
  apt-get -qq -o Dir::Etc::sourcelist="$state/sources.list"
  -o Dir::Etc::sourceparts="$state/parts" -o Dir::State::lists="$state/lists"
  -o Dir::State::status="$state/status" -o Dir::Cache="$state"
  -o APT::Sandbox::User=root -o Acquire::Languages=none
)
"${apt[@]}" update
cd "$state"
"${apt[@]}" download python3-oslo.utils
for package in ./*.deb; do dpkg-deb -x "$package" "$folder"; done
rm -rf "$state"

#!/usr/bin/env bash
# Put the two programs of Debian's package `prometheus` into a folder, unless they are there or on the PATH. The package
# is unpacked, not installed: no service starts, and root is needed only if apt's cache is empty.
set -euo pipefail

folder=$1
found() { PATH="$folder:$PATH" command -v "$1" > /dev/null; }
if found prometheus && found promtool; then
  exit 0
fi
if ! command -v apt-get > /dev/null || ! command -v dpkg-deb > /dev/null; then
  echo "prometheus and promtool are not installed, and without apt-get they cannot be fetched from here" >&2
  exit 1
fi
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
fetch() { apt-get download -qq -o APT::Sandbox::User=root prometheus; }
echo "Fetching Debian's prometheus …"
if ! fetch 2> errors; then
  if [ "$(id -u)" != 0 ]; then
    echo "prometheus cannot be fetched; apt-get update, as root, may help:" >&2
    cat errors >&2
    exit 1
  fi
  apt-get update -qq
  fetch
fi
dpkg-deb --extract prometheus_*.deb package
mkdir -p "$folder"
install package/usr/bin/prometheus package/usr/bin/promtool "$folder"

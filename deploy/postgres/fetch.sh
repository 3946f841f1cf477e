#!/usr/bin/env bash
# Put Debian's PostgreSQL into a folder, for the tests, unless it is installed. The packages are unpacked, not installed:
# no service starts, and root is needed only if apt's cache is empty.
set -euo pipefail

folder=$1
if compgen -G "$folder/usr/lib/postgresql/*/bin/initdb" > /dev/null || compgen -G "/usr/lib/postgresql/*/bin/initdb" > /dev/null ||
  command -v initdb > /dev/null; then
  exit 0
fi
if ! command -v apt-get > /dev/null || ! command -v dpkg-deb > /dev/null; then
  echo "PostgreSQL is not installed, and without apt-get it cannot be fetched from here" >&2
  exit 1
fi
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
# The server's package, and what it needs and this machine lacks. Its client and what makes a cluster are not needed.
wanted() {
  apt-get install --simulate --no-install-recommends postgresql 2> errors |
    sed -n 's/^Inst \([^ ]*\) .*/\1/p' | grep --invert-match --extended-regexp '^(postgresql|postgresql-(common|client).*|ssl-cert|perl.*)$'
}
fetch() {
  local packages
  packages=$(wanted)
  # shellcheck disable=SC2086  # a list
  [ -n "$packages" ] && apt-get download -qq -o APT::Sandbox::User=root $packages 2> errors
}
echo "Fetching Debian's postgresql …"
if ! fetch; then
  if [ "$(id -u)" != 0 ]; then
    echo "postgresql cannot be fetched; apt-get update, as root, may help:" >&2
    cat errors >&2
    exit 1
  fi
  apt-get update -qq
  fetch
fi
mkdir -p "$folder"
for package in *.deb; do
  dpkg-deb --extract "$package" "$folder"
done

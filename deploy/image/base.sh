#!/usr/bin/env bash
# Make a base image of Debian with Python, by buildah and debootstrap, where none can be pulled:
#
#   deploy/image/base.sh localhost/python-debian:bookworm
#
# The mirror is that of this machine, as root.
set -euo pipefail

for program in buildah debootstrap; do
  command -v "$program" > /dev/null || { echo "$program is not installed (apt-get install buildah debootstrap)" >&2; exit 1; }
done
. /etc/os-release
mirror=$(sed -n 's/^URIs: *//p; s/^deb \(\[[^]]*\] \)\?\([^ ]*\) .*/\2/p' /etc/apt/sources.list /etc/apt/sources.list.d/* 2> /dev/null | head -1)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
debootstrap --variant=minbase --include=python3,python3-pip,python3-venv,ca-certificates "$VERSION_CODENAME" "$work/root" "$mirror" > "$work/log" 2>&1 \
  || { tail -5 "$work/log" >&2; exit 1; }
ln -sf python3 "$work/root/usr/bin/python"
rm -f "$work"/root/usr/lib/python3*/EXTERNALLY-MANAGED
rm -rf "$work"/root/var/cache/apt/* "$work"/root/var/lib/apt/lists/*
tar -C "$work/root" -cf "$work/root.tar" .
container=$(buildah from scratch)
buildah add --quiet "$container" "$work/root.tar" / > /dev/null
buildah config --env PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin --cmd python "$container"
buildah commit --quiet --rm "$container" "$1" > /dev/null

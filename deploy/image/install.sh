#!/bin/sh
# Install a lock and the project's wheel into /opt/speakerlens, without what a server does not use; two runs on the
# same base give the same files. Runs within the build of the image:
#
#   deploy/image/install.sh serve-cpu
set -eu

home=/opt/speakerlens
if [ -s /run/secrets/ca.pem ]; then export PIP_CERT=/run/secrets/ca.pem; fi
python -m venv --without-pip "$home"
pip="python -m pip --python $home/bin/python install --no-cache-dir --no-compile"
$pip --only-binary :all: --require-hashes -r "requirements/$1.txt"
$pip --no-deps --no-index /wheels/speakerlens-*.whl
python deploy/image/trim.py "$home"
python deploy/image/sbom.py "requirements/$1.txt" --out "$home/sbom.cdx.json"
"$home/bin/python" -B deploy/image/precompile.py
find "$home" -exec touch --no-dereference --date "@$SOURCE_DATE_EPOCH" {} +

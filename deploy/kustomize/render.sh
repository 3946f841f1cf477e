#!/usr/bin/env bash
# Write base/speakerlens.yaml: what the chart gives with its defaults. `helm` must be on the PATH.
set -euo pipefail
cd "$(dirname "$0")"
{
  echo "# Written by deploy/kustomize/render.sh from deploy/chart; do not edit."
  helm template speakerlens ../chart --namespace speakerlens 2> /dev/null
} > base/speakerlens.yaml

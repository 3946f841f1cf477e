#!/bin/sh
# Regenerates the Python code of the wire contracts, beside their .proto files. Run from the project's root.
set -eu
python -m grpc_tools.protoc -I . --python_out=. --grpc_python_out=. --mypy_out=. --mypy_grpc_out=. \
  speakerlens/protos/speakerlens/v1/identification.proto speakerlens/protos/inference/inference.proto

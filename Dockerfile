# The server and its client with ONNX Runtime; no torch, no compiler.
#
#   docker build --target cpu -t speakerlens:cpu .
#   docker run --rm -p 50051:50051 -p 8000:8000 -v "$PWD/build/demo/bundles:/bundles:ro" speakerlens:cpu
#
# The base may be any image with Python 3.11 or newer (as `python`) and pip. Behind a proxy with a certificate authority
# of its own, add `--secret id=ca,src=authority.pem`. docs/images.md has more.
ARG BASE_IMAGE=python:3.11-slim

# The project's wheel is built here, so that neither pip's cache nor the sources reach an image.
FROM ${BASE_IMAGE} AS project
WORKDIR /src
# The time of every file, so that two builds are the same; 2025-01-01.
ENV SOURCE_DATE_EPOCH=1735689600
COPY requirements/build.txt requirements/
RUN --mount=type=secret,id=ca,target=/run/secrets/ca.pem \
    if [ -s /run/secrets/ca.pem ]; then export PIP_CERT=/run/secrets/ca.pem; fi \
 && python -m pip install --no-cache-dir --require-hashes -r requirements/build.txt
COPY pyproject.toml README.md LICENSE ./
COPY protos protos
COPY measures measures
COPY serving serving
COPY scoring scoring
COPY speakerlens speakerlens
COPY deploy/image/install.sh deploy/image/trim.py deploy/image/sbom.py deploy/image/precompile.py deploy/image/
RUN python -m pip wheel --no-cache-dir --no-deps --no-build-isolation --wheel-dir /wheels .

# A virtual environment is all that a final image takes from these stages. Every dependency has its hash in requirements/.
FROM project AS installed-cpu
COPY requirements/serve-cpu.txt requirements/
RUN --mount=type=secret,id=ca,target=/run/secrets/ca.pem deploy/image/install.sh serve-cpu

# serve-gpu has CUDA 13, serve-gpu-cuda12 CUDA 12 (docs/gpu.md).
FROM project AS installed-gpu
ARG GPU_LOCK=serve-gpu
COPY requirements/serve-gpu*.txt requirements/
RUN --mount=type=secret,id=ca,target=/run/secrets/ca.pem deploy/image/install.sh "${GPU_LOCK}"

FROM ${BASE_IMAGE} AS runtime
ARG VERSION=unknown
ARG REVISION=unknown
ENV PATH=/opt/speakerlens/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONSAFEPATH=1 \
    ORT_DISABLE_TELEMETRY=1 \
    SPEAKERLENS_BUNDLES=/bundles \
    SPEAKERLENS_HOST=0.0.0.0 \
    SPEAKERLENS_METRICS_HOST=0.0.0.0
LABEL org.opencontainers.image.title="speakerlens" \
      org.opencontainers.image.description="Speaker identification with saliency maps" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
# gRPC, and /metrics over HTTP.
EXPOSE 50051 8000
USER 10001:10001
# A fortieth of a second of processor time. Images in OCI's format have no health check: docs/images.md.
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s --retries=3 \
    CMD ["python", "-m", "speakerlens.probe"]
# Exec form: the server is process 1 and receives SIGTERM itself.
ENTRYPOINT ["python", "-m", "speakerlens.serving"]

FROM runtime AS gpu
# Refuses to start where CUDA does not work. NVIDIA's container runtime reads the other two.
ENV SPEAKERLENS_DEVICE=cuda \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
COPY --from=installed-gpu /opt/speakerlens /opt/speakerlens

# The last stage is the default of a build without --target.
FROM runtime AS cpu
COPY --from=installed-cpu /opt/speakerlens /opt/speakerlens

# The serving side alone: a gRPC server with its client, ONNX Runtime, no torch and no compiler.
#
#   docker build --target cpu -t speakerlens:cpu .
#   docker run --rm -p 50051:50051 -p 8000:8000 -v "$PWD/build/demo/bundles:/bundles:ro" speakerlens:cpu
#
# The base may be any image with Python 3.11 or newer (as `python`) and pip. Behind a proxy that signs with its own
# authority, add `--secret id=ca,src=authority.pem`.
ARG BASE_IMAGE=python:3.11-slim

# Wheels are gathered here, so that neither pip's cache nor the sources reach an image.
FROM ${BASE_IMAGE} AS project
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY speakerlens speakerlens
COPY protos protos
COPY measures measures
COPY serving serving
RUN --mount=type=secret,id=ca,target=/run/secrets/ca.pem \
    if [ -s /run/secrets/ca.pem ]; then export PIP_CERT=/run/secrets/ca.pem; fi \
 && python -m pip wheel --no-cache-dir --no-deps --wheel-dir /wheels .

FROM project AS wheels-cpu
RUN --mount=type=secret,id=ca,target=/run/secrets/ca.pem \
    if [ -s /run/secrets/ca.pem ]; then export PIP_CERT=/run/secrets/ca.pem; fi \
 && python -m pip wheel --no-cache-dir --prefer-binary --wheel-dir /wheels "$(echo /wheels/speakerlens-*.whl)[cpu]"

FROM project AS wheels-gpu
RUN --mount=type=secret,id=ca,target=/run/secrets/ca.pem \
    if [ -s /run/secrets/ca.pem ]; then export PIP_CERT=/run/secrets/ca.pem; fi \
 && python -m pip wheel --no-cache-dir --prefer-binary --wheel-dir /wheels "$(echo /wheels/speakerlens-*.whl)[gpu]"

# A virtual environment is all that the final image takes from the stages above.
FROM wheels-cpu AS installed-cpu
RUN python -m venv --without-pip /opt/speakerlens \
 && python -m pip --python /opt/speakerlens/bin/python install --no-cache-dir --no-index --find-links /wheels "speakerlens[cpu]"

FROM wheels-gpu AS installed-gpu
RUN python -m venv --without-pip /opt/speakerlens \
 && python -m pip --python /opt/speakerlens/bin/python install --no-cache-dir --no-index --find-links /wheels "speakerlens[gpu]"

FROM ${BASE_IMAGE} AS runtime
ENV PATH=/opt/speakerlens/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONSAFEPATH=1 \
    ORT_DISABLE_TELEMETRY=1 \
    SPEAKERLENS_BUNDLES=/bundles \
    SPEAKERLENS_HOST=0.0.0.0 \
    SPEAKERLENS_METRICS_HOST=0.0.0.0
LABEL org.opencontainers.image.title="speakerlens" \
      org.opencontainers.image.description="Speaker identification that shows what it listened to" \
      org.opencontainers.image.licenses="Apache-2.0"
# gRPC, and /metrics over HTTP.
EXPOSE 50051 8000
USER 10001:10001
# A port that begins with tcp:// is Kubernetes' link to a Service named speakerlens: the server ignores it, too.
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s --retries=3 \
    CMD ["/bin/sh", "-c", "port=${SPEAKERLENS_PORT##tcp://*}; exec speakerlens health --server 127.0.0.1:${port:-50051} --timeout 4"]
# Exec form: the server is process 1 and receives SIGTERM itself.
ENTRYPOINT ["python", "-m", "serving"]

FROM runtime AS gpu
COPY --from=installed-gpu /opt/speakerlens /opt/speakerlens

# Last, so that it is what a build without --target makes.
FROM runtime AS cpu
COPY --from=installed-cpu /opt/speakerlens /opt/speakerlens

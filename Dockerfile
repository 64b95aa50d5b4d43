# Three images from one lock file:
#   docker build --target worker     -t stream-worker:0.1.0 .            serves on the CPU; no torch
#   docker build --target worker-gpu -t stream-worker:0.1.0-gpu .        the same with the CUDA libraries
#   docker build --target exporter   -t stream-worker-exporter:0.1.0 .   trains and exports
# All run as uid 10001 on a read-only root file system; /tmp is the only place they may want to write.

# The Python that the tests run on.
FROM python:3.11-slim-bookworm AS build
COPY scripts/uv.txt /build/scripts/uv.txt
RUN pip install --no-cache-dir --requirement /build/scripts/uv.txt
# Compiled here, because the root file system is read-only later; copied, because the cache is another mount.
ENV UV_CACHE_DIR=/var/cache/uv \
    UV_COMPILE_BYTECODE=1 \
    UV_LINK_MODE=copy \
    UV_PROJECT_ENVIRONMENT=/opt/stream-worker \
    UV_PYTHON_DOWNLOADS=never
WORKDIR /build
COPY pyproject.toml uv.lock ./

# The dependencies, one stage a target: they change seldom, so their large layer is seldom pushed anew.
FROM build AS worker-dependencies
# The locked ONNX Runtime serves CPU and GPU. Its CUDA parts are half the image, and this one has no CUDA to use them with;
# the rest is the very build that the tests run.
RUN --mount=type=cache,target=/var/cache/uv \
    uv sync --frozen --no-dev --no-install-project --extra librdkafka \
    && find /opt/stream-worker -name 'libonnxruntime_providers_cuda.so' -delete \
    && find /opt/stream-worker -name 'libonnxruntime_providers_tensorrt.so' -delete

FROM build AS worker-gpu-dependencies
RUN --mount=type=cache,target=/var/cache/uv \
    uv sync --frozen --no-dev --no-install-project --extra gpu --extra librdkafka

FROM build AS exporter-dependencies
RUN --mount=type=cache,target=/var/cache/uv \
    uv sync --frozen --no-dev --no-install-project --extra train

# Our own code, laid over any of them: a small layer.
FROM worker-dependencies AS project
COPY README.md LICENSE ./
COPY exporter exporter
COPY stream_worker stream_worker
RUN --mount=type=cache,target=/var/cache/uv \
    uv pip install --no-deps --python /opt/stream-worker/bin/python --prefix /opt/project .

FROM python:3.11-slim-bookworm AS runtime
ARG VERSION=dev
ARG REVISION=unknown
LABEL org.opencontainers.image.description="Clicks in, fresh recommendations out: Kafka and ONNX Runtime" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.revision="$REVISION" \
      org.opencontainers.image.title="stream-worker" \
      org.opencontainers.image.version="$VERSION"
RUN groupadd --gid 10001 stream-worker \
    && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /tmp --shell /usr/sbin/nologin stream-worker
# onnxruntime reports usage by default; HOME is where libraries may put a cache.
ENV HOME=/tmp \
    ORT_DISABLE_TELEMETRY=1 \
    PATH=/opt/stream-worker/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1
WORKDIR /tmp
# A number, so that Kubernetes can tell that it is not root.
USER 10001:10001

FROM runtime AS exporter
COPY --from=exporter-dependencies /opt/stream-worker /opt/stream-worker
COPY --from=project /opt/project /opt/stream-worker
ENTRYPOINT ["exporter"]
CMD ["--help"]

FROM runtime AS worker-gpu
COPY --from=worker-gpu-dependencies /opt/stream-worker /opt/stream-worker
COPY --from=project /opt/project /opt/stream-worker
# What the NVIDIA container runtime shows to the container.
ENV NVIDIA_DRIVER_CAPABILITIES=compute,utility \
    NVIDIA_VISIBLE_DEVICES=all
EXPOSE 8080
ENTRYPOINT ["stream-worker"]
CMD ["run"]

# Last, so that it is what a build without --target makes.
FROM runtime AS worker
COPY --from=worker-dependencies /opt/stream-worker /opt/stream-worker
COPY --from=project /opt/project /opt/stream-worker
EXPOSE 8080
ENTRYPOINT ["stream-worker"]
CMD ["run"]

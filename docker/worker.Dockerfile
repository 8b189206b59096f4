# Build the image of a worker, one process that serves one bundle. It contains the demo bundle; mount another and
# set CLIPSYNTH_MODEL to its folder:
#   docker build -f docker/worker.Dockerfile -t clipsynth-worker .
# BASE, EXTRAS: as in app.Dockerfile.
ARG BASE=python:3.11.14-slim-bookworm

FROM ${BASE} AS source
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /build
# The same path as in the last stage, because installed scripts contain their interpreter's path.
RUN python3 -m venv /venv
COPY . .
RUN /venv/bin/pip install --no-deps --target /app .

FROM ${BASE} AS pins
WORKDIR /build
COPY constraints.txt docker/torch_pins.py ./
RUN python3 torch_pins.py constraints.txt > torch.txt

FROM ${BASE}
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN python3 -m venv /venv
# The CUDA build of PyTorch, which also runs without a GPU. TORCH_INDEX_URL selects another build (2.0+cpu sorts
# before 2.0). This layer is rebuilt only when PyTorch's own pins change.
ARG TORCH_INDEX_URL=""
COPY --from=pins /build/torch.txt /requirements/
RUN /venv/bin/pip install --constraint /requirements/torch.txt ${TORCH_INDEX_URL:+--extra-index-url "${TORCH_INDEX_URL}"} \
    torch torchvision
ARG EXTRAS=""
# Each package and the hashes of its files (docker/lock.sh).
COPY docker/worker.lock docker/s3.lock /requirements/
RUN cd /requirements && /venv/bin/pip install --no-deps --require-hashes --requirement worker.lock \
    ${EXTRAS:+--requirement "${EXTRAS}.lock"}
RUN useradd --uid 10001 --create-home clipsynth && install -d -o 10001 -g 10001 /data /data/results
COPY checkpoints/demo /app/checkpoints/demo
COPY --from=source /app /app
ENV PATH=/app/bin:/venv/bin:$PATH PYTHONPATH=/app PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 \
    CLIPSYNTH_DATA_DIR=/data CLIPSYNTH_LOG_FORMAT=json \
    CLIPSYNTH_METRICS_HOST=0.0.0.0 CLIPSYNTH_METRICS_PORT=9100
USER 10001:10001
WORKDIR /data
EXPOSE 9100
HEALTHCHECK --interval=10s --timeout=5s --start-period=120s --retries=3 \
    CMD ["python", "-m", "clipsynth.services.healthcheck", "http://127.0.0.1:9100/healthz"]
CMD ["clipsynth", "worker"]

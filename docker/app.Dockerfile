# Build the image of the HTTP API, the janitor and the sender of webhooks, without torch:
#   docker build -f docker/app.Dockerfile -t clipsynth-app .
# BASE: an image whose python3 is Python 3.11 with the venv module.
# EXTRAS: "s3" to keep results in an object store.
ARG BASE=python:3.11.14-slim-bookworm

FROM ${BASE} AS source
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /build
# The same path as in the last stage, because installed scripts contain their interpreter's path.
RUN python3 -m venv /venv
COPY . .
RUN /venv/bin/pip install --no-deps --target /app .

FROM ${BASE}
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN python3 -m venv /venv
ARG EXTRAS=""
# Each package and the hashes of its files (docker/lock.sh).
COPY docker/app.lock docker/s3.lock /requirements/
RUN cd /requirements && /venv/bin/pip install --no-deps --require-hashes --requirement app.lock \
    ${EXTRAS:+--requirement "${EXTRAS}.lock"}
RUN useradd --uid 10001 --create-home clipsynth && install -d -o 10001 -g 10001 /data /data/results
COPY --from=source /app /app
ENV PATH=/app/bin:/venv/bin:$PATH PYTHONPATH=/app PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 \
    CLIPSYNTH_DATA_DIR=/data CLIPSYNTH_LOG_FORMAT=json \
    CLIPSYNTH_HOST=0.0.0.0
USER 10001:10001
WORKDIR /data
EXPOSE 8000 9100
HEALTHCHECK --interval=10s --timeout=5s --start-period=20s --retries=3 \
    CMD ["python", "-m", "clipsynth.services.healthcheck", "http://127.0.0.1:8000/readyz"]
CMD ["clipsynth", "api"]

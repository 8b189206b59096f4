# Build the image of prepare, train, export and evaluate. Mount videos and runs; /app/recipes holds the recipes:
#   docker build -f docker/train.Dockerfile -t clipsynth-train .
#   docker run --rm -v VIDEOS:/videos:ro -v RUNS:/runs clipsynth-train prepare /videos data/demo
# BASE, EXTRAS: as in app.Dockerfile. The layers up to torch's are those of worker.Dockerfile.
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
COPY docker/train.lock docker/s3.lock /requirements/
RUN cd /requirements && /venv/bin/pip install --no-deps --require-hashes --requirement train.lock \
    ${EXTRAS:+--requirement "${EXTRAS}.lock"}
RUN useradd --uid 10001 --create-home clipsynth && install -d -o 10001 -g 10001 /runs
COPY recipes /app/recipes
COPY --from=source /app /app
ENV PATH=/app/bin:/venv/bin:$PATH PYTHONPATH=/app PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
USER 10001:10001
WORKDIR /runs
ENTRYPOINT ["clipsynth"]
CMD ["--help"]

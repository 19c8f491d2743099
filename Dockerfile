# facemill in one image: preprocessing, training, evaluation, search. Build and push:
#
#   docker build --tag registry.example.com/facemill:0.1.0 . && docker push registry.example.com/facemill:0.1.0
#
# The base image stands here by its tag. To build the same image again years later, name it by its digest as well:
#
#   docker buildx imagetools inspect docker.io/library/python:3.11.14-slim-bookworm     # prints Digest: sha256:…
#   docker build --build-arg BASE=docker.io/library/python:3.11.14-slim-bookworm@sha256:… …
#
# CUDA, cuDNN and NCCL come with torch's wheels, so the node needs NVIDIA's driver and container toolkit, nothing else.
ARG BASE=docker.io/library/python:3.11.14-slim-bookworm

FROM ${BASE} AS build
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ \
    && rm -rf /var/lib/apt/lists/*
ENV PIP_DISABLE_PIP_VERSION_CHECK=1
RUN python -m venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH
WORKDIR /source
# the libraries alone first, with empty packages in our place: a change of our code leaves this layer of 8 GB as it is
COPY pyproject.toml constraints.txt README.md LICENSE ./
RUN mkdir pipeline preprocess \
    && touch pipeline/__init__.py preprocess/__init__.py \
    && pip install --no-cache-dir --constraint constraints.txt . \
    && pip uninstall --yes facemill \
    && rm -rf pipeline preprocess build facemill.egg-info
COPY pipeline/ pipeline/
COPY preprocess/ preprocess/
RUN pip install --no-cache-dir --constraint constraints.txt --no-deps --prefix /opt/facemill .

FROM ${BASE} AS runtime
# g++: Triton, torch.compile and DeepSpeed compile small pieces when a run starts. ibverbs: NCCL over InfiniBand and
# RoCE. tini: process 1, see ENTRYPOINT.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ ibverbs-providers libibverbs1 tini \
    && rm -rf /var/lib/apt/lists/* \
    && groupadd --gid 10001 facemill \
    && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /tmp --shell /usr/sbin/nologin facemill
COPY --from=build /opt/venv /opt/venv
COPY --from=build /opt/facemill /opt/venv
WORKDIR /app
COPY launch/ launch/
COPY configs/ configs/
# /tmp is all that a container with a read-only root may write to, besides its volumes
ENV PATH=/opt/venv/bin:$PATH \
    HOME=/tmp \
    PYTHONUNBUFFERED=1 \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
# a number, so that Kubernetes can tell that it is not root
USER 10001:10001
# As process 1, tini passes SIGTERM on (the kernel would drop it for a process 1 without a handler) and takes in orphans.
# Not with -g: pipeline.supervise forwards the signal to torchrun itself, and once is enough.
ENTRYPOINT ["/usr/bin/tini", "--"]
CMD ["preprocess", "--help"]

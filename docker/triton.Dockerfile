# Triton with adapter and the libraries of the models, to write entries and to serve them.
ARG TRITON_TAG=26.04
FROM nvcr.io/nvidia/tritonserver:${TRITON_TAG}-py3

# the image's Python belongs to the distribution; nothing else in this image uses it
ENV PIP_BREAK_SYSTEM_PACKAGES=1 PIP_NO_CACHE_DIR=1 PYTHONDONTWRITEBYTECODE=1
WORKDIR /opt/adapter
COPY pyproject.toml README.md LICENSE ./
COPY adapter adapter
RUN python3 -m pip install '.[sklearn]'

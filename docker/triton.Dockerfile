# Triton with adapter, a service and the libraries of its models, to write entries and to serve them.
ARG TRITON_TAG=26.04
FROM nvcr.io/nvidia/tritonserver:${TRITON_TAG}-py3

# the image's Python belongs to the distribution; nothing else in this image uses it
ENV PIP_BREAK_SYSTEM_PACKAGES=1 PIP_NO_CACHE_DIR=1 PYTHONDONTWRITEBYTECODE=1 ADAPTER_HOME=/var/lib/adapter
WORKDIR /opt/adapter
COPY pyproject.toml README.md LICENSE ./
COPY adapter adapter
RUN python3 -m pip install .

ARG SERVICE_DIR=examples/iris
WORKDIR /service
# LICENSE, since COPY fails where a pattern matches nothing
COPY LICENSE ${SERVICE_DIR}/requirements*.txt /opt/service/
RUN if [ -e /opt/service/requirements.txt ]; then python3 -m pip install -r /opt/service/requirements.txt; fi
COPY ${SERVICE_DIR} .
RUN if [ -e setup.sh ]; then chmod +x setup.sh && IMAGE=triton ./setup.sh; fi
# as a number, which Kubernetes can tell from root: triton-server of the base image
RUN install -d -o 1000 -g 1000 /models
USER 1000:1000

# The front: FastAPI, adapter and a service, without any model's library; it talks to Triton over gRPC.
FROM python:3.11-slim-bookworm

ENV PIP_NO_CACHE_DIR=1 PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
WORKDIR /opt/adapter
COPY pyproject.toml README.md LICENSE ./
COPY adapter adapter
ARG EXTRAS=""
RUN python -m pip install ".${EXTRAS}"

ARG SERVICE_DIR=examples/iris
WORKDIR /service
# LICENSE, since COPY fails where a pattern matches nothing
COPY LICENSE ${SERVICE_DIR}/requirements*.txt /opt/service/
RUN for file in requirements-front.txt requirements.txt; do \
      if [ -e /opt/service/$file ]; then python -m pip install -r /opt/service/$file; break; fi; done
COPY ${SERVICE_DIR} .
RUN if [ -e setup.sh ]; then chmod +x setup.sh && IMAGE=front ./setup.sh; fi
RUN useradd --uid 10001 --no-create-home --shell /usr/sbin/nologin adapter
USER 10001:10001
EXPOSE 3000

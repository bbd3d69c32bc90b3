# The front: FastAPI and adapter, without any model's library; it talks to Triton over gRPC.
FROM python:3.11-slim-bookworm

ENV PIP_NO_CACHE_DIR=1 PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
WORKDIR /opt/adapter
COPY pyproject.toml README.md LICENSE ./
COPY adapter adapter
RUN python -m pip install .
EXPOSE 3000

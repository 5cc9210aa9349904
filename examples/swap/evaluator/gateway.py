"""What the service asks of Martlet's gateway: models over REST, artifacts over gRPC. Nothing else of the platform is touched.

The deployment's internal token is all it holds. Over gRPC the gateway takes it, with the tenant beside it, for
ArtifactService; over REST it takes a token for one tenant that is made of it (docs/adr/0011-service-tokens.md).
"""

from __future__ import annotations

import hashlib
import hmac
import json
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from typing import Any

import grpc

from evaluator.errors import Refused
from evaluator.stubs import artifact_pb, artifacts_grpc, artifacts_pb

_RETRIED = (429, 502, 503, 504)
_HOUR = 3600


class Gateway:
    """The gateway of the deployment.

    Args:
        url: of its REST side, up to and with ``/v1``.
        address: ``host:port`` of its gRPC side.
        internal_token: the deployment's.
    """

    def __init__(self, url: str, address: str, internal_token: str) -> None:
        self._url = url.rstrip("/")
        self._token = internal_token
        self._artifacts = artifacts_grpc.ArtifactServiceStub(grpc.insecure_channel(address))

    # Models

    def check_model(self, model: str, tenant: str) -> None:
        """Refused with NOT_FOUND if the tenant has no such model."""
        try:
            self._rest(tenant, f"/models/{model}", None, timeout=30)
        except urllib.error.HTTPError as error:
            if error.code == 404:
                raise Refused("NOT_FOUND", "MODEL_NOT_FOUND", f"There is no model {model!r}.") from error
            raise Refused("UNAVAILABLE", "GATEWAY_UNAVAILABLE", f"The gateway answered {error.code}.") from error
        except OSError as error:
            raise Refused("UNAVAILABLE", "GATEWAY_UNAVAILABLE", f"The gateway doesn't answer: {error}") from error

    def chat(self, tenant: str, body: Mapping[str, Any], deadline: float) -> str:
        """The text of an answer. What may go away by waiting is asked again until ``deadline`` (``time.monotonic``).

        Raises:
            OSError: there is no answer; the text says why.
        """
        while True:
            try:
                answer = self._rest(tenant, "/chat/completions", body, timeout=max(1.0, deadline - time.monotonic()))
                return answer["choices"][0]["message"]["content"] or ""
            except urllib.error.HTTPError as error:
                wait = float(error.headers.get("retry-after") or 1)
                if error.code not in _RETRIED or time.monotonic() + wait >= deadline:
                    raise OSError(f"HTTP {error.code}: {error.read(500).decode(errors='replace')}") from error
                time.sleep(wait)

    def _rest(self, tenant: str, path: str, body: Mapping[str, Any] | None, timeout: float) -> Any:
        headers = {"authorization": f"Bearer {self._service_token(tenant)}", "content-type": "application/json"}
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self._url + path, data, headers)
        with urllib.request.urlopen(request, timeout=timeout) as response:
            return json.load(response)

    def _service_token(self, tenant: str) -> str:
        end = int(time.time()) + _HOUR
        text = f"martlet service token 1\n{end}\n{tenant}"
        signature = hmac.new(self._token.encode(), text.encode(), hashlib.sha256).hexdigest()
        return f"mst-{end}-{signature}-{tenant}"

    # Artifacts

    def read(self, tenant: str, name: str) -> tuple[Any, dict[str, bytes]]:
        """An artifact and its files by path, each checked against its hash."""
        request = artifacts_pb.CreateArtifactDownloadRequest(name=name)
        download = self._call(self._artifacts.CreateArtifactDownload, request, tenant)
        hashes = {file.path: file.sha256 for file in download.artifact.files}
        files = {}
        for get in download.gets:
            with urllib.request.urlopen(get.url, timeout=300) as response:
                files[get.path] = response.read()
            if hashlib.sha256(files[get.path]).hexdigest() != hashes[get.path]:
                raise Refused("UNAVAILABLE", "ARTIFACT_DAMAGED", f"{name}: {get.path} is not what was stored.")
        return download.artifact, files

    def write(self, tenant: str, display_name: str, files: Mapping[str, bytes], parents: list[str]) -> str:
        """Store files as a report; its resource name."""
        draft = artifact_pb.Artifact(kind=artifact_pb.ARTIFACT_KIND_REPORT, display_name=display_name, parents=parents)
        for path, data in sorted(files.items()):
            draft.files.add(path=path, sha256=hashlib.sha256(data).hexdigest(), size_bytes=len(data))
        request = artifacts_pb.CreateArtifactUploadRequest(artifact=draft)
        upload = self._call(self._artifacts.CreateArtifactUpload, request, tenant)
        for put in upload.puts:
            sent = urllib.request.Request(put.url, files[put.path], method="PUT")
            with urllib.request.urlopen(sent, timeout=300):
                pass
        commit = artifacts_pb.CommitArtifactRequest(name=upload.name)
        return self._call(self._artifacts.CommitArtifact, commit, tenant).name

    def _call(self, method: Any, request: Any, tenant: str) -> Any:
        metadata = (("x-martlet-internal-token", self._token), ("x-martlet-tenant", tenant))
        try:
            return method(request, metadata=metadata, timeout=60)
        except grpc.RpcError as error:
            code = error.code().name  # pyright: ignore[reportAttributeAccessIssue]
            text = error.details()  # pyright: ignore[reportAttributeAccessIssue]
            if code == "NOT_FOUND":
                raise Refused("NOT_FOUND", "ARTIFACT_NOT_FOUND", text) from error
            raise Refused("UNAVAILABLE", "GATEWAY_UNAVAILABLE", f"The gateway says {code}: {text}") from error

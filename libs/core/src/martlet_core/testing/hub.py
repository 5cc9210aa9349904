"""A hub on a free port of this machine: what Hugging Face's and ModelScope's clients ask for, over real HTTP, and nothing else.

Hugging Face: a repository's files at a revision, downloads with their headers, a new repository, a commit. ModelScope: a list of files, downloads.
"""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class FakeHub:
    """What the hub has, and what it was asked. Use as a context manager.

    Attributes:
        files: content by ``models/org/name/path`` or ``datasets/org/name/path``.
        token: what a client must show to write; empty: nobody may.
        asked: method and path of every request, in order.
    """

    files: dict[str, bytes] = field(default_factory=dict)
    token: str = ""
    asked: list[tuple[str, str]] = field(default_factory=list)

    def __enter__(self) -> FakeHub:
        hub = self

        class Handler(_Handler):
            state = hub

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    @property
    def url(self) -> str:
        """Its address."""
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def of(self, repository: str) -> dict[str, bytes]:
        """The files of ``models/org/name`` by path."""
        prefix = f"{repository}/"
        return {path.removeprefix(prefix): data for path, data in self.files.items() if path.startswith(prefix)}


class _Handler(BaseHTTPRequestHandler):
    state: FakeHub
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""

    def do_HEAD(self) -> None:
        self._serve(body=False)

    def do_GET(self) -> None:
        self._serve(body=True)

    def do_POST(self) -> None:
        url = urlsplit(self.path)
        self.state.asked.append(("POST", url.path))
        raw = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if not self.state.token or self.headers.get("Authorization") != f"Bearer {self.state.token}":
            self._json({"error": "Invalid username or password."}, 401)
        elif url.path == "/api/repos/create":
            asked = json.loads(raw)
            name = "/".join(part for part in (asked.get("organization"), asked["name"]) if part)
            self._json({"url": f"{self.state.url}/{name}", "id": name})
        elif url.path == "/api/validate-yaml":
            self._json({"errors": [], "warnings": []})
        elif "/preupload/" in url.path:
            files = [
                {"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in json.loads(raw)["files"]
            ]
            self._json({"files": files})
        elif "/commit/" in url.path:
            self._commit(url.path, raw)
        else:
            self._json({"error": "Not found"}, 404)

    def _commit(self, path: str, raw: bytes) -> None:
        kind, owner, name = path.split("/")[2:5]
        for line in raw.splitlines():
            entry = json.loads(line)
            if entry["key"] == "file":
                content = base64.b64decode(entry["value"]["content"])
                self.state.files[f"{kind}/{owner}/{name}/{entry['value']['path']}"] = content
        answer = {
            "commitOid": COMMIT,
            "commitUrl": f"{self.state.url}/{owner}/{name}/commit/{COMMIT}",
            "hookOutput": "",
        }
        self._json(answer)

    def _serve(self, *, body: bool) -> None:
        url = urlsplit(self.path)
        self.state.asked.append((self.command, url.path))
        parts = [unquote(part) for part in url.path.strip("/").split("/")]
        if parts[:2] == ["api", "v1"]:
            self._modelscope(parts[2:], parse_qs(url.query))
        elif parts[0] == "api" and len(parts) < 4:
            self._missing("EntryNotFound")
        elif parts[0] == "api":
            self._hugging_face_info(parts[1:])
        else:
            self._hugging_face_file(parts, body)

    def _hugging_face_info(self, parts: list[str]) -> None:
        kind, owner, name = parts[:3]
        files = self.state.of(f"{kind}/{owner}/{name}")
        if not files:
            self._missing("RepoNotFound")
            return
        if len(parts) > 3 and parts[3] == "tree":
            listed = [{"type": "file", "path": p, "size": len(d), "oid": _sha(d)[:40]} for p, d in files.items()]
            self._json(listed)
            return
        if len(parts) > 4 and parts[4] not in ("main", COMMIT):
            self._missing("RevisionNotFound")
            return
        siblings = [{"rfilename": path} for path in files]
        self._json({"id": f"{owner}/{name}", "sha": COMMIT, "siblings": siblings, "private": False})

    def _hugging_face_file(self, parts: list[str], body: bool) -> None:
        kind = parts.pop(0) if parts[0] == "datasets" else "models"
        data = self.state.files.get(f"{kind}/{parts[0]}/{parts[1]}/{'/'.join(parts[4:])}")
        if data is None:
            self._missing("EntryNotFound")
            return
        self._answer(data, 200, body, ETag=f'"{_sha(data)}"', **{"X-Repo-Commit": COMMIT})

    def _modelscope(self, parts: list[str], query: dict[str, list[str]]) -> None:
        kind, owner, name = parts[:3]
        files = self.state.of(f"{kind}/{owner}/{name}")
        if not files:
            self._json({"Code": 404, "Message": "not found"}, 404)
            return
        if parts[3:] == ["repo", "files"]:
            listed = [{"Path": p, "Type": "blob", "Size": len(d), "Sha256": _sha(d)} for p, d in files.items()]
            self._json({"Code": 200, "Success": True, "Data": {"Files": listed}})
            return
        self._answer(files[query["FilePath"][0]], 200, True)

    def _missing(self, code: str) -> None:
        self._answer(b"{}", 404, self.command != "HEAD", **{"X-Error-Code": code})

    def _json(self, value: Any, status: int = 200) -> None:
        self._answer(json.dumps(value).encode(), status, True, **{"Content-Type": "application/json"})

    def _answer(self, data: bytes, status: int, body: bool, **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if body:
            self.wfile.write(data)


def _sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()

"""Log lines."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from collections.abc import Iterator

import pytest
from martlet_core import logs
from martlet_core.errors import InvalidArgument
from martlet_core.rpc.context import CallContext, call_context, set_call_context


@pytest.fixture(autouse=True)
def _restored() -> Iterator[None]:
    root, context = logging.getLogger(), call_context()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    set_call_context(context)


def test_json_lines_carry_ids_extras_and_exceptions(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("trainer")
    set_call_context(CallContext("acme", "req-1"))
    with logs.job_context("job-1"):
        logging.getLogger("x").info("héllo %d", 5, extra={"method": "/a/B", "odd": object})
    try:
        raise ValueError("inside")
    except ValueError:
        logging.getLogger("x").exception("failed\nbadly")
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert lines[0] | {"time": ""} == {
        "time": "",
        "level": "INFO",
        "service": "trainer",
        "logger": "x",
        "message": "héllo 5",
        "request_id": "req-1",
        "job_id": "job-1",
        "method": "/a/B",
        "odd": "<class 'object'>",
    }
    assert "job_id" not in lines[1]
    assert "ValueError: inside" in lines[1]["exception"]
    assert len(lines) == 2


def test_text_and_level(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("gateway", "warning", "text")
    logging.getLogger("x").info("unseen")
    logging.getLogger("x").warning("seen", extra={"port": 5})
    out = capsys.readouterr().err
    assert "unseen" not in out
    assert "WARNING gateway x: seen port=5" in out


def test_bad_settings_are_named() -> None:
    with pytest.raises(InvalidArgument, match="LOUD"):
        logs.configure("x", "LOUD")
    with pytest.raises(InvalidArgument, match="xml"):
        logs.configure("x", "INFO", "xml")


def test_importing_it_loads_no_grpc() -> None:
    """Training processes log too, and must stay free of gRPC."""
    code = "import sys, martlet_core.logs; sys.exit('grpc' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0

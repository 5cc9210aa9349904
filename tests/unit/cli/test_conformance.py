"""What ``martlet conformance`` takes and says where there is nothing to try. tests/contract has it try a service."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from martlet_cli.commands import conformance
from martlet_core.testing.conformance import CONTRACTS


@pytest.mark.parametrize("contract", CONTRACTS)
def test_rules_are_listed(martlet: Callable[..., Any], contract: str) -> None:
    listed = json.loads(martlet("conformance", contract, "--list", "--json").out)
    assert [row["rule"] for row in listed] == [rule.name for rule in CONTRACTS[contract].rules]
    assert all(row["expected"].endswith(".") for row in listed)


def test_what_is_missing_or_unknown_is_said(martlet: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conformance, "_CONNECT_SECONDS", 0.2)
    ran = martlet("conformance", "trainer")
    assert (ran.code, "--address" in ran.err, "HOST:PORT" in ran.err) == (2, True, True)
    ran = martlet("conformance", "trainer", "--address", "127.0.0.1:1")
    assert (ran.code, "nothing speaks gRPC" in ran.err, "127.0.0.1:1" in ran.err) == (1, True, True)
    ran = martlet("conformance", "quantizer", "--address", "127.0.0.1:1", "--metadata", "nothing")
    assert ran.code == 1, "the address comes first"
    ran = martlet("conformance", "quantizer", "--addres", "127.0.0.1:1")
    assert (ran.code, "did you mean --address" in ran.err) == (2, True)

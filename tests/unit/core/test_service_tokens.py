"""Tokens of our own services: made with the internal token, for one tenant, for a while."""

from __future__ import annotations

import pytest
from martlet_core.service_tokens import make_service_token, tenant_of_service_token


def test_a_token_names_its_tenant_until_it_ends() -> None:
    token = make_service_token("secret", "a-b.c_d", 60, clock=lambda: 1000.0)
    assert "secret" not in token
    assert tenant_of_service_token(token, "secret", clock=lambda: 1059.0) == "a-b.c_d"
    assert tenant_of_service_token(token, "secret", clock=lambda: 1060.0) is None


def test_without_an_internal_token_there_is_none() -> None:
    assert make_service_token("", "acme") == ""
    assert tenant_of_service_token(make_service_token("secret", "acme"), "") is None
    assert tenant_of_service_token("", "") is None


@pytest.mark.parametrize(
    "change",
    [
        lambda token: token[:-1],
        lambda token: token + "x",
        lambda token: token.replace("-acme", "-umbrella"),
        lambda token: token.replace("mst-", "mk-"),
        lambda token: token.replace("mst-1", "mst-2", 1),
        lambda token: token.replace("mst-1", "mst-\u0661", 1),
        lambda token: "mst-99999999999-" + "0" * 64 + "-acme",
        lambda token: "mst--" + token.split("-", 2)[2],
        lambda token: "mst-",
        lambda token: "",
    ],
)
def test_a_changed_token_is_none(change: object) -> None:
    token = make_service_token("secret", "acme")
    assert tenant_of_service_token(token, "secret") == "acme"
    assert tenant_of_service_token(token, "other") is None
    assert tenant_of_service_token(change(token), "secret") is None  # type: ignore[operator]

"""API keys as an operator makes them: with the object store's own key, not through the gateway."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any

from martlet_core.api_keys import OPERATOR, ApiKeyStore
from martlet_core.artifacts.s3 import S3ObjectStore
from martlet_core.errors import FailedPrecondition
from martlet_core.settings import CoreSettings

from martlet_cli.credentials import load_or_make
from martlet_cli.layout import Layout, read_json, write_json

#: Tenant of the key that `martlet up` makes for the person who runs it; it is an operator's.
FIRST_TENANT = "default"


def key_store(settings: Mapping[str, str]) -> ApiKeyStore:
    """The keys of a deployment, from its ``MARTLET_S3_*`` variables."""
    given: dict[str, Any] = {name.removeprefix("MARTLET_").lower(): value for name, value in settings.items()}
    names = ("s3_endpoint", "s3_access_key", "s3_secret_key", "s3_bucket")
    chosen = CoreSettings(**{name: given[name] for name in names if given.get(name)})
    return ApiKeyStore(S3ObjectStore.from_settings(chosen))


def operator_settings(layout: Layout) -> dict[str, str]:
    """The object store's address and key: from ``MARTLET_S3_*``, else those of the platform on this machine.

    Raises:
        FailedPrecondition: if neither is there.
    """
    if os.environ.get("MARTLET_S3_ENDPOINT"):
        return {name: value for name, value in os.environ.items() if name.startswith("MARTLET_S3_")}
    port = read_json(layout.state_file).get("ports", {}).get("s3")
    if not (port and layout.secrets_file.exists()):
        raise FailedPrecondition(
            "no object store is known: start the platform with `martlet up`, or set MARTLET_S3_ENDPOINT, "
            "MARTLET_S3_ACCESS_KEY and MARTLET_S3_SECRET_KEY"
        )
    credentials = load_or_make(layout.secrets_file)
    return {
        "MARTLET_S3_ENDPOINT": f"http://127.0.0.1:{port}",
        "MARTLET_S3_ACCESS_KEY": credentials.s3_access_key,
        "MARTLET_S3_SECRET_KEY": credentials.s3_secret_key,
    }


def ensure_api_key(layout: Layout, settings: Mapping[str, str], base_url: str, say: Callable[[str], None]) -> None:
    """Register this home's own key and write what the commands need into ``client.json``; said aloud the first time."""
    secret = load_or_make(layout.secrets_file).api_key
    key_store(settings).register(secret, FIRST_TENANT, "made by martlet up", scope=OPERATOR)
    first = not layout.client_file.exists()
    write_json(layout.client_file, {"base_url": base_url, "api_key": secret}, mode=0o600)
    if first:
        say(f"API key (kept in {layout.client_file}): {secret}")

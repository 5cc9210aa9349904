"""Secrets of a platform on one machine: made once, kept in a file that only its owner can read."""

from __future__ import annotations

import os
import secrets
import stat
from dataclasses import asdict, dataclass
from pathlib import Path

from martlet_core.errors import FailedPrecondition

from martlet_cli.layout import read_json, write_json


@dataclass(frozen=True)
class Credentials:
    """What the parts of a platform show one another.

    Attributes:
        s3_access_key: of the object store.
        s3_secret_key: of the object store.
        valkey_password: of Valkey.
        internal_token: of calls between services.
        api_key: of the person who runs the platform; tenant ``default``.
    """

    s3_access_key: str
    s3_secret_key: str
    valkey_password: str
    internal_token: str
    api_key: str


def load_or_make(path: Path) -> Credentials:
    """The credentials in a file; they are made at the first call.

    Raises:
        FailedPrecondition: if others can read the file, or it isn't whole.
    """
    if not path.exists():
        made = Credentials(
            s3_access_key=secrets.token_hex(10),
            s3_secret_key=secrets.token_urlsafe(32),
            valkey_password=secrets.token_urlsafe(32),
            internal_token=secrets.token_urlsafe(32),
            api_key="mk-" + secrets.token_urlsafe(32),
        )
        write_json(path, asdict(made), mode=0o600)
        return made
    if stat.S_IMODE(os.stat(path).st_mode) & 0o077:
        raise FailedPrecondition(f"{path} can be read by others; run: chmod 600 {path}")
    try:
        return Credentials(**read_json(path))
    except TypeError as error:
        raise FailedPrecondition(
            f"{path} isn't whole ({error}); restore it, or start anew with an empty home directory"
        ) from error

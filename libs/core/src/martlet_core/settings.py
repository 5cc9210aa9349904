"""Where a service is deployed: read once from ``MARTLET_*`` variables in ``__main__`` and passed down.

A secret may also be given as a file: ``MARTLET_S3_SECRET_KEY_FILE=/run/secrets/s3`` sets ``s3_secret_key`` to that file's content.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from pydantic import Field
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from martlet_core.errors import FailedPrecondition

PREFIX = "MARTLET_"


class SecretFileSource(PydanticBaseSettingsSource):
    """Reads ``MARTLET_<NAME>_FILE`` for each field, as container secrets are handed over."""

    def get_field_value(self, field: Any, field_name: str) -> tuple[Any, str, bool]:
        variable = f"{PREFIX}{field_name.upper()}_FILE"
        path = os.environ.get(variable)
        if not path:
            return None, field_name, False
        try:
            return Path(path).read_text().strip(), field_name, False
        except OSError as error:
            raise FailedPrecondition(f"{variable}: {path} can't be read: {error.strerror}.") from error

    def __call__(self) -> dict[str, Any]:
        values = {}
        for name, field in self.settings_cls.model_fields.items():
            value, key, _ = self.get_field_value(field, name)
            if value is not None:
                values[key] = value
        return values


class CoreSettings(BaseSettings):
    """Settings that every service has."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, extra="ignore", frozen=True)

    redis_url: str = Field(
        "redis://127.0.0.1:6379/0", description="Valkey or Redis that keeps jobs and rings the bell."
    )
    s3_endpoint: str = Field("http://127.0.0.1:8333", description="S3 endpoint URL; its scheme decides about TLS.")
    s3_access_key: str = Field("", description="Access key of the object store.")
    s3_secret_key: str = Field("", description="Secret key of the object store.")
    s3_bucket: str = Field("martlet", description="Bucket that holds everything; made if it isn't there.")
    s3_region: str = Field("us-east-1", description="Region used in signatures.")
    s3_public_endpoint: str = Field("", description="Endpoint URL written into presigned URLs; default: s3_endpoint.")
    internal_token: str = Field("", description="Token that services show one another; empty turns the check off.")
    cache_dir: Path = Field(Path(".martlet/cache"), description="Local cache of blobs and models.")
    work_dir: Path = Field(Path(".martlet/work"), description="Scratch space of running jobs.")
    grpc_address: str = Field(
        "127.0.0.1:50051", description="Address this service listens on for gRPC; port 0 picks a free one."
    )
    alive_file: Path | None = Field(
        None, description="File that a worker touches every few seconds, for health checks; none: it touches nothing."
    )
    log_level: str = Field("INFO", description="DEBUG, INFO, WARNING or ERROR.")
    log_format: str = Field("json", description="json or text.")
    lease_seconds: float = Field(30.0, gt=0, description="Lease of a claimed job; renewed at a third of it.")
    housekeeping_hours: float = Field(
        24.0, gt=0, description="Time between two sweeps of the stores; each is done by one process of the deployment."
    )

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Constructor, then environment, then secret files."""
        return (init_settings, env_settings, SecretFileSource(settings_cls))

"""Which processes make a platform on one machine, in which environment, with which settings, in which order."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

from martlet_core.local_servers import ServerCommand, seaweedfs_command, valkey_command
from martlet_core.model_rules import parse_hub_id

from martlet_cli import probes
from martlet_cli.credentials import Credentials
from martlet_cli.layout import Layout, write_json
from martlet_cli.platform_options import PlatformOptions
from martlet_cli.processes import ProcessSpec

BUCKET = "martlet"
#: A worker that is told to stop may have to write a checkpoint first.
WORKER_STOP_SECONDS = 60.0
_TOOL_PREFIXES = ("WANDB_", "MLFLOW_")


@dataclass(frozen=True)
class Platform:
    """The addresses and processes of one platform.

    Attributes:
        settings: the ``MARTLET_*`` variables that all services share.
        specs: the processes, needed ones first.
    """

    settings: Mapping[str, str]
    specs: tuple[ProcessSpec, ...]


def plan(layout: Layout, options: PlatformOptions, credentials: Credentials, ports: Mapping[str, int]) -> Platform:
    """The processes of a platform. Nothing is started; configuration files of the servers are written."""
    own_redis, own_s3 = not options.redis_url, not options.s3_endpoint
    settings = {
        "MARTLET_S3_ACCESS_KEY": credentials.s3_access_key if own_s3 else os.environ.get("MARTLET_S3_ACCESS_KEY", ""),
        "MARTLET_S3_SECRET_KEY": credentials.s3_secret_key if own_s3 else os.environ.get("MARTLET_S3_SECRET_KEY", ""),
        "MARTLET_S3_BUCKET": os.environ.get("MARTLET_S3_BUCKET") or BUCKET,
        "MARTLET_INTERNAL_TOKEN": credentials.internal_token,
        "MARTLET_CACHE_DIR": str(layout.home / "cache"),
        "MARTLET_WORK_DIR": str(layout.home / "work"),
        "MARTLET_MODELS_DIR": str(layout.models),
        "MARTLET_REDIS_URL": options.redis_url,
        "MARTLET_S3_ENDPOINT": options.s3_endpoint,
    }
    specs: list[ProcessSpec] = []
    if own_redis:
        command = valkey_command(layout.data / "valkey", ports["valkey"], password=credentials.valkey_password)
        settings["MARTLET_REDIS_URL"] = command.url
        specs.append(_server(layout, "valkey", command, ports["valkey"], probes.valkey(command.url)))
    if own_s3:
        command = seaweedfs_command(
            layout.data / "seaweedfs", ports["s3"], credentials.s3_access_key, credentials.s3_secret_key
        )
        settings["MARTLET_S3_ENDPOINT"] = command.url
        ready = probes.object_store(
            command.url, credentials.s3_access_key, credentials.s3_secret_key, settings["MARTLET_S3_BUCKET"]
        )
        specs.append(_server(layout, "seaweedfs", command, ports["s3"], ready))
    builder = _Builder(layout, options, settings)
    needs = tuple(spec.name for spec in specs)
    specs += [*_stages(builder, ports, needs), *_gateway(builder, ports, needs)]
    specs += _inference(builder, ports)
    return Platform(settings, tuple(specs))


def _stages(builder: _Builder, ports: Mapping[str, int], needs: tuple[str, ...]) -> list[ProcessSpec]:
    """``serve`` and ``work`` of each job stage; the quantizer has a worker for each family of methods."""
    specs: list[ProcessSpec] = []
    for stage in builder.options.stages:
        address = f"127.0.0.1:{ports[stage]}"
        specs.append(
            builder.service(
                stage,
                (f"martlet_{stage}", "serve"),
                {"MARTLET_GRPC_ADDRESS": address, **_gateway_url(ports), **_trackers(builder, stage)},
                needs=needs,
                port=ports[stage],
                ready=probes.grpc_health(address),
            )
        )
        families = builder.options.families if stage == "quantizer" else ("",)
        for family in families:
            specs.append(
                builder.service(
                    f"{stage}-{family}-worker" if family else f"{stage}-worker",
                    (f"martlet_{stage}", "work"),
                    ({"MARTLET_QUANTIZER_FAMILY": family} if family else {}) | _gateway_url(ports),
                    needs=needs,
                    settle_seconds=1.0,
                    stop_seconds=WORKER_STOP_SECONDS,
                )
            )
    if builder.options.trackers:
        specs.append(
            builder.service(
                "trainer-tracker",
                ("martlet_trainer", "track"),
                {
                    **_trackers(builder, "trainer"),
                    "MARTLET_TENSORBOARD_DIR": str(builder.layout.home / "tensorboard"),
                    **_tool_variables(os.environ),
                },
                environment="trainer-tracking",
                needs=needs,
                settle_seconds=1.0,
                stop_seconds=30.0,
            )
        )
    return specs


def _trackers(builder: _Builder, stage: str) -> dict[str, str]:
    """What jobs may have told of them."""
    return {"MARTLET_TRACKERS": ",".join(builder.options.trackers)} if stage == "trainer" else {}


def _tool_variables(environ: Mapping[str, str]) -> dict[str, str]:
    """The trackers' own variables, keys among them: for the process that speaks to them alone."""
    return {name: value for name, value in environ.items() if name.startswith(_TOOL_PREFIXES)}


def _gateway_url(ports: Mapping[str, int]) -> dict[str, str]:
    """Where stages ask models."""
    return {"MARTLET_GATEWAY_URL": f"http://127.0.0.1:{ports['http']}/v1"}


def _gateway(builder: _Builder, ports: Mapping[str, int], needs: tuple[str, ...]) -> list[ProcessSpec]:
    """``serve``, and ``work``, which carries out runs."""
    host = builder.options.host
    local_host = "127.0.0.1" if host in ("0.0.0.0", "::") else host
    stages = {f"MARTLET_{stage.upper()}_ADDRESS": f"127.0.0.1:{ports[stage]}" for stage in builder.options.stages}
    serve = builder.service(
        "gateway",
        ("martlet_gateway", "serve"),
        {
            "MARTLET_GRPC_ADDRESS": f"{host}:{ports['grpc']}",
            "MARTLET_HTTP_HOST": host,
            "MARTLET_HTTP_PORT": str(ports["http"]),
            "MARTLET_UPLOAD_DIR": str(builder.layout.home / "work" / "uploads"),
            **stages,
        },
        needs=needs,
        port=ports["http"],
        ready=probes.http(f"http://{local_host}:{ports['http']}/healthz"),
    )
    work = builder.service("gateway-worker", ("martlet_gateway", "work"), stages, needs=needs, settle_seconds=1.0)
    return [serve, work]


def _inference(builder: _Builder, ports: Mapping[str, int]) -> list[ProcessSpec]:
    layout, options = builder.layout, builder.options
    address = f"127.0.0.1:{ports['inference']}"
    echo = options.engine == "echo"
    # A model of the hub is fetched by inference itself; one of the catalogue is prepared for it.
    prepared = not echo and parse_hub_id(options.model) is None
    model_directory = layout.home / "work" / "echo-model" if echo else layout.models / options.model
    specs: list[ProcessSpec] = []
    environ = {
        "MARTLET_GRPC_ADDRESS": address,
        "MARTLET_GATEWAY_ADDRESS": f"127.0.0.1:{ports['grpc']}",
        "MARTLET_ENGINE": options.engine,
        "MARTLET_MODEL": options.model,
    }
    if echo or prepared:
        environ["MARTLET_MODEL_DIR"] = str(model_directory)
    if prepared:
        arguments = ("martlet_inputs.base_models", "prepare", options.model, "--out", str(model_directory))
        specs.append(builder.service("base-model", arguments, {}, environment="trainer", once=True))
    if echo:  # it reads no weights, but a model is a directory
        write_json(model_directory / "config.json", {"model_type": "echo"})
    specs.append(
        builder.service(
            "inference",
            ("martlet_inference", "serve"),
            environ,
            needs=("gateway", *(spec.name for spec in specs)),
            port=ports["inference"],
            ready=probes.grpc_health(address),
            stop_seconds=30.0,
        )
    )
    return specs


@dataclass(frozen=True)
class _Builder:
    layout: Layout
    options: PlatformOptions
    settings: Mapping[str, str]

    def service(
        self,
        name: str,
        arguments: tuple[str, ...],
        environ: Mapping[str, str],
        *,
        environment: str = "",
        needs: tuple[str, ...] = (),
        port: int = 0,
        ready: probes.Probe | None = None,
        once: bool = False,
        settle_seconds: float = 0.0,
        stop_seconds: float = 15.0,
    ) -> ProcessSpec:
        """A Python service: ``python -m <arguments>`` in its own environment."""
        wanted = environment or name.removesuffix("-worker")
        python = self.layout.python(self.options.environment(wanted))
        return ProcessSpec(
            name=name,
            argv=(str(python), "-m", *arguments),
            environ={**_clean(os.environ), **self.settings, **environ},
            log=self.layout.logs / f"{name}.log",
            cwd=self.layout.home,
            ready=ready,
            needs=needs,
            port=port,
            once=once,
            settle_seconds=settle_seconds,
            stop_seconds=stop_seconds,
        )


def _server(layout: Layout, name: str, command: ServerCommand, port: int, ready: probes.Probe) -> ProcessSpec:
    return ProcessSpec(
        name=name,
        argv=tuple(command.argv),
        environ=_clean(os.environ) | command.env,
        log=layout.logs / f"{name}.log",
        cwd=layout.home,
        ready=ready,
        port=port,
        stop_seconds=command.stop_seconds,
    )


def _clean(environ: Mapping[str, str]) -> dict[str, str]:
    """The launcher's variables without those that belong to its own Python. Bytecode is kept: without it, each start
    compiles the ML libraries anew, and that costs more than the rest of the start. Nor do trackers' keys go to everyone.
    """
    dropped = (
        "PYTHONPATH",
        "PYTHONHOME",
        "PYTHONDONTWRITEBYTECODE",
        "VIRTUAL_ENV",
        "MARTLET_API_KEY",
        "MARTLET_BASE_URL",
    )
    return {
        name: value for name, value in environ.items() if name not in dropped and not name.startswith(_TOOL_PREFIXES)
    }

"""What the user may choose about a platform. Imports nothing heavy: every command's parser needs it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from martlet_core.errors import InvalidArgument
from martlet_core.model_rules import parse_hub_id

DEFAULT_MODEL = "smollm2-135m-instruct"
_CATALOGUE_NAME = re.compile(r"[a-z0-9][a-z0-9._-]*")
#: Every port of a platform and its usual number; 0: any free one. The usual one is taken when it is free.
PORTS: Mapping[str, int] = {
    "http": 8000,
    "grpc": 50051,
    "valkey": 0,
    "s3": 0,
    "trainer": 0,
    "quantizer": 0,
    "evaluator": 0,
    "inference": 0,
}
#: Inference engines, and the environment that each runs in.
ENGINES: Mapping[str, str] = {"vllm": "inference", "transformers": "inference-transformers", "echo": "inference"}
#: Job stages that can be started, and those that are unless the user says otherwise.
STAGES = ("trainer", "quantizer", "evaluator")
DEFAULT_STAGES = STAGES
#: Families of quantization methods: each has an environment and a worker of its own.
FAMILIES = ("bnb", "llmcompressor", "gguf", "awq", "gptqmodel")
DEFAULT_FAMILIES = ("bnb", "llmcompressor", "gguf")
#: Tools that jobs may have told of them. With any of them, the trainer gets a process for it, in an environment of its own.
TRACKERS = ("tensorboard", "wandb", "mlflow")


@dataclass(frozen=True)
class PlatformOptions:
    """What to start.

    Attributes:
        engine: inference engine (see ``ENGINES``).
        model: base model that inference serves: a name of the trainer's catalogue, or ``org/model@commit``.
        environments: service -> name of the environment it runs in, where it isn't the service's own.
        host: address that the gateway listens on.
        redis_url: a Valkey or Redis that runs already; empty: start one.
        s3_endpoint: an S3 endpoint that runs already (keys in MARTLET_S3_ACCESS_KEY, ..._SECRET_KEY); empty: start one.
        ports: ports by name (see ``PORTS``); 0 asks for any free one.
        stages: job stages to start (see ``STAGES``).
        families: families of quantization methods that get a worker (see ``FAMILIES``).
        trackers: tools that jobs may have told of them (see ``TRACKERS``).
    """

    engine: str = "vllm"
    model: str = DEFAULT_MODEL
    environments: Mapping[str, str] = field(default_factory=dict)
    host: str = "127.0.0.1"
    redis_url: str = ""
    s3_endpoint: str = ""
    ports: Mapping[str, int] = field(default_factory=dict)
    stages: tuple[str, ...] = DEFAULT_STAGES
    families: tuple[str, ...] = DEFAULT_FAMILIES
    trackers: tuple[str, ...] = ()

    @property
    def services(self) -> tuple[str, ...]:
        """What is started of ours, by the names of the environments: gateway, stages, families, trackers, inference."""
        families = [f"quantizer-{family}" for family in self.families] if "quantizer" in self.stages else []
        tracking = ("trainer-tracking",) if self.trackers else ()
        return ("gateway", *self.stages, *families, *tracking, "inference")

    def environment(self, service: str) -> str:
        """Name of the environment that a service runs in."""
        usual = ENGINES[self.engine] if service == "inference" else service
        return self.environments.get(service, usual)

    def check(self) -> None:
        """Refuse what could never come up. InvalidArgument names the argument."""
        for flag, named, known in (
            ("--stages", self.stages, STAGES),
            ("--quantizer-families", self.families, FAMILIES),
            ("--trackers", self.trackers, TRACKERS),
        ):
            for name in named:
                if name not in known:
                    raise InvalidArgument.field(flag, f"{name!r} isn't known; known are {', '.join(known)}")
        if "trainer" not in self.stages:
            raise InvalidArgument.field("--stages", "must hold trainer, which knows the base models by name")
        hub = parse_hub_id(self.model)
        if hub is not None and not hub.revision:
            raise InvalidArgument.field(
                "--model", f"{self.model!r} is a model of the hub; say which revision: {self.model}@<commit>"
            )
        if hub is None and not _CATALOGUE_NAME.fullmatch(self.model):
            raise InvalidArgument.field(
                "--model",
                f"{self.model!r} is neither a base model's name nor org/model@commit; published models need no "
                "start of their own: they are loaded when a request names them",
            )

"""The overlay of examples/swap: a foreign evaluator in ours' place, locked in as ours and with less in its hands."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[3]
SWAP = ROOT / "examples" / "swap"
OVERLAY_FILE = "examples/swap/compose.yml"
#: What keeps a container of ours locked in: the overlay may say nothing about it.
KEPT = (
    *("user", "read_only", "cap_drop", "cap_add", "security_opt", "privileged", "init", "restart", "tmpfs", "logging"),
    *("networks", "network_mode", "ports", "stop_grace_period"),
)


class Tagged(yaml.SafeLoader):
    """Reads a tagged value as ``(tag, value)``."""


def _tagged(loader: yaml.SafeLoader, suffix: str, node: yaml.Node) -> Any:
    if isinstance(node, yaml.MappingNode):
        return suffix, loader.construct_mapping(node, deep=True)
    assert isinstance(node, yaml.SequenceNode)
    return suffix, loader.construct_sequence(node, deep=True)


Tagged.add_multi_constructor("!", _tagged)
OVERLAY: dict[str, Any] = yaml.load((SWAP / "compose.yml").read_text(), Tagged)
SERVICE: dict[str, Any] = OVERLAY["services"]["evaluator"]


def test_one_service_is_replaced_and_its_worker_left_out() -> None:
    assert set(OVERLAY) == {"services"}
    assert set(OVERLAY["services"]) == {"evaluator", "evaluator-worker"}
    # By number: `up` takes what runs away. A profile would leave it running.
    assert OVERLAY["services"]["evaluator-worker"] == {"deploy": {"replicas": 0}}


def test_it_stays_locked_in() -> None:
    assert [name for name in KEPT if name in SERVICE] == []
    assert set(SERVICE["deploy"]["resources"]["limits"]) == {"memory"}


def test_it_holds_the_internal_token_and_nothing_else() -> None:
    assert SERVICE["secrets"] == ("override", ["internal_token"])
    assert SERVICE["environment"] == ("override", {"MARTLET_INTERNAL_TOKEN_FILE": "/run/secrets/internal_token"})
    assert SERVICE["volumes"] == ("reset", [])
    assert SERVICE["depends_on"] == ("reset", {})


def test_it_stands_where_the_gateway_looks_for_it() -> None:
    ours = yaml.safe_load(re.sub(r"!reset \S+", "", (ROOT / "docker-compose.yml").read_text()))["services"]
    port = ours["gateway"]["environment"]["MARTLET_EVALUATOR_ADDRESS"].removeprefix("evaluator:")
    dockerfile = (SWAP / "Dockerfile").read_text()
    assert f'"--address", "0.0.0.0:{port}"' in dockerfile
    assert SERVICE["healthcheck"]["test"][-1] == f"127.0.0.1:{port}"
    named = dict(zip(SERVICE["command"][::2], SERVICE["command"][1::2], strict=True))
    assert named == {"--gateway-url": "http://gateway:8000/v1", "--gateway-address": "gateway:50051"}
    assert "core" in ours["gateway"]["networks"]
    assert ours["evaluator"]["networks"] == ours["object-store"]["networks"] == ["core"], "presigned URLs lead there"


def test_its_image_holds_nothing_of_ours() -> None:
    text = (SWAP / "Dockerfile").read_text()
    assert "syntax=" not in text, "the frontend would be pulled from a registry"
    final = text.split("\nFROM ")[-1]
    assert "USER 10001:10001" in final
    assert "HEALTHCHECK" in final
    assert "org.opencontainers.image.revision" in final
    assert "RUN" not in final
    assert not re.search(r"(ENV|ARG) \w*(PASSWORD|SECRET|TOKEN|KEY)", text)
    copied = re.findall(r"^COPY (?!--from)(\S+)", text, re.M)
    assert sorted(copied) == [
        "examples/swap/evaluator",
        "examples/swap/requirements.txt",
        "protos",
        "third_party/googleapis",
    ]
    seen = re.findall(r"^!(\S+)", (SWAP / "Dockerfile.dockerignore").read_text(), re.M)
    assert sorted(seen) == sorted(copied), "the context holds what is copied, and nothing else"


@pytest.mark.docker
@pytest.mark.parametrize(
    "files", [("docker-compose.yml",), ("docker-compose.yml", "docker-compose.cpu.yml")], ids=["gpu", "cpu"]
)
def test_compose_takes_the_overlay(files: tuple[str, ...], tmp_path: Path) -> None:
    ours, swapped = _config(files, tmp_path), _config((*files, OVERLAY_FILE), tmp_path)
    assert {name: service for name, service in swapped.items() if not name.startswith("evaluator")} == {
        name: service for name, service in ours.items() if not name.startswith("evaluator")
    }
    service = swapped["evaluator"]
    assert service["environment"] == {"MARTLET_INTERNAL_TOKEN_FILE": "/run/secrets/internal_token"}
    assert [secret["source"] for secret in service["secrets"]] == ["internal_token"]
    assert not service.get("volumes")
    assert not service.get("depends_on")
    assert "additional_contexts" not in service["build"]
    for name in ("user", "read_only", "cap_drop", "security_opt", "init", "restart", "tmpfs", "logging", "networks"):
        assert service[name] == ours["evaluator"][name], name
    limits = service["deploy"]["resources"]["limits"]
    assert int(limits["memory"]) > 0
    assert int(limits["pids"]) > 0
    assert swapped["evaluator-worker"]["deploy"]["replicas"] == 0


def _config(files: tuple[str, ...], directory: Path) -> dict[str, Any]:
    if (
        not shutil.which("docker")
        or subprocess.run(["docker", "compose", "version"], capture_output=True, check=False).returncode
    ):
        pytest.skip("there is no docker compose here")
    environ = {name: value for name, value in os.environ.items() if not name.startswith(("MARTLET_", "COMPOSE_"))}
    argv = ["docker", "compose", *(word for file in files for word in ("-f", file)), "config", "--format", "json"]
    environ |= {"MARTLET_SECRETS_DIR": str(directory)}
    done = subprocess.run(argv, cwd=ROOT, env=environ, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)["services"]

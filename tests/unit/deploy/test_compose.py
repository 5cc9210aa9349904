"""The compose files and Dockerfiles: what can be said of them without starting anything, and without a GPU."""

from __future__ import annotations

import json
import os
import re
import shutil
import stat
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from martlet_core.api_keys import SECRET_PATTERN

ROOT = Path(__file__).parents[3]
#: Services that run to their end.
ONCE = {"volumes", "init", "models"}
GPU = {
    "trainer-worker",
    "inference",
    *(f"quantizer-{f}-worker" for f in ("bnb", "llmcompressor", "gguf", "awq", "gptqmodel")),
}
OURS = re.compile(r"\$\{MARTLET_IMAGES:-martlet\}/(gateway|trainer|quantizer|evaluator|inference)")


class Loader(yaml.SafeLoader):
    """Reads compose's own tags as what they hold."""


def _plain(loader: yaml.SafeLoader, _suffix: str, node: yaml.Node) -> Any:
    if isinstance(node, yaml.MappingNode):
        return loader.construct_mapping(node, deep=True)
    if isinstance(node, yaml.SequenceNode):
        return loader.construct_sequence(node, deep=True)
    assert isinstance(node, yaml.ScalarNode)
    return None if node.value in ("", "null") else node.value


Loader.add_multi_constructor("!", _plain)


def load(name: str) -> dict[str, Any]:
    return yaml.load((ROOT / name).read_text(), Loader)


COMPOSE = load("docker-compose.yml")
CPU = load("docker-compose.cpu.yml")
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]


@pytest.mark.parametrize("name", SERVICES)
def test_every_service_is_locked_in(name: str) -> None:
    service = SERVICES[name]
    assert int(service["user"].split(":")[0]) > 0
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert "cap_add" not in service
    assert not service.get("privileged")
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["init"] is True
    assert service["logging"]["options"].keys() == {"max-size", "max-file"}
    limits = service["deploy"]["resources"]["limits"]
    assert limits["memory"]
    assert int(limits["pids"]) > 0


@pytest.mark.parametrize("name", SERVICES)
def test_what_runs_on_is_watched_and_started_again(name: str) -> None:
    service = SERVICES[name]
    if name in ONCE:
        assert service["restart"] == "no"
        assert service["healthcheck"] == {"disable": True}
        return
    assert service["restart"] == "unless-stopped"
    assert service["healthcheck"]["test"]
    assert service["stop_grace_period"]


def test_nothing_but_the_gateway_is_published() -> None:
    published = {name: service["ports"] for name, service in SERVICES.items() if "ports" in service}
    assert set(published) == {"gateway", "grafana"}
    assert SERVICES["grafana"]["profiles"] == ["observability"]
    assert all(port.startswith("${MARTLET_BIND:-127.0.0.1}:") for ports in published.values() for port in ports)
    assert not any("network_mode" in s and s["network_mode"] != "none" for s in SERVICES.values())
    assert COMPOSE["networks"]["core"]["internal"] == "${MARTLET_CORE_INTERNAL:-true}"
    on_edge = [name for name, service in SERVICES.items() if "edge" in service.get("networks", [])]
    assert set(on_edge) == set(published)


def test_services_can_be_scaled() -> None:
    assert not any("container_name" in service or "hostname" in service for service in SERVICES.values())


def test_secrets_are_files_and_have_no_default() -> None:
    assert all(set(secret) == {"file"} for secret in COMPOSE["secrets"].values())
    for name, service in SERVICES.items():
        for variable in service.get("environment", {}):
            if re.search(r"PASSWORD|SECRET|TOKEN|KEY|REDIS_URL", variable):
                assert variable.endswith("_FILE"), f"{name}: {variable}"
    used = {secret for service in SERVICES.values() for secret in service.get("secrets", [])}
    assert used == set(COMPOSE["secrets"])


def test_gpus_are_reserved_on_one_and_not_on_the_other() -> None:
    reserved = {name for name, service in SERVICES.items() if "reservations" in service["deploy"]["resources"]}
    assert reserved == GPU
    for name in GPU:
        (device,) = SERVICES[name]["deploy"]["resources"]["reservations"]["devices"]
        assert device == {"driver": "nvidia", "device_ids": ["${MARTLET_GPU_DEVICES:-all}"], "capabilities": ["gpu"]}
        assert SERVICES[name]["environment"]["NVIDIA_DRIVER_CAPABILITIES"] == "compute,utility"
        assert SERVICES[name]["image"].endswith("-cuda")
        assert SERVICES[name].get("build", {"args": {"VARIANT": "cuda"}})["args"]["VARIANT"] == "cuda"
        override = CPU["services"][name]
        assert override["deploy"]["resources"]["reservations"] == {"devices": []}
        assert override["image"] == SERVICES[name]["image"].removesuffix("-cuda") + "-cpu"
        assert override["environment"]["OMP_NUM_THREADS"]


def test_inference_leaves_room_on_the_gpu() -> None:
    assert SERVICES["inference"]["environment"]["MARTLET_GPU_SHARE"] == "${MARTLET_GPU_SHARE:-0}"


def test_no_cuda_image_is_left_on_a_cpu() -> None:
    merged = {name: CPU["services"].get(name, {}).get("image", service["image"]) for name, service in SERVICES.items()}
    assert [name for name, image in merged.items() if image.endswith("-cuda")] == []


def test_every_variable_is_a_setting() -> None:
    known = set()
    for path in [*ROOT.glob("libs/core/src/martlet_core/*settings.py"), *ROOT.glob("services/*/src/*/settings.py")]:
        known |= {f"MARTLET_{name.upper()}" for name in re.findall(r"^    (\w+): .* = Field", path.read_text(), re.M)}
    wanted = {
        variable for file in (COMPOSE, CPU) for s in file["services"].values() for variable in s.get("environment", {})
    }
    ours = {variable.removesuffix("_FILE") for variable in wanted if variable.startswith("MARTLET_")} - {
        "MARTLET_ALIVE"
    }
    assert ours - known == set()


def test_workers_have_time_for_a_checkpoint() -> None:
    for name in GPU - {"inference"} | {"evaluator-worker"}:
        assert SERVICES[name]["environment"]["MARTLET_STOP_GRACE_SECONDS"] == "${MARTLET_STOP_GRACE_SECONDS:-120}"
        assert SERVICES[name]["stop_grace_period"] == "4m"


def test_the_store_in_tests_takes_the_place_of_two_images_only() -> None:
    override = load("tests/e2e/compose.local-images.yml")["services"]
    theirs = {name for name, service in SERVICES.items() if not OURS.match(service["image"])}
    assert set(override) == {"valkey", "object-store"} == theirs - {"prometheus", "grafana"}
    assert all("image" not in service for service in override.values())


@pytest.mark.parametrize("path", sorted(ROOT.glob("services/*/Dockerfile")), ids=lambda path: path.parent.name)
def test_dockerfiles(path: Path) -> None:
    text = path.read_text()
    service = path.parent.name
    assert "syntax=" not in text, "the frontend would be pulled from a registry"
    final = text.split("\nFROM ")[-1]
    assert "USER 10001:10001" in final
    assert f'ENTRYPOINT ["python", "-m", "martlet_{service}"]' in final
    assert "HEALTHCHECK" in final
    assert "org.opencontainers.image.revision" in final
    assert not re.search(r"(ENV|ARG) \w*(PASSWORD|SECRET|TOKEN|KEY)", text)
    # After the sources nothing is run: a change of code rebuilds a copy.
    assert "RUN" not in final.split("COPY --from=sources")[1]
    assert "ENV MARTLET_IMAGE=${IMAGE}" in final


@pytest.mark.docker
@pytest.mark.parametrize("kind", ["gpu", "cpu"])
def test_compose_takes_the_files(kind: str, tmp_path: Path) -> None:
    config = _config(["docker-compose.yml"] + (["docker-compose.cpu.yml"] if kind == "cpu" else []), tmp_path)
    for name in GPU & set(config["services"]):
        devices = config["services"][name]["deploy"]["resources"].get("reservations", {}).get("devices")
        if kind == "cpu":
            assert not devices
        else:
            assert devices == [{"capabilities": ["gpu"], "driver": "nvidia", "device_ids": ["0,2"]}]
    assert config["networks"]["core"]["internal"] is True
    published = [port for service in config["services"].values() for port in service.get("ports", [])]
    assert {port["host_ip"] for port in published} == {"127.0.0.1"}
    assert "quantizer-awq-worker" not in config["services"], "its profile is off"


def _config(files: list[str], directory: Path) -> dict[str, Any]:
    if (
        not shutil.which("docker")
        or subprocess.run(["docker", "compose", "version"], capture_output=True, check=False).returncode
    ):
        pytest.skip("there is no docker compose here")
    environ = {name: value for name, value in os.environ.items() if not name.startswith(("MARTLET_", "COMPOSE_"))}
    argv = ["docker", "compose", *(word for file in files for word in ("-f", file)), "config", "--format", "json"]
    environ |= {"MARTLET_SECRETS_DIR": str(directory), "MARTLET_GPU_DEVICES": "0,2"}
    done = subprocess.run(argv, cwd=ROOT, env=environ, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_the_dashboard_asks_for_what_the_gateway_says() -> None:
    from martlet_gateway.metrics import Metrics

    metrics = Metrics()
    metrics.request("GET", "/", 200, 0.1)
    metrics.replica_error("UNAVAILABLE")
    said = set(re.findall(r"^(martlet_gateway_\w+)", metrics.render().decode(), re.M))
    text = (ROOT / "deploy" / "observability" / "dashboards" / "martlet.json").read_text()
    asked = set(re.findall(r"martlet_gateway_\w+", text))
    assert len(asked) == 10
    assert asked - said == set()


def test_secrets_are_made_once(tmp_path: Path) -> None:
    directory = tmp_path / "secrets"
    environ = os.environ | {"MARTLET_SECRETS_DIR": str(directory)}
    subprocess.run([ROOT / "scripts" / "secrets.sh"], env=environ, check=True, capture_output=True)
    made = {path.name: path.read_text() for path in directory.iterdir()}
    assert set(COMPOSE["secrets"]) <= set(made)
    assert SECRET_PATTERN.fullmatch(made["api_key"].strip())
    assert made["valkey_password"].strip() in made["redis_url"]
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    again = subprocess.run([ROOT / "scripts" / "secrets.sh"], env=environ, check=True, capture_output=True)
    assert again.stdout == b""
    assert {path.name: path.read_text() for path in directory.iterdir()} == made

"""Trackers and reward services in the chart: who is told of them, and who may reach them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from helm_python import HelmError

ROOT = Path(__file__).parents[3]
TRACKERS: Mapping[str, Any] = {
    "kinds": ["tensorboard", "wandb"],
    "toolEnv": {"WANDB_BASE_URL": "https://wandb.example.org"},
    "existingSecret": "tools",
}
PEER = [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "ml"}}}]


def holding(rendered: Any, tools: Any, name: str) -> dict[str, str]:
    """Values of a variable, by the components whose pods have it."""
    found = {pod.component: tools.environ(pod.main).get(name) for pod in rendered.pods()}
    return {component: value for component, value in found.items() if value is not None}


def test_without_kinds_there_is_no_tracker(render: Any, tools: Any) -> None:
    rendered = render()
    assert not any("tracker" in str(o["metadata"]) for o in rendered.objects)
    assert holding(rendered, tools, "MARTLET_TRACKERS") == {"trainer": ""}
    none = {"trainer": "", "trainer-worker": ""}
    assert holding(rendered, tools, "MARTLET_ALLOWED_REWARD_SERVICES") == none


def test_the_trainers_api_offers_what_the_tracker_tells(render: Any, tools: Any) -> None:
    rendered = render({"trainer": {"trackers": TRACKERS}})
    offered = holding(rendered, tools, "MARTLET_TRACKERS")
    assert offered == {"trainer": "tensorboard,wandb", "trainer-tracker": "tensorboard,wandb"}
    pod = rendered.pod("demo-martlet-trainer-tracker")
    assert (pod.main["args"], pod.main["image"]) == (["track"], "martlet/trainer-tracking:0.1.0")


def test_the_tools_variables_are_the_trackers_alone(render: Any, tools: Any) -> None:
    rendered = render({"trainer": {"trackers": TRACKERS}})
    assert set(holding(rendered, tools, "WANDB_BASE_URL")) == {"trainer-tracker"}
    given = {pod.component: pod.main["envFrom"] for pod in rendered.pods() if "envFrom" in pod.main}
    assert given == {"trainer-tracker": [{"secretRef": {"name": "tools"}}]}


@pytest.mark.parametrize(
    ("changes", "source"),
    [
        ({}, {"emptyDir": {"sizeLimit": "10Gi"}}),
        ({"tensorboardClaim": "boards"}, {"persistentVolumeClaim": {"claimName": "boards"}}),
    ],
)
def test_tensorboards_files_have_a_place(
    render: Any, tools: Any, changes: Mapping[str, Any], source: Mapping[str, Any]
) -> None:
    pod = render({"trainer": {"trackers": {**TRACKERS, **changes}}}).pod("demo-martlet-trainer-tracker")
    (volume,) = [volume for volume in pod.spec["volumes"] if volume["name"] == "tensorboard"]
    assert volume == {"name": "tensorboard", **source}
    (mount,) = [mount for mount in pod.main["volumeMounts"] if mount["name"] == "tensorboard"]
    assert mount["mountPath"] == tools.environ(pod.main)["MARTLET_TENSORBOARD_DIR"]


def test_api_and_workers_allow_the_same_reward_services(render: Any, tools: Any) -> None:
    services = ["https://rewards.example.org/score", "rewards.ml.svc:8080"]
    rendered = render({"trainer": {"allowedRewardServices": services}})
    found = holding(rendered, tools, "MARTLET_ALLOWED_REWARD_SERVICES")
    assert found == dict.fromkeys(("trainer", "trainer-worker"), " ".join(services))


@pytest.mark.parametrize(
    ("name", "component", "port"), [("rewardServices", "trainer-worker", 8080), ("trackers", "trainer-tracker", 5000)]
)
def test_what_is_inside_the_cluster_is_reached_by_one_alone(render: Any, name: str, component: str, port: int) -> None:
    rendered = render({"trainer": {"trackers": TRACKERS}, "networkPolicy": {f"{name}To": PEER}})
    rule = {"to": PEER, "ports": [{"port": port, "protocol": "TCP"}]}
    policies = rendered.kind("NetworkPolicy")
    assert [n for n, p in policies.items() if rule in p["spec"].get("egress", [])] == [f"demo-martlet-{component}"]
    assert "ingress" not in policies["demo-martlet-trainer-tracker"]["spec"]


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"trackers": {"kinds": ["neptune"]}}, "/kinds"),
        ({"trackers": {"kinds": ["wandb"], "toolEnv": {"MARTLET_TRACKERS": "x"}}}, "MARTLET_TRACKERS"),
        ({"allowedRewardServices": ["a b"]}, "/allowedRewardServices"),
    ],
)
def test_wrong_values_are_refused(render: Any, values: Mapping[str, Any], said: str) -> None:
    with pytest.raises(HelmError, match=re.escape(said)):
        render({"trainer": values})


def test_compose_and_chart_start_the_same_tracker(render: Any) -> None:
    service = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]["trainer-tracker"]
    pod = render({"trainer": {"trackers": TRACKERS}}).pod("demo-martlet-trainer-tracker")
    assert pod.main["args"] == service["command"]
    assert pod.main["image"].rpartition("/")[2].partition(":")[0] == service["image"].split("/")[1].partition(":")[0]

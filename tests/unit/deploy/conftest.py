"""The rendered chart: Helm itself renders it, without a cluster."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from helm_python import Chart

CHART = Path(__file__).parents[3] / "deploy" / "helm" / "martlet"
NO_GPU = {"count": 0}
#: What has no default.
REQUIRED: Mapping[str, Any] = {
    "objectStore": {"endpoint": "https://s3.example.org"},
    "secrets": {
        "internalToken": "token-for-the-services",
        "s3AccessKey": "access",
        "s3SecretKey": "s3-secret-of-the-store",
        "valkeyPassword": "password-of-valkey",
        "firstApiKey": "mk-" + "a" * 43,
    },
}
#: Sets of values that are rendered and checked as wholes.
SETS: Mapping[str, Mapping[str, Any]] = {
    "defaults": {},
    "no GPU": {
        "trainer": {"worker": {"gpu": NO_GPU}},
        "quantizer": {"workerDefaults": {"gpu": NO_GPU}},
        "inference": {"poolDefaults": {"gpu": NO_GPU, "engine": "echo"}},
    },
    "two pools, KEDA": {
        "keda": {"enabled": True},
        "inference": {
            "pools": [
                {"name": "small", "model": "smollm2-135m-instruct", "prepare": True}
                | {"replicas": 1, "minReplicas": 1, "maxReplicas": 2, "targetRequests": 8},
                {"name": "large", "model": "org/model", "modelRevision": "c1", "gpu": {"count": 4}}
                | {"replicas": 2, "minReplicas": 2, "maxReplicas": 3, "targetRequests": 64, "env": {"MARTLET_MAX_MODEL_LEN": 8192}},
            ]
        },
    },
    "KEDA asks Prometheus": {"keda": {"enabled": True, "trigger": "prometheus", "prometheusAddress": "http://prometheus:9090"}},
    "a Redis of ours": {
        "valkey": {"enabled": False},
        "secrets": {"valkeyPassword": "", "redisUrl": "rediss://u:p@redis.example.org:6380/0"},
        "networkPolicy": {"redisPort": 6380, "redisTo": [{"ipBlock": {"cidr": "192.0.2.7/32"}}]},
    },
    "a secret of ours": {"secrets": dict.fromkeys(REQUIRED["secrets"], "") | {"existingSecret": "ours"}},
    "trainer alone": {
        "quantizer": {"enabled": False},
        "evaluator": {"enabled": False},
        "bootstrap": {"enabled": False},
        "gateway": {"autoscaling": {"enabled": False}},
        "podDisruptionBudgets": {"enabled": False},
    },
    "trackers and rewards": {
        "trainer": {
            "allowedRewardServices": ["https://rewards.example.org/score", "rewards.ml.svc:8080"],
            "trackers": {
                "kinds": ["tensorboard", "mlflow"],
                "toolEnv": {"MLFLOW_TRACKING_URI": "http://mlflow.ml.svc:5000"},
                "existingSecret": "tools",
                "tensorboardClaim": "boards",
            },
        },
        "networkPolicy": {
            "rewardServicesTo": [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "ml"}}}],
            "trackersTo": [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "ml"}}}],
        },
    },
    "everything else": {
        "gateway": {"ingress": {"enabled": True, "host": "m.example.org", "tlsSecret": "tls", "className": "nginx", "annotations": {"a": "b"}}},
        "models": {"existingClaim": "models"},
        "images": {"repository": "registry.example.org:5000/ml", "tag": "9", "pullSecrets": ["pull"]},
        "podLabels": {"team": "ml"},
        "podAnnotations": {"note": "yes"},
        "trainer": {"worker": {"gpu": {"runtimeClassName": "nvidia"}, "pod": {"tolerations": [{"operator": "Exists"}]}}},
        "networkPolicy": {"gatewayFrom": [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "ingress"}}}]},
        "valkey": {"storageClass": "fast"},
    },
}  # fmt: skip


@dataclass(frozen=True)
class Pod:
    """A pod that some object makes.

    Attributes:
        owner: the object's name.
        kind: the object's kind.
        labels: the pod's.
        spec: the pod's.
        parent: the object's ``spec``.
    """

    owner: str
    kind: str
    labels: Mapping[str, str]
    spec: Mapping[str, Any]
    parent: Mapping[str, Any]

    @property
    def main(self) -> Mapping[str, Any]:
        """Its one container."""
        (container,) = self.spec["containers"]
        return container

    @property
    def component(self) -> str:
        return self.labels["app.kubernetes.io/component"]

    @property
    def ports(self) -> Mapping[str, int]:
        return {port["name"]: port["containerPort"] for port in self.main.get("ports", [])}


class Rendered:
    """The objects of one rendering."""

    def __init__(self, objects: Sequence[Mapping[str, Any]], notes: str) -> None:
        self.objects = objects
        self.notes = notes

    def kind(self, kind: str) -> dict[str, Any]:
        """Objects of a kind, by name."""
        return {o["metadata"]["name"]: o for o in self.objects if o["kind"] == kind}

    def pods(self) -> list[Pod]:
        return [
            Pod(o["metadata"]["name"], o["kind"], o["spec"]["template"]["metadata"]["labels"], o["spec"]["template"]["spec"], o["spec"])
            for o in self.objects
            if o["kind"] in ("Deployment", "StatefulSet", "Job")
        ]  # fmt: skip

    def pod(self, owner: str) -> Pod:
        return next(pod for pod in self.pods() if pod.owner == owner)


def environ(container: Mapping[str, Any]) -> dict[str, str]:
    """Variables of a container that have a value."""
    return {variable["name"]: variable["value"] for variable in container.get("env", []) if "value" in variable}


def deep_merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    merged = copy.deepcopy(dict(base))
    for name, value in over.items():
        mapping = isinstance(value, Mapping) and isinstance(merged.get(name), Mapping)
        merged[name] = deep_merge(merged[name], value) if mapping else copy.deepcopy(value)
    return merged


@pytest.fixture(scope="session")
def chart() -> Iterator[Chart]:
    with Chart.load(CHART) as loaded:
        yield loaded


@pytest.fixture(scope="session")
def render(chart: Chart) -> Any:
    """Renders the required values with others over them, as release ``demo`` in namespace ``ns``."""

    def run(values: Mapping[str, Any] | None = None) -> Rendered:
        files = chart.render(values=deep_merge(REQUIRED, values or {}), name="demo", namespace="ns")
        notes = next(text for name, text in files.items() if name.endswith("NOTES.txt"))
        texts = [text for name, text in files.items() if name.endswith(".yaml")]
        return Rendered([o for text in texts for o in yaml.safe_load_all(text) if o], notes)

    return run


@pytest.fixture(params=SETS, scope="session")
def rendered(request: pytest.FixtureRequest, render: Any) -> Rendered:
    """Each set of values, rendered."""
    return render(SETS[request.param])


@pytest.fixture(scope="session")
def tools() -> Any:
    """What test modules take from here."""
    from types import SimpleNamespace

    return SimpleNamespace(environ=environ, chart_dir=CHART, required=REQUIRED, merge=deep_merge)

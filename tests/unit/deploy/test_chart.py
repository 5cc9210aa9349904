"""Every object that the chart makes, with each set of values: valid, safe, and fitting the others."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from typing import Any

import kubernetes_validate
import pytest
from kubernetes_validate import utils
from martlet_evaluator.settings import EvaluatorSettings
from martlet_gateway.settings import GatewaySettings
from martlet_inference.settings import InferenceSettings
from martlet_quantizer.settings import QuantizerSettings
from martlet_trainer.settings import TrainerSettings

#: Kubernetes versions whose schemas the objects must meet.
VERSIONS = ("1.27", "1.37")
SETTINGS = {
    "gateway": GatewaySettings,
    "trainer": TrainerSettings,
    "quantizer": QuantizerSettings,
    "evaluator": EvaluatorSettings,
    "inference": InferenceSettings,
}
#: KEDA's schemas come in no package: the fields of a ScaledObject that the chart may use, from KEDA's documentation, and
#: the metadata of its triggers. ``True``: required.
KEDA_SPEC = {
    "scaleTargetRef": True,
    "triggers": True,
    "pollingInterval": False,
    "cooldownPeriod": False,
    "minReplicaCount": False,
    "maxReplicaCount": False,
    "advanced": False,
}
KEDA_TRIGGERS = {
    "metrics-api": {"url": True, "valueLocation": True, "targetValue": True, "format": False},
    "prometheus": {"serverAddress": True, "query": True, "threshold": True},
}


@pytest.fixture(autouse=True, scope="module")
def _schemas_are_read_once() -> Any:
    patch = pytest.MonkeyPatch()
    patch.setattr(utils, "schema_contents", cache(utils.schema_contents))
    yield
    patch.undo()


@cache
def validate(text: str, version: str) -> None:
    """Check an object; what several sets of values have alike is checked once."""
    kubernetes_validate.validate(json.loads(text), version, strict=True)


def fits(fields: Mapping[str, bool], given: Mapping[str, Any]) -> bool:
    return set(given) <= set(fields) and {name for name, needed in fields.items() if needed} <= set(given)


def test_every_object_meets_the_schemas(rendered: Any) -> None:
    names = [(o["kind"], o["metadata"]["name"]) for o in rendered.objects]
    assert len(set(names)) == len(names)
    for entry in rendered.objects:
        if entry["apiVersion"].startswith("keda.sh/"):
            continue
        for version in VERSIONS:
            validate(json.dumps(entry, sort_keys=True), version)


def test_scaled_objects_hold_what_keda_asks_for(rendered: Any) -> None:
    deployments = rendered.kind("Deployment")
    for name, scaled in rendered.kind("ScaledObject").items():
        spec = scaled["spec"]
        assert fits(KEDA_SPEC, spec), name
        assert spec["scaleTargetRef"] == {"apiVersion": "apps/v1", "kind": "Deployment", "name": name}
        assert "replicas" not in deployments[name]["spec"], "two would fight over the number"
        assert 0 <= spec["minReplicaCount"] <= spec["maxReplicaCount"]
        for trigger in spec["triggers"]:
            assert fits(KEDA_TRIGGERS[trigger["type"]], trigger["metadata"]), name
            assert all(isinstance(value, str) for value in trigger["metadata"].values()), name


def test_every_pod_is_confined(rendered: Any) -> None:
    for pod in rendered.pods():
        assert pod.spec["automountServiceAccountToken"] is False, pod.owner
        rights = pod.spec["securityContext"]
        assert rights["runAsNonRoot"] is True
        assert rights["runAsUser"] == 10001
        assert rights["seccompProfile"] == {"type": "RuntimeDefault"}
        for container in [*pod.spec["containers"], *pod.spec.get("initContainers", [])]:
            context = container["securityContext"]
            assert context["readOnlyRootFilesystem"] is True, pod.owner
            assert context["allowPrivilegeEscalation"] is False
            assert context["capabilities"] == {"drop": ["ALL"]}
            assert "memory" in container["resources"]["limits"], pod.owner
            assert {"cpu", "memory"} <= set(container["resources"]["requests"]), pod.owner
            mounted = {mount["name"] for mount in container["volumeMounts"]}
            claimed = {claim["metadata"]["name"] for claim in pod.parent.get("volumeClaimTemplates", [])}
            assert mounted <= {volume["name"] for volume in pod.spec["volumes"]} | claimed


def test_every_pod_that_stays_is_probed(rendered: Any, tools: Any) -> None:
    for pod in rendered.pods():
        if pod.kind == "Job":
            continue
        assert {"startupProbe", "livenessProbe"} <= set(pod.main), pod.owner
        assert ("readinessProbe" in pod.main) == bool(pod.ports), pod.owner
        for name in ("startupProbe", "livenessProbe", "readinessProbe"):
            probe = pod.main.get(name, {})
            for how in ("grpc", "httpGet", "tcpSocket"):
                port = probe.get(how, {}).get("port")
                assert port is None or port in pod.ports.values() or port in pod.ports, pod.owner
        if pod.component.endswith(("-worker", "-tracker")):
            assert tools.environ(pod.main)["MARTLET_ALIVE_FILE"] in pod.main["livenessProbe"]["exec"]["command"]


def test_selectors_find_their_pods_and_no_others(rendered: Any) -> None:
    pods = rendered.pods()

    def found(selector: Mapping[str, str]) -> list[str]:
        return [pod.owner for pod in pods if selector.items() <= pod.labels.items()]

    for pod in pods:
        if pod.kind != "Job":
            assert found(pod.parent["selector"]["matchLabels"]) == [pod.owner]
        for spread in pod.spec.get("topologySpreadConstraints", []):
            assert found(spread["labelSelector"]["matchLabels"]) == [pod.owner]
    for name, budget in rendered.kind("PodDisruptionBudget").items():
        assert found(budget["spec"]["selector"]["matchLabels"]) == [name]
    for name, service in rendered.kind("Service").items():
        assert found(service["spec"]["selector"]) == [name]
        ports = rendered.pod(name).ports
        assert {port["targetPort"]: port["port"] for port in service["spec"]["ports"]} == ports


def test_addresses_lead_to_services(rendered: Any, tools: Any) -> None:
    """In variables, and where KEDA looks."""
    listening = {
        f"{name}:{port['port']}"
        for name, service in rendered.kind("Service").items()
        for port in service["spec"]["ports"]
    }
    addresses = set()
    for pod in rendered.pods():
        for name, value in tools.environ(pod.main).items():
            if name in ("MARTLET_GRPC_ADDRESS", "MARTLET_ADVERTISE_ADDRESS"):
                assert int(value.rpartition(":")[2]) in pod.ports.values(), pod.owner
            elif name.endswith("_ADDRESS") or name == "MARTLET_GATEWAY_URL":
                addresses.add(value.removeprefix("http://").removesuffix("/v1"))
    for scaled in rendered.kind("ScaledObject").values():
        url = scaled["spec"]["triggers"][0]["metadata"].get("url", "")
        if url:
            addresses.add(url.removeprefix("http://").removesuffix("/metrics").replace(".ns.svc", ""))
    assert addresses
    assert addresses <= listening


def test_who_asks_models_knows_the_gateway(rendered: Any, tools: Any) -> None:
    """Those that evaluate, those that try what they quantized, and those whose models in training are asked."""
    told = {pod.component for pod in rendered.pods() if "MARTLET_GATEWAY_URL" in tools.environ(pod.main)}
    asking = {"evaluator", "evaluator-worker", "quantizer-worker", "trainer-worker"}
    assert told == asking & {pod.component for pod in rendered.pods()}


def test_every_variable_is_a_setting(rendered: Any, tools: Any) -> None:
    """A service ignores a variable that it doesn't know, so a slip of the pen would do nothing."""
    for pod in rendered.pods():
        if pod.component == "valkey":
            continue
        stage = pod.component.removesuffix("-worker").removesuffix("-tracker").replace("bootstrap", "gateway")
        settings = SETTINGS[stage]
        known = {f"MARTLET_{name.upper()}{end}" for name in settings.model_fields for end in ("", "_FILE")}
        given = {name for name in tools.environ(pod.main) if name.startswith("MARTLET_")}
        assert given <= known, pod.owner


def test_secrets_are_files(rendered: Any, tools: Any) -> None:
    secrets = rendered.kind("Secret")
    texts = {"ours": None} if not secrets else {name: secret["data"] for name, secret in secrets.items()}
    for pod in rendered.pods():
        (volume,) = [volume["secret"] for volume in pod.spec["volumes"] if "secret" in volume]
        assert volume["secretName"] in texts
        keys = {item["key"] for item in volume["items"]}
        assert texts[volume["secretName"]] is None or keys <= set(texts[volume["secretName"]])
        named = {
            name: value
            for name, value in tools.environ(pod.main).items()
            if name.endswith("_FILE") and "ALIVE" not in name
        }
        if pod.component != "valkey":
            assert {value.rpartition("/")[2] for value in named.values()} == keys, pod.owner
        assert not any(
            "password" in name.lower() or name.endswith(("_TOKEN", "_KEY")) for name in tools.environ(pod.main)
        )


def test_time_to_stop_is_enough(rendered: Any, tools: Any) -> None:
    for pod in rendered.pods():
        variables = tools.environ(pod.main) if pod.component != "valkey" else {}
        needed = float(variables.get("MARTLET_STOP_GRACE_SECONDS", 0)) + float(
            variables.get("MARTLET_DRAIN_SECONDS", 0)
        )
        assert pod.spec["terminationGracePeriodSeconds"] >= needed + 20, pod.owner

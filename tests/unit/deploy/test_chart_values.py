"""What values do: required ones, wrong ones, GPUs, scaling; and the pages that list them."""

from __future__ import annotations

import base64
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from helm_python import HelmError

ROOT = Path(__file__).parents[3]
POOL = {"replicas": 1, "minReplicas": 1, "maxReplicas": 2, "targetRequests": 8}


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"objectStore": {"endpoint": ""}}, "objectStore.endpoint is empty"),
        *(
            ({"secrets": {name: ""}}, f"secrets.{name} is empty: there are no default passwords")
            for name in ("internalToken", "s3AccessKey", "s3SecretKey", "valkeyPassword", "firstApiKey")
        ),
        ({"valkey": {"enabled": False}}, "secrets.redisUrl is empty"),
        ({"secrets": {"redisUrl": "redis://h:1/0"}}, "valkey.enabled"),
        ({"gateway": {"ingress": {"enabled": True}}}, "gateway.ingress.host is empty"),
        ({"keda": {"enabled": True, "trigger": "prometheus"}}, "keda.prometheusAddress is empty"),
        ({"inference": {"pools": [POOL | {"name": "a", "model": m} for m in "xy"]}}, "the name a is there twice"),
        (
            {"keda": {"enabled": True}, "inference": {"pools": [POOL | {"name": n, "model": "x"} for n in "ab"]}},
            "the model x is there twice",
        ),
        (
            {"quantizer": {"workers": [{"name": "gguf", "replicas": 1, "minReplicas": 0, "maxReplicas": 1}] * 2}},
            "the family gguf is there twice",
        ),
    ],
)
def test_what_can_not_work_is_refused_with_the_remedy(render: Any, values: Mapping[str, Any], said: str) -> None:
    with pytest.raises(HelmError, match=re.escape(said)):
        render(values)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"keda": {"enabeld": True}}, "/keda"),
        ({"quantizer": {"workers": [{"name": "exl2", "replicas": 1, "minReplicas": 0, "maxReplicas": 1}]}}, "/name"),
        ({"env": {"LOG_LEVEL": "DEBUG"}}, "LOG_LEVEL"),
        ({"trainer": {"worker": {"resources": {"limits": {"memory": "much"}}}}}, "/memory"),
        ({"secrets": {"valkeyPassword": "short"}}, "/valkeyPassword"),
        ({"secrets": {"firstApiKey": "mk-short"}}, "/firstApiKey"),
        ({"inference": {"pools": [{"name": "a"}]}}, "/inference/pools/0"),
    ],
)
def test_the_schema_refuses_what_is_not_known(render: Any, values: Mapping[str, Any], said: str) -> None:
    with pytest.raises(HelmError, match=re.escape(said)):
        render(values)


def test_the_job_stores_url_follows_from_its_password(render: Any) -> None:
    (secret,) = render().kind("Secret").values()
    url = base64.b64decode(secret["data"]["redis-url"]).decode()
    assert url == "redis://:password-of-valkey@demo-martlet-valkey:6379/0"
    assert "demo-martlet-valkey" in render().kind("Service")


def test_gpus_go_to_those_that_compute_and_choose_the_image(render: Any) -> None:
    gguf = {"name": "gguf", "replicas": 1, "minReplicas": 0, "maxReplicas": 2, "gpu": {"count": 0}}
    bnb = {"name": "bnb", "replicas": 1, "minReplicas": 0, "maxReplicas": 2, "gpu": {"resource": "example.org/gpu"}}
    values = {
        "quantizer": {"workers": [bnb, gguf]},
        "inference": {"pools": [POOL | {"name": "large", "model": "org/m", "modelRevision": "c", "gpu": {"count": 4}}]},
    }
    rendered = render(values)
    limits = {pod.owner.removeprefix("demo-martlet-"): pod.main["resources"]["limits"] for pod in rendered.pods()}
    gpus = {owner: {n: c for n, c in limit.items() if n.endswith("/gpu")} for owner, limit in limits.items()}
    assert {owner: found for owner, found in gpus.items() if found} == {
        "trainer-worker": {"nvidia.com/gpu": 1},
        "quantizer-worker-bnb": {"example.org/gpu": 1},
        "inference-large": {"nvidia.com/gpu": 4},
    }
    for pod in rendered.pods():
        if pod.component != "valkey":
            image = pod.main["image"].removeprefix("martlet/")
            computes = image.startswith(("trainer:", "inference:", "quantizer-"))
            of_gpu = gpus[pod.owner.removeprefix("demo-martlet-")] or image.startswith("trainer:")
            assert image.partition(":")[2] == "0.1.0" + ("-cuda" if of_gpu else "-cpu") * computes, pod.owner
    assert rendered.pod("demo-martlet-quantizer-worker-gguf").main["image"] == "martlet/quantizer-gguf:0.1.0-cpu"


def test_workers_scale_by_unfinished_jobs_and_replicas_by_their_requests(render: Any) -> None:
    pools = [
        POOL | {"name": "own", "model": "smollm2", "prepare": True},
        POOL | {"name": "hub", "model": "org/m", "modelRevision": "c1", "targetRequests": 64},
    ]
    rendered = render({"keda": {"enabled": True}, "inference": {"pools": pools}})
    triggers = {
        name.removeprefix("demo-martlet-"): scaled["spec"]["triggers"][0]["metadata"]
        for name, scaled in rendered.kind("ScaledObject").items()
    }
    found = {name: (metadata["valueLocation"], metadata["targetValue"]) for name, metadata in triggers.items()}

    def jobs(stage: str, queue: str) -> tuple[str, str]:
        return f'martlet_jobs_unfinished{{queue="{queue}",stage="{stage}"}}', "1"

    assert found == {
        "trainer-worker": jobs("trainer", "trainer"),
        "quantizer-worker-bnb": jobs("quantizer", "quantizer-bnb"),
        "quantizer-worker-llmcompressor": jobs("quantizer", "quantizer-llmcompressor"),
        "quantizer-worker-gguf": jobs("quantizer", "quantizer-gguf"),
        "evaluator-worker": jobs("evaluator", "evaluator"),
        "inference-own": ('martlet_replica_requests{model="smollm2"}', "8"),
        "inference-hub": ('martlet_replica_requests{model="org/m@c1"}', "64"),
    }


def test_the_series_that_scale_are_ones_that_gateways_have(render: Any) -> None:
    source = (ROOT / "services/gateway/src/martlet_gateway/metrics.py").read_text()
    for scaled in render({"keda": {"enabled": True}}).kind("ScaledObject").values():
        series = scaled["spec"]["triggers"][0]["metadata"]["valueLocation"].partition("{")[0]
        assert f'"{series}"' in source


def test_users_variables_count_more_and_may_be_false(render: Any, tools: Any) -> None:
    rendered = render(
        {
            "env": {"MARTLET_LOG_LEVEL": "DEBUG"},
            "gateway": {"env": {"MARTLET_ACCESS_LOG": False, "MARTLET_LOG_LEVEL": "INFO"}},
        }
    )
    assert tools.environ(rendered.pod("demo-martlet-trainer").main)["MARTLET_LOG_LEVEL"] == "DEBUG"
    gateway = tools.environ(rendered.pod("demo-martlet-gateway").main)
    assert (gateway["MARTLET_LOG_LEVEL"], gateway["MARTLET_ACCESS_LOG"]) == ("INFO", "false")


def test_gateways_register_the_first_key_before_they_start(render: Any, tools: Any) -> None:
    (init,) = render().pod("demo-martlet-gateway").spec["initContainers"]
    assert init["args"] == ["init"]
    assert tools.environ(init)["MARTLET_FIRST_API_KEY_FILE"] == "/run/secrets/martlet/first-api-key"


def test_a_prepared_model_is_where_the_engine_looks(render: Any, tools: Any) -> None:
    pod = render().pod("demo-martlet-inference-default")
    (prepare,) = pod.spec["initContainers"]
    assert prepare["image"] == "martlet/trainer:0.1.0-cuda"
    assert prepare["command"][-1] == tools.environ(pod.main)["MARTLET_MODEL_DIR"]
    assert {"name": "models", "mountPath": "/var/lib/martlet/models"} in prepare["volumeMounts"]


def test_the_notes_tell_the_address_and_what_was_not_run(render: Any) -> None:
    notes = render().notes
    assert "http://demo-martlet-gateway.ns.svc:8000/v1" in notes
    assert "nobody has run" in notes


def test_the_readme_lists_the_values(tools: Any) -> None:
    script = tools.chart_dir.parent / "values_table.py"
    checked = subprocess.run([sys.executable, str(script), "--check"], capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stderr
    readme = (tools.chart_dir / "README.md").read_text()
    assert "**Nobody has run this chart on a cluster.**" in "".join(readme.splitlines(keepends=True)[:5])


def test_images_listen_and_run_as_the_chart_says(render: Any) -> None:
    """The Dockerfiles' own words: port, user, name."""
    dockerfiles = sorted((ROOT / "services").glob("*/Dockerfile"))
    if not dockerfiles:
        pytest.skip("this checkout has no Dockerfiles")
    rendered = render()
    for dockerfile in dockerfiles:
        text = dockerfile.read_text()
        pods = [pod for pod in rendered.pods() if pod.component == dockerfile.parent.name]
        assert pods, dockerfile
        for pod in pods:
            exposed = re.findall(r"^EXPOSE (.+)$", text, re.MULTILINE)[-1].split()
            assert sorted(map(int, exposed)) == sorted(pod.ports.values())
            assert re.findall(r"^USER (\S+)$", text, re.MULTILINE)[-1] == "10001:10001"
            assert f"-t {pod.main['image'].partition(':')[0]}" in text
            assert f'ENTRYPOINT ["python", "-m", "martlet_{pod.component}"]' in text

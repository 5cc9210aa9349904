"""Rules about models that the gateway and the replicas must agree on: what a base model may be called, which served model
an adapter runs on, and which adapters an engine takes while it runs.

A base model's name is one of these:

    smollm2-135m-instruct    a name of the trainer's catalogue, or one that an operator gave to a directory
    org/model@revision       a model of a hub, Hugging Face's (also hf:org/model) or ModelScope's (ms:org/model); `org/model` in an
                             adapter means whichever revision is served
    ft:…                     a published whole model
    artifacts/<id>           a whole model by its artifact
    file:///…                a directory of the trainer's machine, which replicas don't know

Names are compared as they are written, but for the revision and the ``hf:`` that a hub id may leave out.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from martlet_core.artifacts.types import PublishedModel
from martlet_core.errors import FailedPrecondition
from martlet_core.model_tasks import ModelTask

ARTIFACT_PREFIX = "artifacts/"
PATH_PREFIX = "file:"
PUBLISHED_PREFIX = "ft:"

#: peft's names of tasks whose adapters come with a head, and no engine takes a head while it runs.
_PEFT_TASKS = {
    "SEQ_CLS": ModelTask.SEQUENCE_CLASSIFICATION,
    "TOKEN_CLS": ModelTask.TOKEN_CLASSIFICATION,
    "FEATURE_EXTRACTION": ModelTask.EMBEDDING,
}
#: In the metadata of a model that a tenant registered: where it comes from, and the chat template that goes with it.
REGISTERED_SOURCE, CHAT_TEMPLATE = "registered_source", "chat_template"
#: Where a model directory has its chat template; counts more than what its tokenizer's config says.
TEMPLATE_FILE = "chat_template.jinja"

_HUB_ID = re.compile(r"(?:(hf|ms):)?([A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95})(?:@([A-Za-z0-9][\w./-]{0,127}))?")

Hub = Literal["hf", "ms"]


@dataclass(frozen=True)
class HubModel:
    """What a hub has under a name.

    Attributes:
        repository: ``org/model``.
        revision: a commit, tag or branch; empty where the name gives none.
        hub: ``hf`` (Hugging Face) or ``ms`` (ModelScope).
    """

    repository: str
    revision: str
    hub: Hub = "hf"


def parse_hub_id(name: str) -> HubModel | None:
    """What a name of the form ``[hf:|ms:]org/model[@revision]`` means; None for names of other forms."""
    if name.startswith(ARTIFACT_PREFIX):
        return None
    found = _HUB_ID.fullmatch(name)
    return HubModel(found[2], found[3] or "", "ms" if found[1] == "ms" else "hf") if found else None


def published_name(base_model: str, tenant: str, suffix: str | None, job_id: str) -> str:
    """The name of the model that a job makes: ``ft:<base>:<tenant>:<suffix or empty>:<last 8 of the job's id>``.

    Args:
        base_model: as the job's spec names it; its short form goes into the name (``org/model@revision`` -> ``model``,
            ``file:///a/b`` -> ``b``, ``ft:base:...`` -> ``base``, others as they are).
        tenant: owner.
        suffix: what the user chose; None for nothing.
        job_id: the job.
    """
    return f"{PUBLISHED_PREFIX}{_short_name(base_model)}:{tenant}:{suffix or ''}:{job_id[-8:]}"


def _short_name(base_model: str) -> str:
    if base_model.startswith(PUBLISHED_PREFIX):
        return base_model.split(":")[1]
    return base_model.rstrip("/").rsplit("/", 1)[-1].partition("@")[0]


def serves_base(served: str, base_model: str) -> bool:
    """Whether adapters of ``base_model`` run on the whole model ``served``."""
    if served == base_model:
        return True
    wanted, present = parse_hub_id(base_model), parse_hub_id(served)
    if wanted is None or present is None or (wanted.hub, wanted.repository) != (present.hub, present.repository):
        return False
    return wanted.revision in ("", present.revision)


#: Kinds of adapters that are tokens in front of a request, by the trainer's and by peft's names.
_VIRTUAL_TOKENS = ("prompt_tuning", "prefix_tuning", "p_tuning")
#: Kind of the adapters that are the trainer's own layers.
BOTTLENECKS = "adapter"


def check_plain_lora(model: PublishedModel, facts: Mapping[str, Any]) -> None:
    """Refuse an adapter that is more than low-rank matrices: engines take none of these while they run.

    Args:
        model: the adapter.
        facts: what is known of it under peft's names: the published model's metadata, or ``adapter_config.json``.

    Raises:
        FailedPrecondition: reason ``ADAPTER_NEEDS_MERGE``, or ``ADAPTER_NOT_SERVED`` for those that can't be merged either.
    """
    kinds = []
    kind = str(facts.get("tuner") or facts.get("peft_type") or "lora")
    if kind.lower() in _VIRTUAL_TOKENS:
        raise FailedPrecondition(
            f"The adapter {model.name!r} is virtual tokens ({kind.lower()}), which engines don't take and no weights can hold. Load it "
            "with peft, or train an adapter of kind lora, which is served.",
            reason="ADAPTER_NOT_SERVED",
            metadata={"model": model.name, "param": "model"},
        )
    if kind.lower() == BOTTLENECKS:
        raise FailedPrecondition(
            f"The adapter {model.name!r} is bottlenecks ({BOTTLENECKS}): layers of the trainer's own, which engines don't take and no weights"
            " can hold. Load it with martlet_trainer.tuners.bottleneck, or train an adapter of kind lora, which is served.",
            reason="ADAPTER_NOT_SERVED",
            metadata={"model": model.name, "param": "model"},
        )
    if kind.lower() != "lora":
        kinds.append(f"matrices of another kind ({kind.lower()})")
    if facts.get("use_dora"):
        kinds.append("DoRA")
    task = facts.get("task") or _PEFT_TASKS.get(str(facts.get("task_type")))
    if task and task != ModelTask.CAUSAL_LM:
        kinds.append(f"a head of its own ({str(task).replace('_', ' ')})")
    if modules := facts.get("modules_to_save"):
        names = [modules] if isinstance(modules, str) else modules
        kinds.append(f"whole modules ({', '.join(map(str, names))})")
    if kinds:
        raise FailedPrecondition(
            f"The adapter {model.name!r} has {' and '.join(kinds)}; plain LoRA alone can be served as an adapter. Merge it "
            f"into its base model (`martlet merge {model.name}`, or POST /v1/martlet/merge/jobs) and use the merged model.",
            reason="ADAPTER_NEEDS_MERGE",
            metadata={"model": model.name, "param": "model"},
        )

"""A tenant's things in in-memory stores, and the parts of the trainer that look at them, for tests; without an ML library."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from martlet_core.artifacts.store import ContentAddressedStore
from martlet_core.artifacts.types import PublishedModel
from martlet_core.jobs import Job
from martlet_core.models import ObjectModelRegistry
from martlet_core.stores import Stores
from martlet_core.testing.job_store import MemoryJobStore
from martlet_core.testing.object_store import MemoryObjectStore
from martlet_inputs.base_models.locate import ModelDirs

from martlet_trainer.config import parse_training_config
from martlet_trainer.handlers import GatewayAccess, MergeHandler, TrainingHandler
from martlet_trainer.jobs import Submissions
from martlet_trainer.naming import TRAINING

BASE = "smollm2-135m-instruct"
SERVICE = "https://rewards.example/score"
ROW = '{"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}]}\n'


class JobKit:
    """Stores with a tenant's things in them."""

    def __init__(self, tmp_path: Path) -> None:
        self._tmp_path = tmp_path
        self.objects = MemoryObjectStore()
        artifacts = ContentAddressedStore(self.objects, tmp_path / "cache")
        self.stores = Stores(MemoryJobStore(), self.objects, artifacts, ObjectModelRegistry(self.objects))
        self.root = tmp_path / "allowed"
        (self.root / "llama").mkdir(parents=True)
        (self.root / "llama" / "config.json").write_text("{}")
        self.submissions = Submissions(
            artifacts,
            self.stores.models,
            model_roots=(self.root,),
            models_dir=tmp_path / "models",
            scratch_dir=tmp_path / "scratch",
            max_json_bytes=1000,
            allowed_services=[SERVICE],
            trackers=("tensorboard",),
        )
        self._dirs = dirs = ModelDirs(tmp_path / "models", tmp_path / "hub", (self.root,))
        self.training = self.handler(GatewayAccess())
        self.merge = MergeHandler(self.stores, dirs)
        self.dataset = self.artifact("dataset", {"train.jsonl": ROW * 3})

    def handler(self, gateway: GatewayAccess) -> TrainingHandler:
        return TrainingHandler(self.stores, self._dirs, [SERVICE], gateway)

    def artifact(self, kind: str, files: dict[str, str], *, tenant: str = "acme", **metadata: Any) -> str:
        directory = self._tmp_path / f"{kind}-{len(list(self._tmp_path.iterdir()))}"
        directory.mkdir()
        for name, text in files.items():
            (directory / name).write_text(text)
        artifact = self.stores.artifacts.put_directory(directory, kind=kind, tenant=tenant, metadata=metadata)
        return f"artifacts/{artifact.id}"

    def publish(self, name: str, kind: str, artifact: str, **facts: Any) -> str:
        self.stores.models.publish(PublishedModel(name, kind, "acme", artifact.removeprefix("artifacts/"), **facts))
        return name

    def adapter(self, base_model: str = BASE) -> str:
        shape = {"lora_rank": 16, "target_modules": ["q_proj", "v_proj"], "use_dora": False}
        artifact = self.artifact("adapter", {"adapter_config.json": "{}"}, base_model=base_model, **shape)
        return self.publish("ft:base:acme:x:12345678", "adapter", artifact, base_model=base_model, lora_rank=16)

    def job(self, kind: str = TRAINING, **spec: Any) -> Job:
        values = {"base_model": BASE, "training_dataset": self.dataset} if kind == TRAINING else {}
        return Job("0123456789abcdefghjk", "trainer", kind, "acme", {**values, **spec}, "trainer")

    async def check(self, **spec: Any) -> None:
        values = {"base_model": BASE, "training_dataset": self.dataset, **spec}
        await self.submissions.check_training("acme", parse_training_config(values))


def distillation(teacher: str, **changes: Any) -> dict[str, Any]:
    """Fields of a distillation's spec."""
    return {"recipe": "distill", "recipe_options": {"teacher_model": teacher}, **changes}

"""Names that tenants give to base models: what is checked, what they mean to jobs, and to whom."""

from __future__ import annotations

from pathlib import Path

import pytest
from martlet_core.artifacts.store import ContentAddressedStore
from martlet_core.errors import AlreadyExists, InvalidArgument, NotFound
from martlet_core.models import ObjectModelRegistry
from martlet_core.testing.object_store import MemoryObjectStore
from martlet_inputs.base_models.catalog import Reference
from martlet_inputs.base_models.families import chat_templates
from martlet_inputs.base_models.resolve import resolve_base_model
from martlet_trainer.registrations import Registrations

TEMPLATE = "{% for message in messages %}{{ message['content'] }}{% endfor %}"


class Kit:
    def __init__(self, tmp_path: Path) -> None:
        objects = MemoryObjectStore()
        self.artifacts = ContentAddressedStore(objects, tmp_path / "cache")
        self.models = ObjectModelRegistry(objects)
        self.registrations = Registrations(self.artifacts, self.models)
        directory = tmp_path / "model"
        directory.mkdir()
        (directory / "config.json").write_text("{}")
        (directory / "model.safetensors").write_bytes(b"weights")
        put = self.artifacts.put_directory
        self.model = f"artifacts/{put(directory, kind='model', tenant='acme').id}"
        self.adapter = f"artifacts/{put(directory, kind='adapter', tenant='acme').id}"

    def resolve(self, name: str, tenant: str = "acme") -> Reference:
        return resolve_base_model(name, tenant, self.artifacts, self.models, ())


@pytest.fixture
def kit(tmp_path: Path) -> Kit:
    return Kit(tmp_path)


def test_a_hubs_model_is_pinned_and_keeps_its_template(kit: Kit) -> None:
    kit.registrations.register("acme", "mine", "org/model", "v1", TEMPLATE)
    assert kit.resolve("mine") == Reference("hub", "org/model@v1", TEMPLATE)
    kit.registrations.register("acme", "theirs", "ms:org/model@v2")
    assert kit.resolve("theirs") == Reference("hub", "ms:org/model@v2")
    assert [model.name for model in kit.registrations.list("acme")] == ["mine", "theirs"]


def test_an_artifact_with_a_template_is_an_artifact_with_the_same_weights(kit: Kit) -> None:
    kit.registrations.register("acme", "plain", kit.model)
    assert kit.resolve("plain") == Reference("artifact", kit.model.removeprefix("artifacts/"))
    kit.registrations.register("acme", "chatty", kit.model, template="chatml")
    found = kit.artifacts.get(kit.resolve("chatty").value, tenant="acme")
    assert [file.path for file in found.files] == ["chat_template.jinja", "config.json", "model.safetensors"]
    assert b"".join(kit.artifacts.open_file(found, "chat_template.jinja")).decode() == chat_templates()["chatml"].text
    assert b"".join(kit.artifacts.open_file(found, "model.safetensors")) == b"weights"
    assert found.parents == (kit.model.removeprefix("artifacts/"),)


def test_a_name_is_its_tenants_and_means_one_thing(kit: Kit) -> None:
    first = kit.registrations.register("acme", "mine", kit.model, template=TEMPLATE)
    assert kit.registrations.register("acme", "mine", kit.model, template=TEMPLATE) == first, "the same again is fine"
    for source, template in ((kit.model, ""), ("org/model@v1", TEMPLATE)):
        with pytest.raises(AlreadyExists, match="taken"):
            kit.registrations.register("acme", "mine", source, template=template)
    with pytest.raises(NotFound):
        kit.resolve("mine", "other")
    with pytest.raises(NotFound):
        kit.registrations.unregister("other", "mine")
    with pytest.raises(NotFound):
        kit.registrations.register("other", "stolen", kit.model)
    with pytest.raises(AlreadyExists):
        kit.registrations.register("other", "mine", "org/model@v1")
    kit.registrations.unregister("acme", "mine")
    with pytest.raises(NotFound, match="mine"):
        kit.resolve("mine")


@pytest.mark.parametrize(
    ("name", "source", "revision", "template", "field"),
    [
        ("Mine", "org/model@v1", "", "", "name"),
        ("ft:mine", "org/model@v1", "", "", "name"),
        ("mine", "org/model", "", "", "revision"),
        ("mine", "org/model@v1", "v2", "", "revision"),
        ("mine", "org/model", "a b", "", "revision"),
        ("mine", "ADAPTER", "", "", "source"),
        ("mine", "MODEL", "v1", "", "revision"),
        ("mine", "file:///models/x", "", "", "source"),
        ("mine", "https://example.com/x", "", "", "source"),
        ("mine", "org/model@v1", "", "llama9", "chat_template"),
        ("mine", "org/model@v1", "", "{% for m in messages %}", "chat_template"),
        ("mine", "org/model@v1", "", "{{ messages }}" + " " * 65536, "chat_template"),
    ],
)
def test_what_cant_be_is_refused_by_field(
    kit: Kit, name: str, source: str, revision: str, template: str, field: str
) -> None:
    source = {"MODEL": kit.model, "ADAPTER": kit.adapter}.get(source, source)
    with pytest.raises(InvalidArgument) as refused:
        kit.registrations.register("acme", name, source, revision, template)
    assert [violation.field for violation in refused.value.violations] == [field]


def test_names_of_the_catalogue_stay_its_own(kit: Kit) -> None:
    with pytest.raises(AlreadyExists) as refused:
        kit.registrations.register("acme", "smollm2-135m-instruct", "org/model@v1")
    assert refused.value.reason == "NAME_TAKEN"
    with pytest.raises(NotFound, match="did you mean"):
        kit.resolve("smollm2-135m-instrct")


def test_transformers_own_tag_is_no_error(kit: Kit) -> None:
    text = "{% for m in messages %}{%- generation %}{{ m['content'] }}{%- endgeneration %}{% endfor %}"
    kit.registrations.register("acme", "mine", "org/model@v1", template=text)
    assert kit.resolve("mine").chat_template == text

"""Definitions of runs: what is read, and each mistake with its line and what was meant."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from martlet_core.errors import InvalidArgument
from martlet_gateway.runs.definition import definition_from_dict
from martlet_gateway.runs.marks import read
from martlet_gateway.runs.references import parse, substitute
from martlet_gateway.runs.schema import run_schema
from martlet_gateway.runs.spec import parse_run

ROOT = Path(__file__).parents[3]

GOOD = """\
name: headlines
inputs:
  base: smollm2-135m-instruct
  data:
  rate: 2e-4
steps:
  train:
    kind: train
    with:
      base_model: ${inputs.base}
      training_dataset: ${inputs.data}
      hyperparameters: {learning_rate: "${inputs.rate}", epoch_count: 1}
  merge:
    kind: merge
    with: {adapter: "${train.adapter}", suffix: "m-${inputs.base}"}
  small:
    kind: quantize
    with: {model: "${steps.merge.model}", method: bnb-nf4}
    reuse: true
  check:
    kind: gate
    with:
      require: [small.perplexity_ratio <= 1.35, merge.top1_agreement > 99%]
  deploy:
    kind: deploy
    needs: [check]
    with: {alias: headlines, model: "${small.model}"}
"""


def test_a_definition_is_read() -> None:
    definition, _ = parse_run(GOOD, {"data": "artifacts/d1"})
    steps = {step.id: step for step in definition.steps}
    assert list(steps) == ["train", "merge", "small", "check", "deploy"]
    assert {step.id: list(step.needs) for step in definition.steps} == {
        "train": [],
        "merge": ["train"],
        "small": ["merge"],
        "check": ["small", "merge"],
        "deploy": ["check", "small"],
    }
    assert steps["train"].options["hyperparameters"] == {"learning_rate": 2e-4, "epoch_count": 1}
    assert steps["train"].options["training_dataset"] == "artifacts/d1"
    assert steps["merge"].options == {"adapter": "${train.adapter}", "suffix": "m-smollm2-135m-instruct"}
    assert [step.id for step in definition.steps if step.reuse] == ["small"]
    assert definition_from_dict(json.loads(json.dumps(definition.to_dict()))).to_dict() == definition.to_dict()


def test_given_inputs_take_the_types_of_the_defaults() -> None:
    definition, _ = parse_run(GOOD, {"data": "artifacts/d", "rate": "5e-5", "base": 7})
    options = definition.steps[0].options
    assert options["hyperparameters"]["learning_rate"] == 5e-5
    assert options["base_model"] == "7"
    with pytest.raises(InvalidArgument, match="line 5, column 9: the input `rate` is a number; got 'fast'") as caught:
        parse_run(GOOD, {"data": "artifacts/d", "rate": "fast"})
    assert caught.value.violations[0].field == "inputs.rate"


def test_reuse_of_the_run_is_that_of_its_steps_unless_they_say_otherwise() -> None:
    text = "name: a\nsteps:\n  a: {kind: merge, with: {adapter: x}}\n  b: {kind: merge, reuse: false, with: {adapter: x}}\n"
    definition, _ = parse_run("reuse: true\n" + text)
    assert [step.reuse for step in definition.steps] == [True, False]
    assert [step.reuse for step in parse_run(text, {}, True)[0].steps] == [True, False]


def _step(step: str) -> str:
    return f"name: x\nsteps:\n  m: {{kind: merge, with: {{adapter: a}}}}\n  s: {step}\n"


MISTAKES = [
    # text, line, column, field, words
    ("steps: {}\n", 1, 1, "name", "`name` is missing"),
    ("name: x\nstep:\n  a: 1\n", 2, 1, "step", "`step` is not known here. Did you mean `steps`?"),
    ("name: x\nsteps: []\n", 2, 8, "steps", "must be a mapping of step ids"),
    ("name: [x]\nsteps: {a: {kind: merge, with: {adapter: a}}}\n", 1, 7, "name", "must be text"),
    ("name: x\nreuse: maybe\nsteps: {a: {kind: merge, with: {adapter: a}}}\n", 2, 8, "reuse", "must be true or false"),
    (_step("{kind: mrge, with: {adapter: a}}"), 4, 13, "steps.s.kind", "Did you mean `merge`?"),
    (_step("{with: {adapter: a}}"), 4, 6, "steps.s", "`kind` is missing"),
    (_step("{kind: merge, wth: {adapter: a}}"), 4, 20, "steps.s.wth", "Did you mean `with`?"),
    (_step("{kind: merge, with: {adaptr: a}}"), 4, 27, "steps.s.with.adaptr", "Did you mean `adapter`?"),
    (
        _step('{kind: merge, with: {adaptr: "${m.model}"}}'),
        4,
        27,
        "steps.s.with.adaptr",
        "`adaptr` is not known here. Did you mean `adapter`?",
    ),
    (_step("{kind: merge}"), 4, 6, "steps.s.with", "`adapter` is missing"),
    (_step("{kind: merge, with: [a]}"), 4, 26, "steps.s.with", "`with` must be a mapping; got a list"),
    (_step("{kind: merge, with: {adapter: 3}}"), 4, 36, "steps.s.with.adapter", "must be a string; got 3"),
    (
        _step('{kind: merge, with: {adapter: "${n.model}"}}'),
        4,
        36,
        "steps.s.with.adapter",
        "no step `n`. The steps are: m, s",
    ),
    (
        _step('{kind: merge, with: {adapter: "${m.modle}"}}'),
        4,
        36,
        "steps.s.with.adapter",
        "a step of kind merge has no output `modle`. Did you mean `model`? It has: model, artifact.",
    ),
    (_step('{kind: merge, with: {adapter: "${m}"}}'), 4, 36, "steps.s.with.adapter", "`${m}` can't be read"),
    (_step('{kind: merge, with: {adapter: "${m.model"}}'), 4, 36, "steps.s.with.adapter", "`${` without its `}`"),
    (_step('{kind: merge, with: {adapter: "${inputs.a}"}}'), 4, 36, "steps.s.with.adapter", "no input `a`"),
    (
        _step('{kind: merge, with: {adapter: a, max_logprob_difference: "${m.model}"}}'),
        4,
        63,
        "steps.s.with.max_logprob_difference",
        "only a text field takes it",
    ),
    (_step("{kind: merge, needs: [n], with: {adapter: a}}"), 4, 28, "steps.s.needs[0]", "there is no step `n`"),
    (_step("{kind: merge, needs: m, with: {adapter: a}}"), 4, 27, "steps.s.needs", "must be a list of step ids"),
    (
        _step("{kind: gate, with: {require: [m.top1_agrement > 0.9]}}"),
        4,
        36,
        "steps.s.with.require[0]",
        "step m has no metric `top1_agrement`. Did you mean `top1_agreement`?",
    ),
    (_step("{kind: gate, with: {require: [n.x > 0.9]}}"), 4, 36, "steps.s.with.require[0]", "there is no step `n`"),
    (_step("{kind: gate, with: {require: [m.positions]}}"), 4, 36, "steps.s.with.require[0]", "compares nothing"),
    (_step("{kind: gate, with: {requires: [m.positions > 1]}}"), 4, 26, "steps.s.with.requires", "is not known here"),
    (_step("{kind: deploy, with: {alias: a:b, model: x}}"), 4, 35, "steps.s.with.alias", "can't be an alias"),
    (_step("{kind: deploy, with: {alias: ab}}"), 4, 27, "steps.s.with", "`model` is missing"),
    ("name: x\nsteps:\n  a-b: {kind: merge, with: {adapter: a}}\n", 3, 3, "steps.a-b", "Write `a_b`."),
    ("name: x\nsteps:\n  inputs: {kind: merge, with: {adapter: a}}\n", 3, 3, "steps.inputs", "can't be a step's id"),
    ("name: x\nsteps:\n  a: {kind: merge, with: {adapter: a}}\n  a: {}\n", 4, 3, "steps.a", "the first is at line 3"),
    ("name: x\nsteps: [\n", 3, 1, "source", "this isn't YAML"),
    (_step("{kind: merge, with: {adapter: ${m.model}}}"), 4, 37, "source", "a reference stands in quotes"),
    ("", 1, 1, "source", "the text is empty"),
    ("just words\n", 1, 1, "", "a run is a mapping with `name` and `steps`"),
    ("a: &x 1\nb: *x\n", 2, 4, "source", "aliases aren't taken"),
    ("a: !!python/object:os.system x\n", 1, 4, "a", "the tag `!!python/object:os.system` isn't taken"),
    ("a: 1\n---\nb: 1\n", 2, 1, "source", "a second document begins here"),
    ("a: " + "[" * 40 + "]" * 40, 1, 35, "source", "nested more than 32 levels deep"),
]


@pytest.mark.parametrize(("text", "line", "column", "field", "words"), MISTAKES)
def test_each_mistake_is_named_with_its_place(text: str, line: int, column: int, field: str, words: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        parse_run(text)
    assert caught.value.reason == "INVALID_RUN"
    said = {v.field: v.description for v in caught.value.violations}
    assert field in said
    assert said[field].startswith(f"line {line}, column {column}: ")
    assert words in said[field]


def test_all_mistakes_are_named_at_once_in_order() -> None:
    with pytest.raises(InvalidArgument) as caught:
        parse_run("name: x\nreus: 1\nsteps:\n  a: {kind: nothing}\n  b: {kind: merge, with: {adaptr: x}}\n")
    lines = [v.description.split(":")[0] for v in caught.value.violations]
    assert lines == sorted(lines)
    assert {v.field for v in caught.value.violations} >= {"reus", "steps.a.kind", "steps.b.with.adaptr"}


def test_a_cycle_is_named_step_by_step() -> None:
    text = """\
name: x
steps:
  a: {kind: merge, with: {adapter: "${c.model}"}}
  b: {kind: merge, with: {adapter: "${a.model}"}}
  c: {kind: merge, needs: [b], with: {adapter: x}}
"""
    with pytest.raises(InvalidArgument) as caught:
        parse_run(text)
    assert caught.value.violations[0].description == (
        "line 3, column 3: steps need one another in a circle: a -> c -> b -> a. Take one of these needs away."
    )


def test_missing_and_unknown_inputs_are_named() -> None:
    with pytest.raises(InvalidArgument) as caught:
        parse_run(GOOD, {"dta": "x"})
    said = [v.description for v in caught.value.violations]
    assert said[0] == "line 2, column 1: the run has no input `dta`. Did you mean `data`?" or "dta" in said[0]
    assert any("the input `data` has no default, so a value must be given (`--input data=…`)" in text for text in said)


def test_scalars_are_read_as_yaml_1_2_has_them() -> None:
    values = read("a: yes\nb: 2e-4\nc: 012\nd: 1:30\ne: ~\nf: TRUE\ng: '3'\nh: 1_000\ni: 2024-01-01\n").values
    assert values == {
        "a": "yes", "b": 2e-4, "c": 12, "d": "1:30", "e": None, "f": True, "g": "3", "h": "1_000", "i": "2024-01-01",
    }  # fmt: skip


def test_the_example_is_a_definition() -> None:
    text = (ROOT / "examples/lifecycle.yaml").read_text()
    definition, _ = parse_run(text, {"train_data": "artifacts/a", "test_data": "artifacts/b"})
    assert list(definition.step("gate").needs) == ["evaluate", "nf4"]
    assert list(definition.step("evaluate").needs) == ["train", "merge", "nf4", "int8"]
    assert definition.step("train").options["hyperparameters"]["learning_rate"] == 1e-3


def test_json_is_a_definition_too() -> None:
    body = {"name": "x", "steps": {"a": {"kind": "merge", "with": {"adapter": "ft:x"}}}}
    assert parse_run(json.dumps(body))[0].steps[0].options == {"adapter": "ft:x"}


def test_references_keep_types_and_can_be_escaped() -> None:
    values: dict[str, Any] = {"x": "${inputs.n}", "y": ["v${inputs.n}", "$${inputs.n}"]}
    assert substitute(values, lambda _: 3) == {"x": 3, "y": ["v3", "${inputs.n}"]}
    assert substitute(values, lambda r: r) == {"x": "${inputs.n}", "y": ["v${inputs.n}", "${inputs.n}"]}
    assert parse(" steps.train.model ").source == "train"


def test_the_committed_schema_is_that_of_the_code() -> None:
    committed = (ROOT / "docs/schemas/run.schema.json").read_text()
    printed = subprocess.run(
        [sys.executable, "-m", "martlet_gateway.runs.schema"], capture_output=True, text=True, check=True
    ).stdout
    assert printed == committed, "run: python -m martlet_gateway.runs.schema > docs/schemas/run.schema.json"
    kinds = [s["title"] for s in run_schema()["properties"]["steps"]["additionalProperties"]["oneOf"]]
    assert kinds == ["train", "merge", "quantize", "evaluate", "gate", "deploy"]

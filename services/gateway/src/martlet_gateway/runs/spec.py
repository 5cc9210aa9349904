"""A run's text as a definition, or all that is wrong with it, by line."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from martlet_gateway.proto_json import close_hint
from martlet_gateway.runs.definition import RunDefinition, StepDefinition
from martlet_gateway.runs.graph import find_cycle
from martlet_gateway.runs.marks import Document, Mistakes, read, scalar, shown
from martlet_gateway.runs.references import INPUTS, Reference, ReferenceTextError, parse, references, substitute
from martlet_gateway.runs.steps import KINDS
from martlet_gateway.runs.steps.gate import GateStep, conditions, matching, unknown_metric

MAX_STEPS = 100
_TOP = ("name", "description", "inputs", "reuse", "steps")
_STEP = ("kind", "needs", "with", "reuse")
_STEP_ID = re.compile(r"[a-z][a-z0-9_]{0,39}")
_INPUT_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}")
_RESERVED = (INPUTS, "steps")
_MAX_NAME = 128


def parse_run(
    source: str, inputs: Mapping[str, Any] | None = None, reuse: bool | None = None
) -> tuple[RunDefinition, Document]:
    """Read and check a definition; returns it with the places of its parts.

    Args:
        source: YAML or JSON.
        inputs: values of its inputs; those left out take their defaults.
        reuse: for steps that don't say it; None: as the text says.

    Raises:
        InvalidArgument: reason ``INVALID_RUN``, with one violation a mistake: its path, its line and how to mend it.
    """
    document = read(source)
    return _Checker(document, dict(inputs or {}), reuse).definition(), document


class _Checker:
    def __init__(self, document: Document, inputs: dict[str, Any], reuse: bool | None) -> None:
        self._document = document
        self._mistakes = Mistakes(document)
        self._given = inputs
        self._reuse = reuse
        self._inputs: dict[str, Any] = {}
        self._steps: dict[str, dict[str, Any]] = {}

    def definition(self) -> RunDefinition:
        values = self._document.values
        if not isinstance(values, dict):
            self._mistakes.add("", f"a run is a mapping with `name` and `steps`; got {shown(values)}.")
            self._mistakes.refuse()
        self._known_keys(values, "", _TOP)
        name = self._name(values)
        reuse = self._flag(values, "reuse") if self._reuse is None else self._reuse
        self._read_inputs(values.get("inputs"))
        self._read_steps(values)
        steps = [self._step(step_id, bool(reuse)) for step_id in self._steps]
        self._check_graph(steps)
        self._check_gates(steps)
        self._mistakes.refuse()
        return RunDefinition(name, steps)

    # The parts

    def _name(self, values: Mapping[str, Any]) -> str:
        name = values.get("name")
        if not isinstance(name, str) or not name.strip() or len(name) > _MAX_NAME:
            text = f"must be text of 1 to {_MAX_NAME} characters; got {shown(name)}." if "name" in values else ""
            self._mistakes.add("name", f"`name` {text or 'is missing.'}")
            return ""
        return name

    def _flag(self, values: Mapping[str, Any], key: str, path: str = "") -> bool | None:
        value = values.get(key)
        if value is not None and not isinstance(value, bool):
            self._mistakes.add(f"{path}{key}", f"`{key}` must be true or false; got {shown(value)}.")
            return None
        return value

    def _read_inputs(self, declared: Any) -> None:
        if declared is not None and not isinstance(declared, dict):
            self._mistakes.add(INPUTS, f"`inputs` must be a mapping of names to defaults; got {shown(declared)}.")
        declared = declared if isinstance(declared, dict) else {}
        for name, default in declared.items():
            path = f"{INPUTS}.{name}"
            if not _INPUT_NAME.fullmatch(name):
                self._mistakes.add(path, f"`{name}` can't be an input's name: letters, digits and '_'.", of_key=True)
            if isinstance(default, dict):
                self._mistakes.add(path, "an input's default is a text, a number, true, false or a list of them.")
            value = self._given.get(name)
            self._inputs[name] = default if value is None else self._converted(name, value, default)
            if self._inputs[name] is None:
                text = f"the input `{name}` has no default, so a value must be given (`--input {name}=…`)."
                self._mistakes.add(path, text, of_key=True)
        for name in self._given:
            if name not in declared:
                hint = close_hint(name, list(declared)) or (
                    f" It takes: {', '.join(declared)}." if declared else " It takes none."
                )
                self._mistakes.add(INPUTS, f"the run has no input `{name}`.{hint}")

    def _converted(self, name: str, value: Any, default: Any) -> Any:
        """A given value as the default's type."""
        if isinstance(value, float) and value.is_integer() and not isinstance(default, float):
            value = int(value)
        if isinstance(default, str) and not isinstance(value, str | list | dict):
            return str(value).lower() if isinstance(value, bool) else str(value)
        if isinstance(default, bool | int | float) and isinstance(value, str):
            value = scalar(value)
        wanted = "true or false" if isinstance(default, bool) else "a number" if _is_number(default) else ""
        fits = isinstance(value, bool) if isinstance(default, bool) else _is_number(value)
        if wanted and not fits:
            self._mistakes.add(f"{INPUTS}.{name}", f"the input `{name}` is {wanted}; got {shown(value)}.")
        return value

    def _read_steps(self, values: Mapping[str, Any]) -> None:
        steps = values.get("steps")
        if not isinstance(steps, dict) or not steps:
            text = f"must be a mapping of step ids to steps; got {shown(steps)}." if "steps" in values else ""
            self._mistakes.add("steps", f"`steps` {text or 'is missing.'}")
            self._mistakes.refuse()
            return
        if len(steps) > MAX_STEPS:
            self._mistakes.add("steps", f"{len(steps)} steps; at most {MAX_STEPS} are allowed.")
        for step_id, step in steps.items():
            path = f"steps.{step_id}"
            if not _STEP_ID.fullmatch(step_id) or step_id in _RESERVED:
                better = re.sub(r"[^a-z0-9_]", "_", step_id.lower())
                hint = f" Write `{better}`." if _STEP_ID.fullmatch(better) and better not in _RESERVED else ""
                text = f"`{step_id}` can't be a step's id: 1 to 40 of a-z, 0-9 and '_', beginning with a letter.{hint}"
                self._mistakes.add(path, text, of_key=True)
            if not isinstance(step, dict):
                self._mistakes.add(path, f"a step is a mapping with `kind` and `with`; got {shown(step)}.")
            self._steps[step_id] = step if isinstance(step, dict) else {}

    def _step(self, step_id: str, reuse: bool) -> StepDefinition:
        raw, path = self._steps[step_id], f"steps.{step_id}"
        self._known_keys(raw, path, _STEP)
        kind = raw.get("kind")
        options = raw.get("with")
        if options is not None and not isinstance(options, dict):
            self._mistakes.add(f"{path}.with", f"`with` must be a mapping; got {shown(options)}.")
        options = options if isinstance(options, dict) else {}
        needs = self._named_needs(raw.get("needs"), path) | self._referenced(options, f"{path}.with")
        filled = self._with_inputs(options)
        own = self._flag(raw, "reuse", f"{path}.")
        known = KINDS.get(kind) if isinstance(kind, str) else None
        if known is None:
            hint = close_hint(str(kind), list(KINDS)) or f" Known: {', '.join(KINDS)}."
            text = f"`{kind}` is no kind of step.{hint}" if kind is not None else f"`kind` is missing.{hint}"
            self._mistakes.add(f"{path}.kind" if kind is not None else path, text)
        else:
            before = bool(self._mistakes)
            known.check(filled, f"{path}.with", self._mistakes)
            if not before or kind == GateStep.kind:
                needs |= dict.fromkeys(n for n in known.implied_needs(filled) if n in self._steps)
        return StepDefinition(step_id, str(kind), list(needs), filled, reuse if own is None else own)

    def _known_keys(self, values: Mapping[str, Any], path: str, known: Sequence[str]) -> None:
        for key in values:
            if key not in known:
                where = f"{path}.{key}" if path else key
                hint = close_hint(key, list(known)) or f" Known: {', '.join(known)}."
                self._mistakes.add(where, f"`{key}` is not known here.{hint}", of_key=True)

    # References

    def _named_needs(self, needs: Any, path: str) -> dict[str, None]:
        if needs is None:
            return {}
        if not isinstance(needs, list) or not all(isinstance(need, str) for need in needs):
            self._mistakes.add(f"{path}.needs", f"`needs` must be a list of step ids; got {shown(needs)}.")
            return {}
        for index, need in enumerate(needs):
            if need not in self._steps:
                self._mistakes.add(f"{path}.needs[{index}]", f"there is no step `{need}`.{self._step_hint(need)}")
        return dict.fromkeys(need for need in needs if need in self._steps)

    def _referenced(self, options: Mapping[str, Any], path: str) -> dict[str, None]:
        """The steps that options refer to; notes references that lead nowhere."""
        needs: dict[str, None] = {}
        for where, _, inner in references(dict(options), path):
            if not inner:
                self._mistakes.add(where, "`${` without its `}`; write `$${` for a plain `${`.")
            for text in inner:
                try:
                    reference = parse(text)
                except ReferenceTextError as error:
                    self._mistakes.add(where, str(error))
                    continue
                if self._leads_somewhere(reference, where) and reference.source != INPUTS:
                    needs[reference.source] = None
        return needs

    def _leads_somewhere(self, reference: Reference, where: str) -> bool:
        if reference.source == INPUTS:
            if reference.name in self._inputs:
                return True
            hint = close_hint(reference.name, list(self._inputs)) or " Declare it under `inputs`."
            self._mistakes.add(where, f"there is no input `{reference.name}`.{hint}")
            return False
        step = self._steps.get(reference.source)
        if step is None:
            self._mistakes.add(where, f"there is no step `{reference.source}`.{self._step_hint(reference.source)}")
            return False
        kind = KINDS.get(str(step.get("kind")))
        if kind is not None and reference.name not in kind.outputs:
            hint = close_hint(reference.name, list(kind.outputs))
            made = f"It has: {', '.join(kind.outputs)}." if kind.outputs else "It has none."
            text = f"a step of kind {kind.kind} has no output `{reference.name}`.{hint} {made}"
            self._mistakes.add(where, text)
        return True

    def _with_inputs(self, options: Mapping[str, Any]) -> dict[str, Any]:
        def find(reference: Reference) -> Any:
            value = self._inputs.get(reference.name) if reference.source == INPUTS else None
            return reference if value is None else value

        try:
            return {key: substitute(value, find, last=False) for key, value in options.items()}
        except ReferenceTextError:  # noted already
            return dict(options)

    def _step_hint(self, name: str) -> str:
        return close_hint(name, list(self._steps)) or f" The steps are: {', '.join(list(self._steps)[:20])}."

    # The whole

    def _check_graph(self, steps: Sequence[StepDefinition]) -> None:
        cycle = find_cycle({step.id: step.needs for step in steps})
        if cycle:
            text = f"steps need one another in a circle: {' -> '.join(cycle)}. Take one of these needs away."
            self._mistakes.add(f"steps.{cycle[0]}", text, of_key=True)

    def _check_gates(self, steps: Sequence[StepDefinition]) -> None:
        by_id = {step.id: step for step in steps}
        for step in steps:
            if step.kind != GateStep.kind:
                continue
            for index, text in enumerate(step.options.get("require") or []):
                where = f"steps.{step.id}.with.require[{index}]"
                for condition in conditions({"require": [text]}):
                    for name in condition.names:
                        other = by_id.get(name.step)
                        if other is None:
                            hint = self._step_hint(name.step)
                            self._mistakes.add(where, f"`{name}`: there is no step `{name.step}`.{hint}")
                            continue
                        kind = KINDS.get(other.kind)
                        known = kind.known_metrics if kind else None
                        if known is not None and not matching(name.metric, sorted(known)):
                            self._mistakes.add(where, unknown_metric(name, sorted(known)))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)

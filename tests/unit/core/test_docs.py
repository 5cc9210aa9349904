"""Pages that list what the code says: they must list all of it, and nothing else."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from martlet_core import errors
from martlet_core.job_rules import REASONS, TRANSITIONS
from martlet_core.jobs import JobState
from martlet_core.testing.conformance import CONTRACTS, Rule
from martlet_core.testing.conformance.job_rules import COMMON_TRIALS

ROOT = Path(__file__).parents[3]
DOCS = ROOT / "docs"
#: Made of a parameter's name.
COMPOSED = {"INVALID_TRAINING_FILE", "INVALID_VALIDATION_FILE"}
_REASON = re.compile(r"[A-Z][A-Z0-9]*(_[A-Z0-9]+)*")


def sources() -> list[ast.Module]:
    paths = [p for kind in ("libs", "services") for p in sorted((ROOT / kind).glob("*/src/*/**/*.py"))]
    ours = [p for p in paths if not {"martlet", "testing"} & {*p.parts, p.stem}]  # neither stubs nor doubles
    return [ast.parse(p.read_text()) for p in ours]


def words(node: ast.AST | None) -> Iterator[str]:
    """Reasons in a literal, or in the branches of a conditional expression."""
    if isinstance(node, ast.IfExp):
        yield from words(node.body)
        yield from words(node.orelse)
    elif isinstance(node, ast.Constant) and isinstance(node.value, str) and _REASON.fullmatch(node.value):
        yield node.value


def constants(modules: list[ast.Module]) -> Mapping[str, str]:
    """Module-level names of text, such as ``TOO_LARGE``."""
    return {
        target.id: statement.value.value
        for module in modules
        for statement in module.body
        if isinstance(statement, ast.Assign) and isinstance(statement.value, ast.Constant)
        for target in statement.targets
        if isinstance(target, ast.Name) and isinstance(statement.value.value, str)
    }


def raised(call: ast.Call) -> str:
    """The error's class that a call makes; empty when it calls something else."""
    function = call.func
    if isinstance(function, ast.Attribute) and function.attr == "field":  # InvalidArgument.field
        function = function.value
    name = function.id if isinstance(function, ast.Name) else ""
    return name if isinstance(getattr(errors, name, None), type) else ""


def reasons_in_code() -> Mapping[str, set[str]]:
    """Reason -> classes of the errors that carry it, as far as they can be told."""
    modules = sources()
    named = constants(modules)
    found: dict[str, set[str]] = defaultdict(set)
    for error in (errors.MartletError, errors.LeaseLost, *errors.ERRORS_BY_CODE.values()):
        found[error.default_reason].add(error.__name__)
    for module in modules:
        functions = {n.name: n for n in ast.walk(module) if isinstance(n, ast.FunctionDef)}
        with_reason = {
            name: [a.arg for a in function.args.args].index("reason")
            for name, function in functions.items()
            if "reason" in [a.arg for a in function.args.args]
        }
        for node in ast.walk(module):
            if isinstance(node, ast.Call):
                for keyword in node.keywords:
                    value = keyword.value
                    if isinstance(value, ast.Name) and value.id in named:
                        value = ast.Constant(named[value.id])
                    for word in words(value) if keyword.arg == "reason" else ():
                        found[word] |= {raised(node)} - {""}
                place = with_reason.get(node.func.id, -1) if isinstance(node.func, ast.Name) else -1
                for word in words(node.args[place] if 0 <= place < len(node.args) else None):
                    found[word] |= set()
            elif isinstance(node, ast.Assign) and any(
                isinstance(t, ast.Name) and t.id == "reason" for t in node.targets
            ):
                for word in words(node.value):
                    found[word] |= set()
            elif isinstance(node, ast.FunctionDef) and node.name in with_reason:
                for default in node.args.defaults:
                    for word in words(default):
                        found[word] |= set()
            elif isinstance(node, ast.Dict):
                for key, value in zip(node.keys, node.values, strict=True):
                    if isinstance(key, ast.Constant) and key.value == "reason":
                        for word in words(value):
                            found[word] |= set()
    return found


def table(page: str, heading: str) -> list[list[str]]:
    """Rows of the first table behind a heading, without its header."""
    lines = (DOCS / page).read_text().split(f"## {heading}\n", 1)[1].splitlines()
    rows = []
    for line in lines:
        if line.startswith("|"):
            rows.append([cell.strip() for cell in line.strip("|").split("|")])
        elif rows:
            break
    return rows[2:]


def test_every_reason_is_described() -> None:
    described = {row[0].strip("`"): set(row[1].split(", ")) for row in table("errors.md", "Reasons")}
    found = reasons_in_code()
    assert set(found) - set(described) == set(), "add them to docs/errors.md"
    assert set(described) - set(found) - COMPOSED == set(), "nothing in the code says these: take them out"
    wrong = {reason: classes for reason, classes in found.items() if not classes <= described[reason]}
    assert wrong == {}, "docs/errors.md names other errors for them"
    assert list(described) == sorted(described)


def test_every_reason_of_a_state_change_is_described() -> None:
    assert {row[0].strip("`"): row[1] for row in table("errors.md", "Why a job's state changed")} == dict(REASONS)


def test_every_transition_is_described() -> None:
    expected: dict[str, set[str]] = defaultdict(set)
    for moves in TRANSITIONS.values():
        for before, move in moves.items():
            if move.to is not before:
                expected[before.value].add(move.to.value)
    rows = table("life-of-a-job.md", "States")
    described = {state: set(row[1].split(", ")) - {"nothing"} for row in rows for state in row[0].split(", ")}
    assert described == {state.value: expected[state.value] for state in JobState}


def _described_rules(heading: str) -> dict[str, str]:
    return {row[0].strip("`"): row[1] for row in table("conformance.md", heading)}


#: What stands on the page for the words of a kind.
_ANY_KIND = {
    "noun": "…Job",
    "service": "the service",
    "collection": "…Jobs",
    "success": "A sound, small job that is let run ends SUCCEEDED with what its kind promises; "
    "`--list` has the words of each kind.",
}


def test_every_rule_of_jobs_is_described() -> None:
    rules = [Rule.of(trial, **_ANY_KIND) for trial in COMMON_TRIALS]
    assert _described_rules("Rules of every kind of job") == {rule.name: rule.sentence for rule in rules}


@pytest.mark.parametrize("contract", CONTRACTS)
def test_every_rule_of_one_contract_is_described(contract: str) -> None:
    common = {trial.__name__ for trial in COMMON_TRIALS} if contract != "inference" else set()
    own = [rule for rule in CONTRACTS[contract].rules if rule.name.removeprefix("merge_") not in common]
    heading = "Rules of inference" if contract == "inference" else f"Rules of the {contract} alone"
    assert _described_rules(heading) == {rule.name: rule.sentence for rule in own}


@pytest.mark.parametrize("contract", CONTRACTS)
def test_every_rule_is_one_sentence_and_has_a_name_of_its_own(contract: str) -> None:
    rules = CONTRACTS[contract].rules
    assert len({rule.name for rule in rules}) == len(rules)
    for rule in rules:
        assert re.fullmatch(r"[A-Z][^{}]*(\{id\}[^{}]*)?[.]", rule.sentence), rule
        assert not re.search(r"[.] [A-Z]", rule.sentence), f"{rule.name} is more than one sentence"

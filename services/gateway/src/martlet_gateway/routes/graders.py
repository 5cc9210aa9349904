"""/v1/fine_tuning/alpha/graders: tries a grader that is to be a training's reward."""

from __future__ import annotations

import time
from typing import Any

from fastapi import APIRouter
from martlet_core.errors import InvalidArgument
from martlet_core.reward_graders import reward_grader_violations, reward_of

from martlet_gateway.context import Json
from martlet_gateway.schemas import RunGrader, ValidateGrader

router = APIRouter(prefix="/v1/fine_tuning/alpha/graders", tags=["fine-tuning"])

#: OpenAI's flags of what may go wrong; all but two are about graders that aren't offered.
_FLAGS = (
    "formula_parse_error",
    "invalid_variable_error",
    "model_grader_parse_error",
    "model_grader_refusal_error",
    "model_grader_server_error",
    "other_error",
    "python_grader_runtime_error",
    "python_grader_server_error",
    "sample_parse_error",
    "truncated_observation_error",
    "unresponsive_reward_error",
)


@router.post("/validate")
async def validate_grader(body: ValidateGrader) -> Json:
    """The grader, if a training takes it as its reward."""
    _require_good(body.grader)
    return Json({"grader": body.grader})


@router.post("/run")
async def run_grader(body: RunGrader) -> Json:
    """What an answer is worth by a grader."""
    _require_good(body.grader)
    begun = time.perf_counter()
    reward, error = reward_of(body.grader, body.item, body.model_sample)
    seconds = time.perf_counter() - begun
    parts = body.grader.get("graders", {})
    scores = {name: reward_of(part, body.item, body.model_sample)[0] for name, part in parts.items()}
    errors: dict[str, Any] = {**dict.fromkeys(_FLAGS, False), **_fault(error)}
    metadata = {
        "name": body.grader["name"],
        "type": body.grader["type"],
        "errors": {
            **errors,
            "model_grader_server_error_details": None,
            "python_grader_runtime_error_details": None,
            "python_grader_server_error_type": None,
        },
        "execution_time": seconds,
        "scores": scores,
        "token_usage": None,
        "sampled_model_name": None,
    }
    answer = {"reward": reward, "sub_rewards": scores, "metadata": metadata}
    return Json({**answer, "model_grader_token_usage_per_model": {}})


def _require_good(grader: dict[str, Any]) -> None:
    if found := reward_grader_violations(grader, "grader"):
        raise InvalidArgument("; ".join(f"{v.field}: {v.description}" for v in found), violations=found)


def _fault(error: str) -> dict[str, bool]:
    """The flag of why there is no score: a template names what isn't there, or something else."""
    return {("invalid_variable_error" if "{{" in error else "other_error"): True} if error else {}

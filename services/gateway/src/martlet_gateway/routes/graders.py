"""/v1/fine_tuning/alpha/graders: tries a grader that is to be a training's reward."""

from __future__ import annotations

import json
import time
from typing import Any

from fastapi import APIRouter
from martlet.inference.v1 import inference_pb2
from martlet_core.errors import InvalidArgument, MartletError
from martlet_core.graders import below
from martlet_core.reward_graders import judges_of, reward_grader_violations, reward_of, reward_requests
from martlet_core.rpc.context import call_context

from martlet_gateway.context import Gateway, GatewayContext, Json
from martlet_gateway.schemas import RunGrader, ValidateGrader

router = APIRouter(prefix="/v1/fine_tuning/alpha/graders", tags=["fine-tuning"])

#: Of judges whose ``sampling_params`` name none.
_SEED = 42
_SHOWN_CHARACTERS = 500
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
async def run_grader(body: RunGrader, gateway: Gateway) -> Json:
    """What an answer is worth by a grader; the models that it names are asked as the caller."""
    _require_good(body.grader)
    begun = time.perf_counter()
    said, refused = await _said(gateway, body)
    graded = (body.item, body.model_sample)
    reward, error = (0.0, "") if refused else reward_of(body.grader, *graded, said)
    seconds = time.perf_counter() - begun
    parts = {} if refused else body.grader.get("graders", {})
    scores = {name: reward_of(part, *graded, below(said, name))[0] for name, part in parts.items()}
    fault = {"model_grader_server_error": True} if refused else _fault(error)
    errors: dict[str, Any] = {**dict.fromkeys(_FLAGS, False), **fault}
    metadata = {
        "name": body.grader["name"],
        "type": body.grader["type"],
        "errors": {
            **errors,
            "model_grader_server_error_details": refused or None,
            "python_grader_runtime_error_details": None,
            "python_grader_server_error_type": None,
        },
        "execution_time": seconds,
        "scores": scores,
        "token_usage": None,
        "sampled_model_name": next(iter(judges_of(body.grader)), None),
    }
    answer = {"reward": reward, "sub_rewards": scores, "metadata": metadata}
    return Json({**answer, "model_grader_token_usage_per_model": {}})


async def _said(gateway: GatewayContext, body: RunGrader) -> tuple[dict[str, str], str]:
    """What models said of the answer, by the keys of ``reward_of``; or why one said nothing."""
    try:
        requests = reward_requests(body.grader, body.item, body.model_sample)
    except InvalidArgument:
        return {}, ""  # the answer lacks what a template names: ``reward_of`` says so
    said: dict[str, str] = {}
    for key, request in requests.items():
        fields = {"model": request.model, "messages": list(request.messages), **request.drawn_with(_SEED)}
        call = inference_pb2.CallOpenAIRequest(
            route=inference_pb2.OPEN_AI_ROUTE_CHAT_COMPLETIONS, model=request.model, body=json.dumps(fields).encode()
        )
        try:
            caller = call_context()
            answer = await gateway.router.whole(call, tenant=caller.tenant, request_id=caller.request_id)
            if (answer.http_status or 200) != 200:
                return {}, answer.data.decode(errors="replace")[:_SHOWN_CHARACTERS]
            said[key] = str(json.loads(answer.data)["choices"][0]["message"]["content"] or "")
        except (MartletError, ValueError, KeyError, IndexError, TypeError) as error:
            return {}, f"{request.model}: {error}"
    return said, ""


def _require_good(grader: dict[str, Any]) -> None:
    if found := reward_grader_violations(grader, "grader"):
        raise InvalidArgument("; ".join(f"{v.field}: {v.description}" for v in found), violations=found)


def _fault(error: str) -> dict[str, bool]:
    """The flag of why there is no score: a template names what isn't there, a judge gave no number, or something else."""
    if not error:
        return {}
    if "the model answered" in error:
        return {"model_grader_parse_error": True}
    return {("invalid_variable_error" if "{{" in error else "other_error"): True}

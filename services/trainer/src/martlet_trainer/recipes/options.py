"""Options that only one recipe knows (``recipe_options``); a key that isn't here is refused. Imports no ML library."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt, Le, Lt
from martlet_core.config import MODEL_FORMS, MODEL_PATTERN, Config, Float, Int
from martlet_core.graders import whole_numbers
from martlet_core.reward_graders import reward_grader_violations
from martlet_inputs.rows.labelled import MAX_CLASSES
from pydantic import AfterValidator, Field, model_validator

#: Width of the loss's slope, or weight of what it adds.
_Positive = Annotated[Float, Gt(0), Le(1000)]
_Weight = Annotated[Float, Ge(0), Le(1000)]


_RewardWeight = Annotated[Float, Ge(-1000), Le(1000)]
_Share = Annotated[Float, Ge(0), Le(1)]
_Temperature = Annotated[Float, Gt(0), Le(10)]
_AnswerTokens = Annotated[Int, Ge(1), Le(1 << 17)]


def _named_model(name: str) -> str:
    if not MODEL_PATTERN.fullmatch(name):
        raise ValueError(f"is {name!r}; give {MODEL_FORMS}")
    return name


def _reward_grader(values: Mapping[str, Any]) -> Mapping[str, Any]:
    grader = whole_numbers(values)
    if found := reward_grader_violations(grader, "grader"):
        raise ValueError("; ".join(f"{v.field}: {v.description}" for v in found))
    return grader


class SftOptions(Config):
    """``sft``: none."""


class PretrainOptions(Config):
    """``pretrain``: none."""


class DpoOptions(Config):
    """``dpo`` (arXiv 2305.18290)."""

    beta: _Positive = Field(
        default=0.1, description="How far the model may move from where it starts; less moves it further."
    )
    loss: Literal["sigmoid", "hinge", "ipo"] = Field(
        default="sigmoid", description="sigmoid (DPO), hinge (SLiC, arXiv 2305.10425) or ipo (arXiv 2310.12036)."
    )
    label_smoothing: Annotated[Float, Ge(0), Le(0.49)] = Field(
        default=0.0, description="Share of pairs that are believed to be the wrong way round; sigmoid only."
    )
    sft_weight: _Weight = Field(
        default=0.0, description="Weight of the chosen answer's own loss, for each token (RPO, arXiv 2404.19733)."
    )


class OrpoOptions(Config):
    """``orpo`` (arXiv 2403.07691)."""

    beta: _Positive = Field(default=0.1, description="Weight of the odds ratio beside the chosen answer's own loss.")


class CpoOptions(Config):
    """``cpo`` (arXiv 2401.08417)."""

    beta: _Positive = Field(default=0.1, description="As of dpo.")
    sft_weight: _Weight = Field(default=1.0, description="Weight of the chosen answer's own loss, for each token.")


class SimpoOptions(Config):
    """``simpo`` (arXiv 2405.14734)."""

    beta: _Positive = Field(default=2.0, description="Scale of the mean log-probability of an answer's tokens.")
    margin: _Weight = Field(
        default=1.0, description="By how much the chosen answer is to be ahead (the paper's gamma)."
    )
    sft_weight: _Weight = Field(default=0.0, description="Weight of the chosen answer's own loss (CPO-SimPO).")


class KtoOptions(Config):
    """``kto`` (arXiv 2402.01306)."""

    beta: _Positive = Field(default=0.1, description="As of dpo.")
    desirable_weight: _Positive = Field(default=1.0, description="Weight of good answers.")
    undesirable_weight: _Positive = Field(default=1.0, description="Weight of bad answers.")


class RewardOptions(Config):
    """One reward of ``grpo`` or ``rloo``."""

    name: Literal["accuracy", "format", "regex", "length"] = Field(
        description="accuracy (against the row's `solution`), format (<think> and <answer>), regex, length."
    )
    weight: _RewardWeight = 1.0
    pattern: str | None = Field(default=None, description="Of regex: what must be found in the answer.")
    target: Annotated[Int, Ge(1), Le(1 << 20)] | None = Field(
        default=None, description="Of length: tokens of an answer."
    )

    @model_validator(mode="after")
    def _has_what_it_needs(self) -> RewardOptions:
        for name, field in (("regex", "pattern"), ("length", "target")):
            if (getattr(self, field) is None) == (self.name == name):
                raise ValueError(f"{field} belongs to {name}" if self.name != name else f"{name} needs {field}")
        if self.pattern is not None:
            try:
                re.compile(self.pattern)
            except re.error as error:
                raise ValueError(f"pattern is no regular expression: {error}") from error
        return self


class RewardServiceOptions(Config):
    """A reward that a service gives, by HTTP (``url``) or gRPC (``address``, ``martlet.trainer.v1.RewardService``)."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")] = Field(description="As metrics have it.")
    url: Annotated[str, Field(pattern=r"^https?://[^\s/@]+(/\S*)?$", max_length=2048)] | None = Field(
        default=None, description="Gets a POST of JSON: prompts, completions, rows; answers with rewards."
    )
    address: Annotated[str, Field(pattern=r"^[A-Za-z0-9._\[\]:-]+:\d{1,5}$", max_length=256)] | None = Field(
        default=None, description="host:port; without TLS."
    )
    weight: _RewardWeight = 1.0
    timeout_seconds: Annotated[Float, Gt(0), Le(3600)] = Field(default=60.0, description="Of one call.")

    @model_validator(mode="after")
    def _has_one_place(self) -> RewardServiceOptions:
        if (self.url is None) == (self.address is None):
            raise ValueError("give url (HTTP) or address (gRPC), one of them")
        return self

    @property
    def where(self) -> str:
        """Its url or its address."""
        return self.url or self.address or ""


class AnswersOptions(Config):
    """Where the answers of the model that is trained are drawn (``rollouts``)."""

    via: Literal["training", "inference"] = Field(
        default="training",
        description="training: in the training's own process; inference: by replicas, through the gateway, which are given the adapter as it is"
        " (plain LoRA alone).",
    )
    sync_steps: Annotated[Int, Ge(1), Le(1000)] = Field(
        default=1, description="Of inference: optimizer steps that replicas answer by the same adapter."
    )

    @model_validator(mode="after")
    def _inference_has_fields_of_its_own(self) -> AnswersOptions:
        for name in sorted(self.model_fields_set - {"via"}):
            if self.via != "inference":
                raise ValueError(f"{name} is for via inference; leave it out, or set via")
        return self


class RolloutsOptions(AnswersOptions):
    """The same of recipes that learn from rewards."""

    epsilon: Annotated[Float, Gt(0), Lt(1)] = Field(
        default=0.2,
        description="Of inference: how far a token's probability may move from that with which a replica drew it, before it teaches no more.",
    )


class RolloutOptions(Config):
    """What recipes share that learn from the model's own answers."""

    rewards: tuple[RewardOptions, ...] = Field(
        default=(),
        description="Their weighted sum, with that of the services, is the reward; accuracy if there are none.",
    )
    reward_services: tuple[RewardServiceOptions, ...] = Field(default=(), max_length=16)
    graders: tuple[Annotated[dict[str, Any], AfterValidator(_reward_grader)], ...] = Field(
        default=(),
        max_length=16,
        description="OpenAI's graders (string_check, text_similarity, score_model, multi), weight 1 each.",
    )
    num_generations: Annotated[Int, Ge(2), Le(256)] = Field(default=8, description="Answers to each question.")
    max_completion_length: _AnswerTokens = Field(default=256, description="Tokens of an answer.")
    temperature: _Temperature = 0.9
    rollouts: RolloutsOptions = Field(default_factory=RolloutsOptions)
    beta: _Weight = Field(default=0.0, description="Weight of the divergence from the base model (adapters only).")

    @model_validator(mode="before")
    @classmethod
    def _accuracy_by_default(cls, values: Mapping[str, Any]) -> Mapping[str, Any]:
        others = ("reward_services", "graders")
        if values.get("rewards") is not None or any(values.get(name) for name in others):
            return values
        return {**values, "rewards": [{"name": "accuracy"}]}

    @model_validator(mode="after")
    def _each_reward_once(self) -> RolloutOptions:
        names = [reward.name for reward in (*self.rewards, *self.reward_services)]
        names += [grader["name"] for grader in self.graders]
        if len(set(names)) < len(names):
            raise ValueError("rewards: each name may be given once; join patterns of regex with |")
        if not names:
            raise ValueError("rewards: is empty; give one, a service in reward_services, or a grader in graders")
        return self


class GrpoOptions(RolloutOptions):
    """``grpo`` (arXiv 2402.03300)."""

    scale_rewards: bool = Field(
        default=True, description="Divide by the answers' spread; false is Dr. GRPO's (arXiv 2503.20783)."
    )


class RlooOptions(RolloutOptions):
    """``rloo`` (arXiv 2402.14740)."""


class DistillOptions(Config):
    """``distill``: generalized knowledge distillation (GKD, arXiv 2306.13649); names as in TRL's ``GKDConfig``."""

    teacher_model: Annotated[str, AfterValidator(_named_model)] = Field(
        description=f"Whom the model learns from: {MODEL_FORMS}. It must have the base model's vocabulary."
    )
    beta: _Share = Field(
        default=0.5,
        description="Of the generalized Jensen-Shannon divergence: 0 is the forward KL, 1 the reverse.",
    )
    lmbda: _Share = Field(default=0.5, description="Share of batches whose answers the model that is trained draws.")
    seq_kd: bool = Field(
        default=False, description="The teacher draws the answers of the other batches; else the rows'."
    )
    temperature: _Temperature = Field(default=0.9, description="Of drawing answers; the divergence is at 1.")
    max_completion_length: _AnswerTokens = Field(default=256, description="Tokens of an answer that is drawn.")
    rollouts: AnswersOptions = Field(default_factory=AnswersOptions)

    @property
    def draws_all(self) -> bool:
        """Whether the rows' own answers are never trained on."""
        return self.seq_kd or self.lmbda == 1.0


class LabelOptions(Config):
    """What recipes share whose models name classes."""

    labels: tuple[str, ...] = Field(
        default=(), description="Names of the classes, in order; rows may name them by their place, counted from 0."
    )
    num_labels: Annotated[Int, Ge(1), Le(MAX_CLASSES)] | None = Field(
        default=None, description="How many there are, or numbers in a regression. Default: as many as the rows have."
    )

    @model_validator(mode="after")
    def _names_are_distinct(self) -> LabelOptions:
        if len(set(self.labels)) < len(self.labels) or not all(self.labels):
            raise ValueError("labels: each must be a name of its own")
        if self.labels and self.num_labels not in (None, len(self.labels)):
            raise ValueError(f"num_labels: is {self.num_labels}, but labels has {len(self.labels)}; leave one out")
        return self


class SequenceClassificationOptions(LabelOptions):
    """``sequence_classification``."""

    problem_type: Literal["single_label_classification", "multi_label_classification", "regression"] = Field(
        default="single_label_classification", description="One class a row, several, or numbers; transformers' names."
    )

    @model_validator(mode="after")
    def _numbers_have_no_names(self) -> SequenceClassificationOptions:
        if self.problem_type == "regression" and self.labels:
            raise ValueError("labels: a regression has none; leave them out")
        return self


class TokenClassificationOptions(LabelOptions):
    """``token_classification``."""


class RewardModelOptions(Config):
    """``reward`` (the reward model of arXiv 2203.02155)."""

    center_rewards_coefficient: _Weight = Field(
        default=0.0,
        description="Weight of the squared sum of a pair's rewards, which keeps them near 0 (arXiv 2312.09244).",
    )


class EmbeddingOptions(Config):
    """``embedding``."""

    loss: Literal["infonce", "cosine_similarity", "contrastive"] = Field(
        default="infonce",
        description="infonce (arXiv 1807.03748; the batch's other texts are negatives), cosine_similarity (squared error), or contrastive"
        " (Hadsell et al. 2006).",
    )
    pooling: Literal["auto", "mean", "last", "cls"] = Field(
        default="auto", description="auto: the base model's own, else mean for encoders and last for decoders."
    )
    temperature: Annotated[Float, Gt(0), Le(10)] = Field(default=0.05, description="Of infonce.")
    margin: Annotated[Float, Gt(0), Le(2)] = Field(
        default=0.5, description="Of contrastive: cosine distance from which texts are far enough apart."
    )


class RerankerOptions(Config):
    """``reranker``."""

    loss: Literal["pointwise", "listwise"] = Field(
        default="pointwise",
        description="pointwise: each document is relevant or not; listwise: the relevant one among the row's others.",
    )

"""Training algorithms: one file a recipe, which holds its ``METHOD``; ``training.run`` runs them all. Imports no ML library."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from martlet_core.config import Config
from martlet_inputs.rows.exchanges import EXCHANGES
from martlet_inputs.rows.kinds import CONVERSATIONS, RowKind
from martlet_inputs.rows.labelled import LABELLED, TAGGED
from martlet_inputs.rows.preferences import FEEDBACK, PREFERENCES
from martlet_inputs.rows.prompts import PROMPTS
from martlet_inputs.rows.ranking import EMBEDDING_PAIRS, RERANKING
from martlet_inputs.rows.texts import TEXTS

from martlet_trainer.recipes import options

_GENTLE = {"adapter": 5e-5, "full": 1e-6}

#: What a model ends in, by the name of transformers' auto class.
Task = Literal["causal_lm", "sequence_classification", "token_classification", "embedding"]


@dataclass(frozen=True)
class RecipeInfo:
    """What is known of a recipe without its libraries.

    Attributes:
        module: where its ``METHOD`` is.
        options: what ``recipe_options`` may hold.
        rows: what its data sets are made of; where its options decide that, a function of them.
        learning_rates: default peak learning rate for LoRA (``adapter``) and for whole models (``full``), which take far smaller steps.
        packs: whether several rows may share a sequence.
        chooses_targets: whether ``data.assistant_only_loss`` and ``last_round_only`` have a meaning.
        cuts: whether a row that is too long may be cut; where not, it is refused whatever ``data.on_long_rows`` says.
        generates: whether it trains on answers that the model makes meanwhile.
        task: what its models end in.
    """

    module: str
    options: type[Config]
    rows: RowKind[Any] | Callable[[Any], RowKind[Any]]
    learning_rates: Mapping[str, float]
    packs: bool = False
    chooses_targets: bool = False
    cuts: bool = True
    generates: bool = False
    task: Task = "causal_lm"

    def row_kind(self, recipe_options: Config) -> RowKind[Any]:
        """What the data sets of a training with these options are made of."""
        return self.rows if isinstance(self.rows, RowKind) else self.rows(recipe_options)


_SUPERVISED = {"adapter": 2e-4, "full": 1e-5}
_HEADED = {"adapter": 2e-4, "full": 2e-5}

#: Recipe by name. To add one: its file, its options and a line here.
RECIPES: Mapping[str, RecipeInfo] = {
    "sft": RecipeInfo(
        "martlet_trainer.recipes.sft", options.SftOptions, CONVERSATIONS, _SUPERVISED, packs=True, chooses_targets=True
    ),
    "pretrain": RecipeInfo("martlet_trainer.recipes.pretrain", options.PretrainOptions, TEXTS, _SUPERVISED, packs=True),
    "dpo": RecipeInfo("martlet_trainer.recipes.dpo", options.DpoOptions, PREFERENCES, _GENTLE),
    "orpo": RecipeInfo("martlet_trainer.recipes.orpo", options.OrpoOptions, PREFERENCES, _GENTLE),
    "cpo": RecipeInfo("martlet_trainer.recipes.cpo", options.CpoOptions, PREFERENCES, _GENTLE),
    "simpo": RecipeInfo("martlet_trainer.recipes.simpo", options.SimpoOptions, PREFERENCES, _GENTLE),
    "grpo": RecipeInfo(
        "martlet_trainer.recipes.grpo", options.GrpoOptions, PROMPTS, _GENTLE, cuts=False, generates=True
    ),
    "rloo": RecipeInfo(
        "martlet_trainer.recipes.rloo", options.RlooOptions, PROMPTS, _GENTLE, cuts=False, generates=True
    ),
    "distill": RecipeInfo(
        "martlet_trainer.recipes.distill", options.DistillOptions, EXCHANGES, _SUPERVISED, generates=True
    ),
    "kto": RecipeInfo("martlet_trainer.recipes.kto", options.KtoOptions, FEEDBACK, _GENTLE),
    "sequence_classification": RecipeInfo(
        "martlet_trainer.recipes.sequence_classification",
        options.SequenceClassificationOptions,
        lambda chosen: LABELLED[chosen.problem_type],
        _HEADED,
        task="sequence_classification",
    ),
    "reward": RecipeInfo(
        "martlet_trainer.recipes.reward",
        options.RewardModelOptions,
        PREFERENCES,
        _HEADED,
        task="sequence_classification",
    ),
    "embedding": RecipeInfo(
        "martlet_trainer.recipes.embedding",
        options.EmbeddingOptions,
        lambda chosen: EMBEDDING_PAIRS[chosen.loss],
        _HEADED,
        task="embedding",
    ),
    "reranker": RecipeInfo(
        "martlet_trainer.recipes.reranker",
        options.RerankerOptions,
        RERANKING,
        _HEADED,
        task="sequence_classification",
    ),
    "token_classification": RecipeInfo(
        "martlet_trainer.recipes.token_classification",
        options.TokenClassificationOptions,
        TAGGED,
        _HEADED,
        task="token_classification",
    ),
}

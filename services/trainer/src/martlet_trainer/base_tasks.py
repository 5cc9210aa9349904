"""Which base models a recipe can train, by what they end in. Imports no ML library: ``serve`` asks it at submission, and the worker once
more, for models that only it could fetch.
"""

from __future__ import annotations

from martlet_core.errors import InvalidArgument
from martlet_inputs.base_models.model_files import ModelFiles

from martlet_trainer.config import TrainingConfig
from martlet_trainer.recipes import RECIPES

#: Types of models that read a text in both directions and write none, by ``model_type`` of config.json.
ENCODERS = frozenset(
    {
        *(
            "albert",
            "bert",
            "camembert",
            "deberta",
            "deberta-v2",
            "distilbert",
            "electra",
            "ernie",
            "eurobert",
            "flaubert",
        ),
        *("modernbert", "mpnet", "nomic_bert", "roberta", "roformer", "xlm", "xlm-roberta", "xlm-roberta-xl", "xmod"),
    }
)
#: Ends of ``architectures`` of models without a head that writes.
_SILENT = ("ForSequenceClassification", "ForTokenClassification", "ForQuestionAnswering", "ForMaskedLM")
_OTHER_HEAD = "BASE_HAS_OTHER_HEAD"


def is_encoder(config: object) -> bool:
    """Whether a config.json is an encoder's; some of their families have decoders too, which say so."""
    if not isinstance(config, dict) or config.get("model_type") not in ENCODERS:
        return False
    return not (config.get("is_decoder") or config.get("causal"))


def check_base_task(config: TrainingConfig, base: ModelFiles) -> None:
    """Refuse a recipe whose models write text on a base model that writes none, and a new head on a quantized one.

    Raises:
        InvalidArgument: with what to do instead.
    """
    if RECIPES[config.recipe].task != "causal_lm":
        if base.quantization is not None:
            raise InvalidArgument.field(
                "spec.base_model",
                f"is quantized by {base.quantization}, on which recipe {config.recipe} can't put a head; train"
                f" {base.made_from or 'the model that it was made from'} with tuner.kind qlora",
                reason=_OTHER_HEAD,
            )
        return
    architecture = str((base.config.get("architectures") or [""])[0])
    headless = architecture.endswith("Model") and not architecture.endswith("LMHeadModel")
    if is_encoder(base.config) or architecture.endswith(_SILENT) or (headless and "modules.json" in base.names):
        what = architecture or str(base.config["model_type"])
        raise InvalidArgument.field(
            "spec.base_model",
            f"is a {what}, which writes no text, and recipe {config.recipe} trains models that do; choose one of the recipes"
            f" {', '.join(_headed())}, or a model that writes",
            reason=_OTHER_HEAD,
        )


def check_adapter_task(config: TrainingConfig, task: str | None) -> None:
    """Refuse to go on with an adapter by a recipe whose models end in something else.

    Args:
        config: what was asked for.
        task: of the adapter: the recipe that made it, where its models end in a head.

    Raises:
        InvalidArgument: with what to do instead.
    """
    wanted = config.recipe if RECIPES[config.recipe].task != "causal_lm" else None
    if (task or None) != wanted:
        what = f"is an adapter of recipe {task}" if task else "is an adapter of a model that writes text"
        raise InvalidArgument.field(
            "spec.base_model",
            f"{what}, and recipe {config.recipe} trains other heads; go on with the same recipe, or train its base model",
            reason=_OTHER_HEAD,
        )


def _headed() -> list[str]:
    return [name for name, info in RECIPES.items() if info.task != "causal_lm"]

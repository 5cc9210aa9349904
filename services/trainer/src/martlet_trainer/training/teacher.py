"""Loads the model that another one learns from."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from martlet_core.errors import InvalidArgument
from martlet_inputs.base_models.model_files import files_in
from martlet_inputs.base_models.vocabulary import require_same
from peft import PeftModel
from transformers import PreTrainedTokenizerBase

from martlet_trainer.data.encode import EncodedRow
from martlet_trainer.quantized_bases import check_readable
from martlet_trainer.training.computation import choose_computation
from martlet_trainer.training.devices import Placement
from martlet_trainer.training.distillation import Teacher
from martlet_trainer.training.models import context_length, load_model, load_tokenizer
from martlet_trainer.training.sampling import Sampler
from martlet_trainer.tuners.bottleneck import load_bottlenecks
from martlet_trainer.tuners.continued import own_adapter_config

_FIELD = "spec.recipe_options.teacher_model"


def load_teacher(
    given: Path,
    tokenizer: PreTrainedTokenizerBase,
    placement: Placement,
    rows: Sequence[EncodedRow],
    max_tokens: int,
    temperature: float,
) -> Teacher:
    """A frozen teacher.

    Args:
        given: directory with ``teacher_model``, and ``teacher_adapter`` where the teacher is an adapter on that.
        tokenizer: of the model that learns.
        placement: device and arithmetic.
        rows: some rows, to try its computation with.
        max_tokens: longest answer that it may draw.
        temperature: of drawing.

    Raises:
        InvalidArgument: it can't be loaded, or has another vocabulary than the model that learns, or a shorter context than the rows.
        FailedPrecondition: it is quantized in a way that can't be read here.
    """
    directory, adapter = given / "teacher_model", given / "teacher_adapter"
    require_same(tokenizer.get_vocab(), load_tokenizer(directory, _FIELD).get_vocab(), _FIELD)
    check_readable(_FIELD, files_in(directory, _FIELD))
    context, longest = context_length(directory, tokenizer), max(row.token_count for row in rows)
    if context < longest:
        raise InvalidArgument.field(
            _FIELD, f"has a context of {context} tokens, and a row has {longest}; set data.max_length to {context}"
        )
    model = load_model(directory, placement.dtype, placement.device, field=_FIELD)
    if adapter.is_dir():
        try:
            if own_adapter_config(adapter):
                model = load_bottlenecks(model, adapter)
            else:
                model = PeftModel.from_pretrained(model, str(adapter)).merge_and_unload()
        except (ValueError, RuntimeError, KeyError, TypeError) as error:
            raise InvalidArgument.field(_FIELD, f"its adapter can't be loaded: {error}") from error
    model.requires_grad_(False)
    model.eval()
    attention = model.config._attn_implementation
    computation = choose_computation(model, rows, placement.device, packing=False)
    return Teacher(Sampler(model, tokenizer, attention, max_tokens, temperature), computation)

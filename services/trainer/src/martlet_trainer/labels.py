"""The classes that a classifier knows: as the request names them, else as the training rows do. Imports no ML library."""

from __future__ import annotations

from collections.abc import Mapping

from martlet_core.errors import InvalidArgument
from martlet_inputs.rows.report import DataReport

from martlet_trainer.config import TrainingConfig, parse_recipe_options
from martlet_trainer.recipes.options import LabelOptions, SequenceClassificationOptions

_TRAINING = "spec.training_dataset"


def label_names(config: TrainingConfig, reports: Mapping[str, DataReport]) -> tuple[str, ...]:
    """Names of the classes, in the order of their numbers; of a regression, a name for each number.

    Classes that the rows give as numbers are called by these, from 0 to the highest; names are sorted.

    Args:
        config: what was asked for.
        reports: of each data set, by the request's field; that of the training rows among them.

    Returns:
        Nothing for recipes without classes.

    Raises:
        InvalidArgument: the rows name classes that the request, or the training rows, don't.
    """
    options = parse_recipe_options(config)
    if not isinstance(options, LabelOptions):
        return ()
    if isinstance(options, SequenceClassificationOptions) and options.problem_type == "regression":
        return _numbers(options, reports)
    names = options.labels or _found(options, reports[_TRAINING])
    if len(names) < 2 and config.recipe == "sequence_classification":
        raise InvalidArgument.field(
            _TRAINING, f"has one class ({', '.join(names)}); a classifier needs two, to tell apart"
        )
    for field, report in reports.items():
        _require_known(names, report, field, given=bool(options.labels or options.num_labels))
    return names


def label_id(names: tuple[str, ...], label: str | int | float) -> int:
    """The number of a class that a row names."""
    return label if isinstance(label, int) else names.index(str(label))


def _found(options: LabelOptions, report: DataReport) -> tuple[str, ...]:
    numbers = [label for label in report.labels if isinstance(label, int)]
    names = sorted(label for label in report.labels if isinstance(label, str))
    if numbers and names:
        places = f"{report.labels[numbers[0]]} has {numbers[0]}, {report.labels[names[0]]} has {names[0]!r}"
        raise InvalidArgument.field(
            _TRAINING, f"names classes in two ways ({places}); write all as text, or all as numbers from 0"
        )
    if numbers or not names:
        count = options.num_labels or max(numbers, default=-1) + 1
        return tuple(str(number) for number in range(count))
    if options.num_labels not in (None, len(names)):
        raise InvalidArgument.field(
            "spec.recipe_options.num_labels",
            f"is {options.num_labels}, but the training rows name {len(names)} classes ({_short(names)}); leave it out, or name all in"
            " recipe_options.labels",
        )
    return tuple(names)


def _require_known(names: tuple[str, ...], report: DataReport, field: str, *, given: bool) -> None:
    for label, place in report.labels.items():
        known = 0 <= label < len(names) if isinstance(label, int) else label in names
        if not known:
            whose = "recipe_options" if given else "the training rows"
            raise InvalidArgument.field(
                field,
                f"{place}: {label!r} is none of the classes of {whose}: {_short(names)}"
                f"{' (0 to ' + str(len(names) - 1) + ')' if isinstance(label, int) else ''}; mend the row, or name all classes in"
                " recipe_options.labels",
            )


def _numbers(options: LabelOptions, reports: Mapping[str, DataReport]) -> tuple[str, ...]:
    """transformers names the outputs of a regression by their numbers."""
    wanted = options.num_labels or int(next(iter(reports[_TRAINING].labels)))
    for field, report in reports.items():
        for count, place in report.labels.items():
            if count != wanted:
                raise InvalidArgument.field(
                    field, f"{place}: label has {count} numbers, others have {wanted}; give each row as many"
                )
    return tuple(f"LABEL_{index}" for index in range(wanted))


def _short(names: tuple[str, ...] | list[str]) -> str:
    rest = len(names) - 8
    return ", ".join(names[:8]) + (f" and {rest} more" if rest > 0 else "")

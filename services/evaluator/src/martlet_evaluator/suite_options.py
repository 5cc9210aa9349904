"""Options of each suite, typed and frozen. ``serve`` checks them here without importing what the suites compute with."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated, Any, ClassVar, Literal

from annotated_types import Ge, Le, MaxLen, MinLen
from martlet_core.config import ARTIFACT_PATTERN, Config, parse_config
from martlet_core.errors import FieldViolation, InvalidArgument
from martlet_core.grader_rules import ITEM_REFERENCE
from martlet_core.model_tasks import CHAT_COMPLETIONS, CLASSIFY, EMBEDDINGS, RERANK
from pydantic import BeforeValidator, Field

from martlet_evaluator.config import EvaluationConfig, SuiteConfig, close_to
from martlet_evaluator.graders import criteria_violations, prompt_violations
from martlet_evaluator.judged_rows import read_documents, read_labelled, read_preference, read_ranking, read_scored

#: Reads what a suite needs of a row as it stands in its file.
RowCheck = Callable[[Mapping[str, Any]], Any]


def _whole(value: Any) -> Any:
    """A Struct has only doubles: 5.0 is read as 5 where a whole number is asked for."""
    if isinstance(value, bool):
        raise ValueError("must be a number, not true or false")  # noqa: TRY004  pydantic turns it into a violation
    return int(value) if isinstance(value, float) and value.is_integer() else value


Int = Annotated[int, BeforeValidator(_whole)]


class SuiteOptions(Config):
    """Base of all suites' options: what a suite needs, and what it can't be asked for.

    Attributes:
        description: of the suite, for people.
        metrics: that it gives.
    """

    description: ClassVar[str] = ""
    metrics: ClassVar[tuple[str, ...]] = ()

    @property
    def needs_rows(self) -> bool:
        """Whether the suite reads the job's data set."""
        return True

    @property
    def needs_conversations(self) -> bool:
        """Whether each row must be a conversation with an answer at its end."""
        return self.needs_rows

    @property
    def asks_targets(self) -> bool:
        """Whether the suite asks the job's targets anything."""
        return True

    @property
    def route(self) -> str:
        """Route of the gateway that the targets must answer on; empty where none is asked."""
        return CHAT_COMPLETIONS if self.asks_targets else ""

    @property
    def row_check(self) -> RowCheck | None:
        """Reads a row, and raises RowError if the suite can't use it; None where being a conversation is all that is asked of it."""
        return None

    def check(self, config: EvaluationConfig) -> list[FieldViolation]:
        """What is wrong with these options in this job; fields relative to the options."""
        return []


class ExactMatchOptions(SuiteOptions):
    """How an answer is compared with the expected one."""

    description: ClassVar[str] = "The answer is the expected one."
    metrics: ClassVar[tuple[str, ...]] = ("accuracy",)

    strip: bool = True
    ignore_case: bool = False
    ignore_punctuation: bool = False
    #: Regular expression; its first group (or the whole match) of the answer is compared. The last match counts.
    extract: Annotated[str, MaxLen(500)] | None = None

    def check(self, config: EvaluationConfig) -> list[FieldViolation]:
        """The expression must compile."""
        import re

        try:
            re.compile(self.extract or "")
        except re.error as error:
            return [FieldViolation("extract", f"is {self.extract!r}; not a regular expression: {error}")]
        return []


class ClassificationOptions(SuiteOptions):
    """Labels, and whether a target may answer anything else. Classifiers are asked on a route of their own."""

    description: ClassVar[str] = "The answer is a label; accuracy, macro-F1 and confusion."
    metrics: ClassVar[tuple[str, ...]] = ("accuracy", "macro_f1", "unreadable")

    labels: Annotated[tuple[str, ...], MaxLen(200)] = Field(
        default=(), description="Default: the answers that the rows expect."
    )
    ask: Literal["chat", "classify"] = Field(
        default="chat", description="chat: models that write the label. classify: classifiers, on rows with a label."
    )
    constrained: bool = True
    max_tokens: Annotated[Int, Ge(1), Le(4096)] | None = Field(
        default=None, description="Room for a label. Default: the longest label in bytes, at most 64."
    )

    @property
    def needs_conversations(self) -> bool:
        """A classifier reads texts with a label."""
        return self.ask == "chat"

    @property
    def route(self) -> str:
        """Classifiers have their own."""
        return CLASSIFY if self.ask == "classify" else CHAT_COMPLETIONS

    @property
    def row_check(self) -> RowCheck | None:
        """A text and its label."""
        return read_labelled if self.ask == "classify" else None


class PoolingOptions(SuiteOptions):
    """Base of the options of suites for models that don't generate."""

    @property
    def needs_conversations(self) -> bool:
        """The rows are of other kinds."""
        return False


class EmbeddingOptions(PoolingOptions):
    """Retrieval among the texts of all rows, or similarity beside the numbers that the rows give."""

    description: ClassVar[str] = "Whether vectors of texts that belong together are near one another."
    metrics: ClassVar[tuple[str, ...]] = ("recall@1", "recall@<k>", "mrr", "ndcg@<k>", "spearman")

    measure: Literal["retrieval", "similarity"] = "retrieval"
    k: Annotated[Int, Ge(1), Le(1000)] = 10
    #: Texts of a request.
    batch_size: Annotated[Int, Ge(1), Le(2048)] = 32

    @property
    def route(self) -> str:
        """Embeddings."""
        return EMBEDDINGS

    @property
    def row_check(self) -> RowCheck | None:
        """A text and those that belong to it, or a pair with a number."""
        return read_scored if self.measure == "similarity" else read_ranking


class RerankOptions(PoolingOptions):
    """How far down the order counts."""

    description: ClassVar[str] = "Whether the documents that fit a query come first."
    metrics: ClassVar[tuple[str, ...]] = ("mrr", "ndcg@<k>")

    k: Annotated[Int, Ge(1), Le(1000)] = 10

    @property
    def route(self) -> str:
        """Reranking."""
        return RERANK

    @property
    def row_check(self) -> RowCheck | None:
        """A query, and documents of both kinds."""
        return read_documents


class RewardOptions(PoolingOptions):
    """Nothing to choose."""

    description: ClassVar[str] = "Whether the chosen answer scores above the rejected one."
    metrics: ClassVar[tuple[str, ...]] = ("accuracy", "margin")

    @property
    def route(self) -> str:
        """A reward is a classifier's one number."""
        return CLASSIFY

    @property
    def row_check(self) -> RowCheck | None:
        """A preference pair."""
        return read_preference


class GenerationOptions(SuiteOptions):
    """Which overlap metrics."""

    description: ClassVar[str] = "How much of the expected text an answer holds."
    metrics: ClassVar[tuple[str, ...]] = ("rouge1", "rouge2", "rougeL", "bleu", "chrf", "answer_words")

    scores: Annotated[tuple[Literal["rouge1", "rouge2", "rougeL", "bleu", "chrf"], ...], MinLen(1)] = (
        "rouge1",
        "rouge2",
        "rougeL",
        "bleu",
        "chrf",
    )
    use_stemmer: bool = False


class PerplexityOptions(SuiteOptions):
    """What the probabilities are of: the expected answer after the conversation, or its text alone."""

    description: ClassVar[str] = "How surprised a model is by the expected answers."
    metrics: ClassVar[tuple[str, ...]] = ("perplexity", "bits_per_byte")

    context: Literal["chat", "none"] = "chat"


class JudgeOptions(SuiteOptions):
    """Who judges, and by what."""

    description: ClassVar[str] = "A model scores answers by a rubric, and pairs in both orders."
    metrics: ClassVar[tuple[str, ...]] = ("score", "win_rate", "order_changed_verdict", "first_preferred")

    model: str
    rubric: Annotated[str, MinLen(1), MaxLen(8000)] = (
        "Judge how well the answer fulfils what the user asked for: is it correct, complete, and to the point?"
    )
    mode: Literal["score", "pairwise", "both"] = "both"
    min_score: Annotated[Int, Ge(0), Le(100)] = 1
    max_score: Annotated[Int, Ge(1), Le(100)] = 5
    max_tokens: Annotated[Int, Ge(1), Le(4096)] = 16
    use_reference: bool = True

    def check(self, config: EvaluationConfig) -> list[FieldViolation]:
        """A range, and somebody to compare with."""
        found = []
        if self.max_score <= self.min_score:
            found.append(
                FieldViolation("max_score", f"is {self.max_score}; must be more than min_score {self.min_score}")
            )
        if self.mode == "pairwise" and len(config.targets) < 2:
            found.append(FieldViolation("mode", "is 'pairwise'; that takes at least two targets"))
        return found


class LatencyOptions(SuiteOptions):
    """How much load, and how long the answers. Prompts are the job's rows where it has any, else built-in ones."""

    description: ClassVar[str] = "Time to the first token, between tokens, and tokens/s, by concurrency."
    metrics: ClassVar[tuple[str, ...]] = (
        "ttft_ms.cN",
        "inter_token_ms.cN",
        "ttft_ms_p95.cN",
        "tokens_per_second.cN",
        "requests_per_second.cN",
    )

    concurrency: Annotated[tuple[Annotated[Int, Ge(1), Le(1024)], ...], MinLen(1), MaxLen(16)] = (1, 4, 16)
    requests: Annotated[Int, Ge(1), Le(100_000)] = Field(default=32, description="Of each level.")
    warmup: Annotated[Int, Ge(0), Le(1000)] = 2
    max_tokens: Annotated[Int, Ge(1), Le(1 << 16)] = 64
    #: vLLM's option that makes all answers as long as ``max_tokens``; other engines may refuse it.
    ignore_eos: bool = False

    @property
    def needs_rows(self) -> bool:
        """There are prompts of its own."""
        return False


class LmEvalTask(Config):
    """One stock task of the harness."""

    task: str
    dataset: str | None = Field(default=None, description="Default: the job's, or the operator's directory of data.")
    num_fewshot: Annotated[Int, Ge(0), Le(100)] = 0
    limit: Annotated[Int, Ge(1)] | None = None


class LmEvalOptions(SuiteOptions):
    """Which tasks of the harness, and how they are asked."""

    description: ClassVar[str] = "Stock tasks of the lm-eval harness on local rows."
    metrics: ClassVar[tuple[str, ...]] = ("<task>.<metric>",)

    tasks: Annotated[tuple[LmEvalTask, ...], MinLen(1), MaxLen(64)]
    apply_chat_template: bool = Field(default=False, description="Ask as a chat, else as plain text to go on with.")

    @property
    def needs_rows(self) -> bool:
        """The harness reads its own columns."""
        return False

    def check(self, config: EvaluationConfig) -> list[FieldViolation]:
        """Data sets are artifacts; a task is named once."""
        found = []
        names = [entry.task for entry in self.tasks]
        for index, entry in enumerate(self.tasks):
            if entry.dataset is not None and not ARTIFACT_PATTERN.fullmatch(entry.dataset):
                found.append(FieldViolation(f"tasks.{index}.dataset", f"is {entry.dataset!r}; give artifacts/<id>"))
            if names.index(entry.task) != index:
                found.append(FieldViolation(f"tasks.{index}.task", f"is {entry.task!r}, named twice"))
        return found


class GradersOptions(SuiteOptions):
    """OpenAI's graders over sampled answers."""

    description: ClassVar[str] = "OpenAI's graders over sampled answers."
    metrics: ClassVar[tuple[str, ...]] = ("pass_rate", "<grader>.pass_rate", "<grader>.score")

    testing_criteria: Annotated[tuple[dict[str, Any], ...], MinLen(1), MaxLen(50)]
    input_messages: tuple[dict[str, Any], ...] = Field(
        default=(), description="Template of the messages ({{item.field}}). Default: the row's own conversation."
    )
    item_reference: str = Field(default="", description="Or the path of the messages in each row: item.messages.")
    sample: bool = Field(default=True, description="Ask the targets. Off: the rows hold answers already.")

    @property
    def asks_targets(self) -> bool:
        """Answers may lie in the rows."""
        return self.sample

    @property
    def needs_conversations(self) -> bool:
        """A template makes messages of any row."""
        return self.sample and not self.input_messages and not self.item_reference

    def check(self, config: EvaluationConfig) -> list[FieldViolation]:
        """Every grader must be known and whole, and the prompt too."""
        found = criteria_violations(self.testing_criteria, "testing_criteria")
        if self.input_messages:
            found += prompt_violations(self.input_messages, "input_messages")
        if self.item_reference and self.input_messages:
            found.append(FieldViolation("item_reference", "is given beside input_messages; a row has one prompt"))
        if self.item_reference and not ITEM_REFERENCE.fullmatch(self.item_reference):
            text = f"is {self.item_reference!r:.80}; give the path of a row's messages, such as item.messages"
            found.append(FieldViolation("item_reference", text))
        return found


#: Suite name -> its options. Adding a suite: a line here, a line in ``suites/__init__.py``, one file.
SUITE_OPTIONS: Mapping[str, type[SuiteOptions]] = {
    "exact_match": ExactMatchOptions,
    "classification": ClassificationOptions,
    "generation": GenerationOptions,
    "perplexity": PerplexityOptions,
    "judge": JudgeOptions,
    "latency": LatencyOptions,
    "lm_eval": LmEvalOptions,
    "graders": GradersOptions,
    "embedding": EmbeddingOptions,
    "rerank": RerankOptions,
    "reward": RewardOptions,
}


def parse_suite_options(entry: SuiteConfig) -> SuiteOptions:
    """The options of a suite, typed.

    Raises:
        InvalidArgument: the suite isn't known, or doesn't know an option.
    """
    if entry.suite not in SUITE_OPTIONS:
        raise InvalidArgument.field("suite", f"is {entry.suite!r}; {close_to(entry.suite, list(SUITE_OPTIONS))}")
    return parse_config(SUITE_OPTIONS[entry.suite], entry.options, "options")

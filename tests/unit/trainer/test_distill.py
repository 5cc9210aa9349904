"""Distillation: the divergence against TRL's, what is trained on, and who may teach."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from martlet_core.errors import FailedPrecondition, InvalidArgument
from martlet_core.recipe import StopRequested
from martlet_inputs.base_models.vocabulary import read_vocabulary
from martlet_inputs.rows.exchanges import EXCHANGES
from martlet_inputs.rows.formats import RowError
from martlet_inputs.rows.report import DataReport
from martlet_trainer.config import parse_training_config
from martlet_trainer.data.encode import RowEncoder
from martlet_trainer.data.examples import encode_exchange
from martlet_trainer.recipes.training import run
from martlet_trainer.testing import Recorder, byte_tokenizer, chat_rows, lay_out, training_spec
from martlet_trainer.testing_cases import RECIPE_OPTIONS, recipe_rows, save_tiny_llama, save_tiny_teacher
from martlet_trainer.training.batches import collate_padded
from martlet_trainer.training.computation import Computation, choose_computation
from martlet_trainer.training.devices import Placement
from martlet_trainer.training.distillation import Distillation, Teacher, distillation_computation, divergence
from martlet_trainer.training.loss import plain_log_probs, plain_loss, plain_predictions
from martlet_trainer.training.models import load_model
from martlet_trainer.training.sampling import Sampler
from martlet_trainer.training.teacher import load_teacher
from trl.experimental.gkd import GKDTrainer

CPU = torch.device("cpu")
PADDED = Computation(collate_padded, plain_loss, plain_log_probs, plain_predictions, isolates_rows=False)
WRONG = [{"role": "user", "content": "a"}]


@pytest.fixture(scope="module")
def teacher_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_teacher(tmp_path_factory.mktemp("teacher"))


@pytest.fixture
def train(tmp_path: Path, tiny_model_dir: Path, teacher_dir: Path) -> Callable[..., Any]:
    def go(name: str, rows: list[Any], stop: Any = lambda _: False, **changes: Any) -> tuple[Any, Recorder]:
        given = {key: changes.pop(key) for key in ("validation", "resume") if key in changes}
        workdir = lay_out(tmp_path / name, tiny_model_dir, rows, teacher=changes.pop("teacher", teacher_dir), **given)
        numbers = {"max_steps": 20, **changes.pop("hyperparameters", {})}
        options = {**RECIPE_OPTIONS["distill"], **changes.pop("recipe_options", {})}
        report = Recorder()
        spec = training_spec(recipe="distill", hyperparameters=numbers, recipe_options=options, **changes)
        return run(spec, workdir, report, lambda: stop(report)), report

    return go


def weights(result: Any) -> bytes:
    return (result.outputs["model"].path / "adapter_model.safetensors").read_bytes()


@pytest.mark.parametrize("beta", [0.0, 0.1, 0.5, 0.9, 1.0])
def test_the_divergence_is_trls(beta: float) -> None:
    torch.manual_seed(1)
    ours, theirs = torch.randn(5, 11) * 3, torch.randn(5, 11) * 3
    student, reference = ours.clone().requires_grad_(), ours.clone().requires_grad_()
    found = divergence(student, theirs, beta)
    wanted = GKDTrainer.generalized_jsd_loss(reference[None], theirs[None], beta=beta, reduction="none")[0].sum(1)
    assert torch.allclose(found, wanted, atol=1e-6)
    (ours_grad,), (trls_grad,) = (torch.autograd.grad(f.sum(), x) for f, x in ((found, student), (wanted, reference)))
    assert torch.allclose(ours_grad, trls_grad, atol=1e-6)


@pytest.mark.parametrize("padded", ["neither", "the teacher", "both"])
def test_the_loss_is_trls_by_row(tiny_model_dir: Path, tmp_path: Path, padded: str) -> None:
    """Through whole logits of both models, row by row; the teacher's output head has rows that no token uses."""
    teacher_dir = save_tiny_llama(tmp_path, hidden_size=96, vocab_size=len(byte_tokenizer()) + 5)
    encoder = RowEncoder(byte_tokenizer(), max_length=64)
    encode: Any = encode_exchange(encoder)
    examples = [encode(EXCHANGES.read(row, DataReport()), "messages")[0] for row in chat_rows(4)]
    rows: list[Any] = [example.answered for example in examples]
    models = [load_model(directory, torch.float32, CPU) for directory in (tiny_model_dir, teacher_dir)]
    wanted = []
    for row in rows:
        ids = torch.from_numpy(row.input_ids)[None].long()
        labels = torch.where(torch.from_numpy(row.is_target)[None], ids, -100)[:, 1:]
        ours, theirs = (model(input_ids=ids).logits[:, :-1, : len(byte_tokenizer())] for model in models)
        wanted.append(GKDTrainer.generalized_jsd_loss(ours, theirs.detach(), labels, beta=0.3))
    torch.stack(wanted).sum().backward()
    gradients = {name: p.grad.clone() for name, p in models[0].named_parameters()}
    models[0].zero_grad()

    samplers = [Sampler(model, byte_tokenizer(), "sdpa", 6, 1.0) for model in models]
    computations = [
        PADDED if chosen else choose_computation(model, rows, CPU, packing=False)
        for model, chosen in zip(models, (padded == "both", padded != "neither"), strict=True)
    ]
    assert [computation.isolates_rows for computation in computations] == [padded != "both", padded == "neither"]
    teacher = Teacher(samplers[1], computations[1])
    computation = distillation_computation(computations[0], samplers[0], teacher, Distillation(0.3, 0.0, False))
    loss = computation.objective(models[0], computation.collate(examples, CPU)).total
    loss.backward()
    assert loss.item() == pytest.approx(sum(value.item() for value in wanted), rel=1e-4)
    for name, parameter in models[0].named_parameters():
        assert (parameter.grad - gradients[name]).norm() <= 1e-3 * gradients[name].norm() + 1e-6, name


@pytest.mark.parametrize("options", [{"lmbda": 0.0}, {"lmbda": 1.0}, {"lmbda": 0.0, "seq_kd": True}])
def test_the_divergence_falls_on_held_out_rows(train: Callable[..., Any], options: dict[str, Any]) -> None:
    numbers = {"max_steps": 30, "eval_steps": 10, "per_device_batch_size": 8}
    changes = {"validation": chat_rows(6, 16), "validation_dataset": "artifacts/b", "hyperparameters": numbers}
    result, report = train("a", chat_rows(16), recipe_options=options, **changes)
    held_out = [report.steps[step]["valid_loss"] for step in (10, 20, 30)]
    assert held_out[2] < held_out[0]
    assert report.losses[-1] < 0.8 * report.losses[0]
    assert {report.steps[step]["on_policy"] for step in report.steps} == {options["lmbda"]}
    assert report.steps[30]["valid_on_policy"] == 0.0
    assert result.outputs["model"].metadata["recipe"] == "distill"


def test_a_share_of_the_batches_is_drawn(train: Callable[..., Any]) -> None:
    _, report = train("a", chat_rows(16), hyperparameters={"max_steps": 40, "learning_rate": 1e-4})
    drawn = [values["on_policy"] for values in report.steps.values()]
    assert set(drawn) == {0.0, 1.0}
    assert 8 <= sum(drawn) <= 32


@pytest.mark.parametrize("options", [{}, {"seq_kd": True}])
def test_it_goes_on_from_a_checkpoint_as_if_it_had_never_stopped(
    train: Callable[..., Any], tmp_path: Path, options: dict[str, Any]
) -> None:
    """Whether a batch is drawn, and what is drawn, are the same again."""
    rows, changes = chat_rows(10), {"hyperparameters": {"max_steps": 6}, "recipe_options": options}
    whole, _ = train("whole", rows, **changes)
    with pytest.raises(StopRequested):
        train("first", rows, lambda report: len(report.losses) >= 3, **changes)
    resumed, _ = train("second", rows, resume=tmp_path / "first" / "checkpoints" / "step-3", **changes)
    assert weights(whole) == weights(resumed)


def test_two_processes_learn_as_one(train: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    options, rows = {"lmbda": 0.0}, chat_rows(16)
    _, one = train("one", rows, hyperparameters={"max_steps": 4, "per_device_batch_size": 8}, recipe_options=options)
    two_devices = {"hyperparameters": {"max_steps": 4}, "resources": {"device": "cpu", "device_count": 2}}
    _, two = train("two", rows, recipe_options=options, **two_devices)
    assert two.losses == pytest.approx(one.losses, abs=1e-4)


def test_questions_alone_do_where_answers_are_drawn(train: Callable[..., Any]) -> None:
    rows = recipe_rows("grpo", 8)
    _, report = train("a", rows, recipe_options={"lmbda": 1.0}, hyperparameters={"max_steps": 2})
    assert len(report.losses) == 2
    with pytest.raises(InvalidArgument, match=r"training_dataset: 8 of 8 rows have no answer.*lmbda 1"):
        train("b", rows)
    with pytest.raises(InvalidArgument, match=r"validation_dataset: 8 of 8 rows have no answer"):
        train("c", rows, recipe_options={"lmbda": 1.0}, validation=rows, validation_dataset="artifacts/b")


def test_an_adapter_teaches_too(tmp_path: Path, tiny_model_dir: Path, train: Callable[..., Any]) -> None:
    """The teacher that an adapter makes of its base model gives what peft gives."""
    from peft import PeftModel

    taught, _ = train("a", chat_rows(8), hyperparameters={"max_steps": 4})
    given = tmp_path / "given"
    given.mkdir()
    (given / "teacher_model").symlink_to(tiny_model_dir)
    (given / "teacher_adapter").symlink_to(taught.outputs["model"].path)
    rows = [RowEncoder(byte_tokenizer(), max_length=64).encode_text("a longer text")[0]] * 2
    found = load_teacher(given, byte_tokenizer(), Placement(CPU, "float32"), rows, 4, 1.0).sampler.model
    assert not any(parameter.requires_grad for parameter in found.parameters())
    found.set_attn_implementation("sdpa")
    ids = torch.tensor([[1, 40, 41, 42]])
    base = load_model(tiny_model_dir, torch.float32, CPU)
    bare = base(ids).logits
    wanted = PeftModel.from_pretrained(base, taught.outputs["model"].path)(ids).logits
    assert torch.allclose(found(ids).logits, wanted, atol=1e-4)
    assert not torch.allclose(bare, wanted, atol=1e-2)


def test_another_vocabulary_is_refused(train: Callable[..., Any], tmp_path: Path) -> None:
    teacher = save_tiny_teacher(tmp_path / "other")
    tokenizer = json.loads((teacher / "tokenizer.json").read_text())
    same = read_vocabulary((teacher / "tokenizer.json").read_bytes())
    assert same == byte_tokenizer().get_vocab()
    vocab = tokenizer["model"]["vocab"]
    vocab["a"], vocab["b"] = vocab["b"], vocab["a"]
    (teacher / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(InvalidArgument, match=r"teacher_model: has another vocabulary.*2 tokens differ") as caught:
        train("a", chat_rows(4), teacher=teacher)
    assert caught.value.reason == "OTHER_VOCABULARY"


def test_a_teacher_with_a_short_context_is_refused(train: Callable[..., Any], tmp_path: Path) -> None:
    teacher = save_tiny_llama(tmp_path / "short", max_position_embeddings=32)
    with pytest.raises(InvalidArgument, match=r"teacher_model: has a context of 32 tokens"):
        train("a", chat_rows(4), teacher=teacher)


def test_a_teacher_that_is_quantized_for_inference_is_refused(train: Callable[..., Any], tmp_path: Path) -> None:
    teacher = save_tiny_teacher(tmp_path / "quantized")
    config = json.loads((teacher / "config.json").read_text())
    (teacher / "config.json").write_text(json.dumps({**config, "quantization_config": {"quant_method": "gptq"}}))
    with pytest.raises(FailedPrecondition, match=r"teacher_model: is quantized by gptq"):
        train("a", chat_rows(4), teacher=teacher)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, r"recipe_options\.teacher_model"),
        ({"teacher_model": "../x"}, r"recipe_options\.teacher_model"),
        ({"teacher_model": "t", "lmbda": 1.5}, r"recipe_options\.lmbda"),
        ({"teacher_model": "t", "beta": -0.1}, r"recipe_options\.beta"),
        ({"teacher_model": "t", "num_generations": 2}, r"recipe_options\.num_generations"),
    ],
)
def test_wrong_options_are_refused_at_submission(options: dict[str, Any], message: str) -> None:
    spec = {"base_model": "m", "training_dataset": "artifacts/a", "recipe": "distill", "recipe_options": options}
    with pytest.raises(InvalidArgument, match=message):
        parse_training_config(spec)


def test_rows_with_and_without_answers() -> None:
    answered = EXCHANGES.read({"query": "1+1?", "response": "2", "system": "Add."}, DataReport())
    assert answered.conversation is not None
    assert [message["role"] for message in answered.question.messages] == ["system", "user"]
    asked = EXCHANGES.read({"messages": WRONG}, report := DataReport())
    assert (asked.conversation, report.format) == (None, "messages_question")
    with pytest.raises(RowError, match="keep one format"):
        EXCHANGES.read({"messages": [*WRONG, {"role": "assistant", "content": "b"}]}, report)
    with pytest.raises(RowError, match="begins with its last answer"):
        EXCHANGES.read({"messages": [{"role": "assistant", "content": "b"}]}, DataReport())

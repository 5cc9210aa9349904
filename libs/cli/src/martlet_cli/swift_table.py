"""The arguments of SWIFT that ``martlet train`` takes, in groups; which words of SWIFT mean what here; which arguments mean nothing."""

from __future__ import annotations

from collections.abc import Mapping

from martlet_cli.platform_options import TRACKERS
from martlet_cli.swift_argument import Argument, boolean, sharding
from martlet_cli.swift_tuners import KIND_ARGUMENTS, TUNER_ARGUMENTS

SCHEDULES = ("linear", "cosine", "constant", "constant_with_warmup")
DTYPES = ("auto", "float32", "bfloat16", "float16")
#: SWIFT's word for what happens to rows that are too long -> ours.
LONG_ROWS = {"right": "TRUNCATE", "delete": "REFUSE"}
#: SWIFT's ``--rlhf_type`` -> our recipe.
PREFERENCES: Mapping[str, str] = {
    **{name: name for name in ("dpo", "orpo", "cpo", "simpo", "kto", "grpo", "rloo")},
    "gkd": "distill",
    "rm": "reward",
}
REWARDS = ("accuracy", "format", "regex", "length")
#: SWIFT's word for what a model ends in -> the recipe.
TASKS = {"causal_lm": None, "seq_cls": "sequence_classification", "embedding": "embedding", "reranker": "reranker"}
PROBLEMS = ("single_label_classification", "multi_label_classification", "regression")
LOSSES = (
    *("sigmoid", "hinge", "ipo"),
    *("infonce", "cosine_similarity", "contrastive"),
    *("pointwise", "listwise"),
)
NUMBERS = "hyperparameters"
OPTIONS = "recipe_options"


def loss_type(text: str) -> str:
    """A loss by SWIFT's name, which says of rerankers' losses whose they are."""
    return text.removesuffix("_reranker")


GROUPS: Mapping[str, tuple[Argument, ...]] = {
    "model and data": (
        Argument("--model", "", str, "base model: a registered name, a hub id, artifacts/<id>, or a fine-tuned model"),
        Argument(
            "--dataset",
            "",
            str,
            "rows to train on: local files, ids of uploaded ones, or data sets of a hub (hf:org/name@commit); FILE#500 draws 500 rows",
            many=True,
        ),
        Argument("--use_hf", "", boolean, "true (default): hub ids are Hugging Face's; false: ModelScope's"),
        Argument("--val_dataset", "", str, "rows to validate on: a local file or an id", many=True),
        Argument("--split_dataset_ratio", "data.validation_split", float, "share of the rows to validate on, 0 to 0.5"),
        Argument("--system", "data.system", str, "system message for rows that have none"),
        Argument("--max_length", "data.max_length", int, "longest row in tokens (default: the context, at most 2048)"),
        Argument(
            "--truncation_strategy",
            "",
            str,
            "rows beyond --max_length: right (default) cuts them, delete makes bad rows of them (see --strict)",
            choices=tuple(LONG_ROWS),
        ),
        Argument("--packing", "data.packing", boolean, "several rows in one sequence; they don't see one another"),
        Argument("--strict", "", boolean, "true (default): a bad row fails the job; false: it is left out and counted"),
        Argument(
            "--loss_scale",
            "",
            str,
            "loss on the assistant's turns (default), on those behind the user's last turn, or on all tokens",
            choices=("default", "last_round", "all"),
        ),
    ),
    "tuner": TUNER_ARGUMENTS,
    "tuners of one kind": KIND_ARGUMENTS,
    "training": (
        Argument("--num_train_epochs", f"{NUMBERS}.epoch_count", float, "passes over the data (default 3)"),
        Argument("--max_steps", f"{NUMBERS}.max_steps", int, "optimizer steps; goes before --num_train_epochs"),
        Argument("--learning_rate", f"{NUMBERS}.learning_rate", float, "peak (default 2e-4; full training 1e-5)"),
        Argument("--per_device_train_batch_size", f"{NUMBERS}.per_device_batch_size", int, "rows a step (default 8)"),
        Argument(
            "--gradient_accumulation_steps",
            f"{NUMBERS}.gradient_accumulation_steps",
            int,
            "micro-batches in one step (default 1)",
        ),
        Argument("--lr_scheduler_type", f"{NUMBERS}.learning_rate_schedule", str, "default cosine", choices=SCHEDULES),
        Argument("--warmup_ratio", f"{NUMBERS}.warmup_ratio", float, "share of the steps warming up (default 0.03)"),
        Argument("--weight_decay", f"{NUMBERS}.weight_decay", float, "AdamW's weight decay (default 0)"),
        Argument("--max_grad_norm", f"{NUMBERS}.max_grad_norm", float, "gradient norm to clip at (default 1)"),
        Argument("--optim", f"{NUMBERS}.optimizer", str, "by its transformers name (default adamw_torch)"),
        Argument("--torch_dtype", f"{NUMBERS}.precision", str, "default: what the device is fast at", choices=DTYPES),
        Argument("--gradient_checkpointing", f"{NUMBERS}.gradient_checkpointing", boolean, "saves memory, costs time"),
        Argument("--use_liger_kernel", f"{NUMBERS}.use_liger_kernel", boolean, "Liger's kernels; needs a GPU"),
        Argument("--neftune_noise_alpha", f"{NUMBERS}.neftune_noise_alpha", float, "noise on embeddings (NEFTune)"),
        Argument("--eval_steps", f"{NUMBERS}.eval_steps", int, "steps between validations (default: each epoch)"),
        Argument(
            "--early_stopping_patience",
            f"{NUMBERS}.early_stopping_patience",
            int,
            "validations without gain before it stops",
        ),
        Argument("--save_steps", "checkpoints.interval_steps", int, "steps between checkpoints (default: every 300 s)"),
        Argument("--seed", "", int, "random seed (default 42)"),
    ),
    "preferences": (
        Argument(
            "--rlhf_type",
            "",
            str,
            "learn from pairs of answers, from verdicts (kto), from rewards (grpo, rloo), or from a teacher (gkd); rm: a reward model, from pairs",
            choices=tuple(PREFERENCES),
        ),
        Argument(
            "--beta",
            f"{OPTIONS}.beta",
            float,
            "width of the loss's slope (default 0.1; simpo 2.0; grpo, rloo: 0, no divergence); gkd: 0 forward KL to 1 reverse (0.5)",
        ),
        Argument(
            "--loss_type",
            f"{OPTIONS}.loss",
            loss_type,
            "of dpo (default sigmoid), embedding (default infonce) or reranker (default pointwise)",
            choices=LOSSES,
        ),
        Argument(
            "--label_smoothing",
            f"{OPTIONS}.label_smoothing",
            float,
            "share of dpo's pairs that are the wrong way round",
        ),
        Argument(
            "--rpo_alpha", f"{OPTIONS}.sft_weight", float, "weight of the chosen answer's own loss, dpo (default 0)"
        ),
        Argument("--cpo_alpha", "", float, "the same, cpo (default 1) and simpo (default 0)"),
        Argument("--simpo_gamma", f"{OPTIONS}.margin", float, "lead that simpo asks for (default 1)"),
        Argument(
            "--desirable_weight", f"{OPTIONS}.desirable_weight", float, "weight of kto's good answers (default 1)"
        ),
        Argument("--undesirable_weight", f"{OPTIONS}.undesirable_weight", float, "weight of its bad ones (default 1)"),
    ),
    "distillation": (
        Argument("--teacher_model", f"{OPTIONS}.teacher_model", str, "whom gkd learns from; named as --model"),
        Argument("--lmbda", f"{OPTIONS}.lmbda", float, "share of batches that the model answers itself (default 0.5)"),
        Argument("--seq_kd", f"{OPTIONS}.seq_kd", boolean, "the teacher answers the other batches (default false)"),
    ),
    "rewards": (
        Argument(
            "--reward_funcs", "", str, "rewards of grpo and rloo by name (default accuracy)", many=True, choices=REWARDS
        ),
        Argument("--reward_weights", "", float, "their weights, in the same order (default 1 each)", many=True),
        Argument("--reward_pattern", "", str, "what the reward regex looks for"),
        Argument("--reward_length", "", int, "tokens that the reward length wants"),
        Argument("--num_generations", f"{OPTIONS}.num_generations", int, "answers to each question (default 8)"),
        Argument(
            "--max_completion_length", f"{OPTIONS}.max_completion_length", int, "tokens of an answer (default 256)"
        ),
        Argument("--temperature", f"{OPTIONS}.temperature", float, "of answers (default 0.9), or of infonce (0.05)"),
        Argument(
            "--use_vllm",
            "",
            boolean,
            "answers are drawn by replicas, which are given the adapter as it is (grpo, rloo, gkd)",
        ),
        Argument(
            "--vllm_mode",
            "",
            str,
            "of --use_vllm: server, the replicas behind the gateway",
            choices=("server", "colocate"),
        ),
        Argument(
            "--sync_steps", f"{OPTIONS}.rollouts.sync_steps", int, "steps between two adapters for them (default 1)"
        ),
        Argument(
            "--epsilon",
            f"{OPTIONS}.rollouts.epsilon",
            float,
            "how far a token's probability may move, of --use_vllm (0.2)",
        ),
        Argument("--scale_rewards", f"{OPTIONS}.scale_rewards", boolean, "divide by their spread, grpo (default true)"),
    ),
    "tracking": (
        Argument(
            "--report_to",
            "",
            str,
            "tools that are told of the training (default none); those that the deployment offers",
            many=True,
            choices=(*TRACKERS, "none"),
        ),
        Argument("--project", "", str, "their project, experiment or folder (default martlet)"),
        Argument("--run_name", "", str, "name of the run there (default: the job's id)"),
    ),
    "heads": (
        Argument("--task_type", "", str, "what the model ends in (default causal_lm)", choices=tuple(TASKS)),
        Argument("--problem_type", f"{OPTIONS}.problem_type", str, "of seq_cls (default: one class)", choices=PROBLEMS),
        Argument("--num_labels", f"{OPTIONS}.num_labels", int, "classes, or numbers (default: as the rows have)"),
        Argument("--labels", f"{OPTIONS}.labels", str, "names of the classes, in order", many=True),
        Argument(
            "--center_rewards_coefficient",
            f"{OPTIONS}.center_rewards_coefficient",
            float,
            "of rm: keeps rewards near 0 (default 0)",
        ),
        Argument(
            "--pooling",
            f"{OPTIONS}.pooling",
            str,
            "of embedding: which tokens' states (default: the model's own)",
            choices=("auto", "mean", "last", "cls"),
        ),
    ),
    "job": (
        Argument("--recipe", "recipe", str, "algorithm (default sft); pretrain for plain texts"),
        Argument("--suffix", "", str, "part of the fine-tuned model's name, up to 64 of A-Z a-z 0-9 . _ -"),
        Argument("--device_count", "resources.device_count", int, "devices in one training (default 1)"),
        Argument("--deepspeed", "resources.sharding", sharding, "zero2 or zero3: what is spread over the devices"),
        Argument("--fsdp", "resources.sharding", sharding, "fsdp2: as --deepspeed zero3"),
        Argument("--priority", "resources.priority", int, "place in the queue, 0 (low) to 9 (high)"),
    ),
}
ARGUMENTS: tuple[Argument, ...] = tuple(argument for group in GROUPS.values() for argument in group)

#: Names that SWIFT's users type and that mean nothing here; what to do instead.
NOT_NEEDED: Mapping[str, str] = {
    "--output_dir": "results are artifacts: `martlet artifacts list`, `martlet artifacts download`",
    "--add_version": "each job has its own id",
    "--save_total_limit": "the last two checkpoints and the best are kept",
    "--resume_from_checkpoint": "a job resumes by itself, or with `martlet jobs resume ID`",
    "--logging_steps": "every step is reported",
    "--adapters": "give the fine-tuned model's name as --model",
    "--model_type": "it is read from the model's own config",
    "--template": "the model's own chat template is used",
    "--use_liger_kernel": "the trainer's own loss needs no logits, and its attention no padding; Liger's kernels aren't there yet",
    "--merge_lora": "`martlet merge MODEL`, when the job has succeeded",
}

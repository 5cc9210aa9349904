"""SWIFT's arguments about tuners."""

from __future__ import annotations

from martlet_cli.swift_argument import Argument, boolean

TUNERS = (
    *(
        "lora",
        "qlora",
        "full",
        "lisa",
        "llamapro",
        "longlora",
        "badam",
        "adalora",
        "loha",
        "lokr",
        "boft",
        "oft",
        "hra",
        "vera",
    ),
    *("randlora", "vblora"),
    *("fourierft", "miss", "shira", "road", "delora", "ia3", "ln_tuning", "adapter", "prompt_tuning"),
    "prefix_tuning",
    "p_tuning",
)
STARTS = ("default", "gaussian", "orthogonal", "pissa", "olora", "eva", "lora_ga", "loftq")
_NUMBERS = "hyperparameters"
_OPTIONS = "tuner.options"


def start(text: str) -> str:
    """A start's name; SWIFT writes lora-ga."""
    return text.replace("-", "_")


TUNER_ARGUMENTS: tuple[Argument, ...] = (
    Argument("--tuner_type", "tuner.kind", str, "default lora", older=("--train_type", "--sft_type"), choices=TUNERS),
    Argument("--lora_rank", "tuner.lora_rank", int, "rank of the LoRA matrices (default 8)"),
    Argument("--lora_alpha", "tuner.lora_alpha", float, "updates are scaled by alpha / rank (default 2 x rank)"),
    Argument("--lora_dropout", "tuner.lora_dropout", float, "dropout in front of LoRA (default 0)"),
    Argument("--target_modules", "tuner.target_modules", str, "modules to adapt (default all-linear)", many=True),
    Argument(
        "--target_regex", "tuner.target_regex", str, "modules to adapt, by a pattern that their whole name matches"
    ),
    Argument("--modules_to_save", "tuner.modules_to_save", str, "modules trained in full beside", many=True),
    Argument("--use_rslora", "tuner.use_rslora", boolean, "scale by alpha / sqrt(rank)"),
    Argument("--use_dora", "tuner.use_dora", boolean, "magnitude and direction apart (DoRA)"),
    Argument("--tuner_options", "", str, "what only the chosen tuner knows, such as r=16 n_frequency=500", many=True),
    Argument("--init_weights", "tuner.init_weights", start, "start of LoRA's matrices", choices=STARTS),
    Argument("--lorap_lr_ratio", f"{_NUMBERS}.lora_plus_ratio", float, "learning rate of LoRA's B beside A's (LoRA+)"),
    Argument("--quant_method", "", str, "keep the frozen base quantized (QLoRA)", choices=("bnb",)),
    Argument("--quant_bits", "", int, "4 (nf4) or 8 (int8), with --quant_method bnb"),
)
#: Options of tuners of one kind, under SWIFT's names; ``--tuner_options`` takes all of them under peft's.
KIND_ARGUMENTS: tuple[Argument, ...] = (
    Argument("--adalora_init_r", f"{_OPTIONS}.init_r", int, "adalora: rank of every layer at the start (default 12)"),
    Argument("--adalora_target_r", f"{_OPTIONS}.target_r", int, "adalora: mean rank at the end (default 8)"),
    Argument("--adalora_tinit", f"{_OPTIONS}.tinit", int, "adalora: steps before ranks begin to fall (default 0)"),
    Argument(
        "--adalora_tfinal", f"{_OPTIONS}.tfinal", int, "adalora: last steps, without a change of ranks (default 0)"
    ),
    Argument("--adalora_deltaT", f"{_OPTIONS}.deltaT", int, "adalora: steps between two allocations (default 1)"),
    Argument("--adalora_beta1", f"{_OPTIONS}.beta1", float, "adalora: smoothing of importance (default 0.85)"),
    Argument("--adalora_beta2", f"{_OPTIONS}.beta2", float, "adalora: smoothing of its uncertainty (default 0.85)"),
    Argument("--adalora_orth_reg_weight", f"{_OPTIONS}.orth_reg_weight", float, "adalora: penalty (default 0.5)"),
    Argument("--lisa_activated_layers", f"{_OPTIONS}.activated_layers", int, "lisa: layers at a time (default 2)"),
    Argument(
        "--lisa_step_interval", f"{_OPTIONS}.step_interval", int, "lisa: steps until others are drawn (default 20)"
    ),
    Argument("--llamapro_num_new_blocks", f"{_OPTIONS}.num_new_blocks", int, "llamapro: added layers (default 4)"),
    Argument("--adapter_length", f"{_OPTIONS}.adapter_length", int, "adapter: width of its bottlenecks (default 128)"),
    Argument("--adapter_act", f"{_OPTIONS}.adapter_act", str, "adapter: activation in them (default gelu)"),
    Argument(
        "--freeze_parameters_ratio", f"{_OPTIONS}.freeze_parameters_ratio", float, "full: share that stays as it is"
    ),
    Argument(
        "--freeze_parameters", f"{_OPTIONS}.freeze_parameters", str, "full: names that stay as they are", many=True
    ),
    Argument("--freeze_parameters_regex", f"{_OPTIONS}.freeze_parameters_regex", str, "full: the same by a pattern"),
    Argument(
        "--trainable_parameters", f"{_OPTIONS}.trainable_parameters", str, "full: names that are trained", many=True
    ),
    Argument(
        "--trainable_parameters_regex", f"{_OPTIONS}.trainable_parameters_regex", str, "full: the same by a pattern"
    ),
    Argument("--use_galore", "", boolean, "full: states of low rank (--optim galore_adamw)"),
    Argument("--galore_rank", f"{_NUMBERS}.projection_rank", int, "their rank (default 128)"),
    Argument(
        "--galore_update_proj_gap", f"{_NUMBERS}.projection_interval", int, "steps between projections (default 200)"
    ),
    Argument("--galore_scale", f"{_NUMBERS}.projection_scale", float, "factor on updates (default 0.25)"),
)

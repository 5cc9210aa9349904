"""A quantization, from the model to the verdict: quantize, reload from disk, measure, judge.

A quantized model that loads, has the right size and answers may still be garbage. So what was written is read back in a
fresh process and compared with the unquantized model on texts that nothing was calibrated with, and a job whose perplexity
rises by more than its limit fails, with its report attached.

Imports no ML library: each step runs in a process of its own (``steps``).
"""

from __future__ import annotations

import math
import platform
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from martlet_core.errors import FailedPrecondition, MartletError
from martlet_core.recipe import FailedWithResult, OutputArtifact, RecipeResult, Report, ShouldStop

from martlet_quantizer import quality, weights
from martlet_quantizer.config import QuantizationConfig, parse_config
from martlet_quantizer.methods import Method, check_model_type, find
from martlet_quantizer.reload_checks import ENGINE_CHECKS, engine_of
from martlet_quantizer.report_files import write_report
from martlet_quantizer.rows import check_disjoint, read_rows
from martlet_quantizer.steps import run_step

_LIBRARIES = (
    "torch", "transformers", "bitsandbytes", "llmcompressor", "compressed-tensors", "gguf", "autoawq", "gptqmodel",
)  # fmt: skip
_PROMPT = "What is the capital of France?"
_SERVED = (
    "Whether an inference replica serves it is tried behind this report; the job's result has that row in `engines`."
)


def run(config: Mapping[str, Any], workdir: Path, report: Report, should_stop: ShouldStop) -> RecipeResult:
    """Quantize ``inputs/base_model``.

    Args:
        config: the fields of ``QuantizationSpec``, and from the worker ``engine_pythons``: interpreter by family, of
            environments on this machine that may be asked to load the output, and ``task``: what the model was made for, if that is known.
        workdir: see ``martlet_core.recipe``; ``inputs/calibration`` and ``inputs/evaluation`` may be there.
        report: how to speak.
        should_stop: ends the job at once; it has no checkpoints.

    Raises:
        InvalidArgument: the model, the options or a row don't fit the method.
        FailedPrecondition: the model is quantized already, or a library refused it.
        FailedWithResult: the quantized model is worse than allowed, or didn't load; the report is attached.
        StopRequested: ``should_stop`` said so.
    """
    values = dict(config)
    pythons = values.pop("engine_pythons", None) or {}
    task = values.pop("task", None)
    return _Quantization(parse_config(values), pythons, workdir, report, should_stop, task).run()


@dataclass
class _Quantization:
    config: QuantizationConfig
    pythons: Mapping[str, str]
    workdir: Path
    report: Report
    should_stop: ShouldStop
    task: str | None = None
    method: Method = field(init=False)
    engines: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.method = find(self.config.method)
        self.source = self.workdir / "inputs" / "base_model"
        self.model = self.workdir / "output" / "model"
        self.scratch = self.workdir / "scratch"
        self.prompts = list(self.config.sample_prompts or quality.PROMPTS)

    def run(self) -> RecipeResult:
        """See ``run``."""
        self.report.phase("checking")
        self._check()
        self.model.mkdir(parents=True)
        self.scratch.mkdir()
        self.report.phase("quantizing")
        made = self._step("quantize", self._task())
        result = self._sizes(made)
        self.report.partial_result(result)
        self.report.phase("measuring the unquantized model")
        base = self._measure(quantized=False)
        self.report.phase("measuring the quantized model")
        begun = time.monotonic()
        try:
            quantized = self._measure(quantized=True)
        except (FailedPrecondition, ValueError) as error:
            self._engine(engine_of(self.method.family), False, str(error), time.monotonic() - begun)
            raise self._failure(
                "RELOAD_FAILED", f"What {self.method.name} wrote doesn't load: {error}", result, made
            ) from error
        return self._finish(result, made, base, quantized)

    def _check(self) -> None:
        name = self.config.model
        files = weights.read_files(self.source)
        weights.check_unquantized(files, name)
        weights.check_safetensors(self.source, name)
        check_model_type(self.method, str(files.config.get("model_type", "")))
        calibration, evaluation = self._input("calibration"), self._input("evaluation")
        if calibration and evaluation:
            check_disjoint(
                read_rows(Path(calibration), "spec.calibration.dataset"),
                read_rows(Path(evaluation), "spec.evaluation_dataset"),
            )

    def _input(self, name: str) -> str | None:
        path = self.workdir / "inputs" / name
        return str(path) if path.exists() else None

    def _task(self) -> dict[str, Any]:
        config = self.config
        return {
            "method": self.method.name,
            "source": str(self.source),
            "output": str(self.model),
            "scratch": str(self.scratch),
            "options": config.options.model_dump(mode="json"),
            "bits": config.bits,
            "gguf_type": config.gguf_type,
            "calibration": {
                "path": self._input("calibration"),
                "max_rows": config.calibration.max_rows,
                "sequence_length": config.calibration.sequence_length,
            },
            "seed": config.seed,
        }

    def _measure(self, *, quantized: bool) -> dict[str, Any]:
        found = self._step(
            "measure",
            {
                "source": str(self.source),
                "quantized": str(self.model) if quantized else None,
                "family": self.method.family,
                "scratch": str(self.scratch),
                "evaluation": self._input("evaluation"),
                "prompts": self.prompts,
            },
        )
        return {**found, "measurement": quality.from_json(found["measurement"])}

    def _step(self, name: str, arguments: Mapping[str, Any], python: str | None = None) -> Mapping[str, Any]:
        more = {"python": python} if python else {}
        return run_step(name, arguments, self.report, self.should_stop, workdir=self.workdir, **more)

    def _sizes(self, made: Mapping[str, Any]) -> dict[str, Any]:
        size, base = weights.size_bytes(self.model), weights.size_bytes(self.source)
        names = ("quantize_seconds", "peak_memory_bytes", "group_size")
        counts = ("calibration_rows_read", "calibration_rows_used", "calibration_rows_chopped")
        return {
            "method": self.method.name,
            "size_bytes": size,
            "base_size_bytes": base,
            "size_ratio": size / base,
            "bits_per_weight": 8 * size / made["weight_count"],
            **{name: made[name] for name in (*names, *counts)},
        }

    def _finish(
        self, sizes: Mapping[str, Any], made: Mapping[str, Any], base: Mapping[str, Any], quantized: Mapping[str, Any]
    ) -> RecipeResult:
        difference = quality.compare(base["measurement"], quantized["measurement"])
        seconds = quantized["load_seconds"] + quantized["measurement"].generate_seconds
        self._engine(engine_of(self.method.family), True, "measured, and generated the samples", seconds)
        limit, ratio = self.config.ratio_limit, difference.perplexity_ratio
        samples = [
            {"prompt": prompt, "base": one, "quantized": other}
            for prompt, one, other in zip(
                self.prompts, base["measurement"].samples, quantized["measurement"].samples, strict=True
            )
        ]
        details = {
            **made,
            "evaluation_rows": base["evaluation_rows"],
            "evaluation_windows": base["windows"],
            "base_measure_peak_memory_bytes": base["peak_memory_bytes"],
            "measure_peak_memory_bytes": quantized["peak_memory_bytes"],
        }
        result = {**sizes, **asdict(difference)}
        told = (
            f"Perplexity {difference.perplexity:.3f} against {difference.base_perplexity:.3f} unquantized: {ratio:.4f}"
            f" times (limit {limit:g}); most likely token the same at {difference.top1_agreement:.1%} of"
            f" {difference.positions} positions; size {sizes['size_ratio']:.3f} of the unquantized model's."
        )
        self.report.log(told)
        if not ratio <= limit:  # also refuses NaN
            message = (
                f"The quantized model's perplexity on held-out text is {_words(ratio)} times the unquantized model's, more"
                f" than max_perplexity_ratio = {limit:g}; it was not published, and the report is attached. Use more"
                " calibration rows, another method or more bits, leave layers alone with options.ignore, or raise the limit."
            )
            raise self._failure("QUALITY_TOO_LOW", message, result, details, samples)
        self._try_further_engines()
        result["engines"] = self.engines
        self._report(told, result, details, samples, served=_SERVED)
        facts = {
            "base_model": self.config.model,
            "method": self.method.name,
            "bits": self.config.bits,
            **({"task": self.task} if self.task else {}),
            **{name: result[name] for name in ("group_size", "size_ratio", "perplexity_ratio", "top1_agreement")},
        }
        return RecipeResult(
            result,
            {
                "model": OutputArtifact(self.model, "quantized_model", facts),
                "report": OutputArtifact(self.workdir / "output" / "report", "report", facts),
            },
        )

    def _try_further_engines(self) -> None:
        """Load the output with engines other than the one that it was measured with."""
        for check in ENGINE_CHECKS.get(self.method.family, ()):
            same = check.family == self.method.family
            if not same and check.family not in self.pythons:
                detail = f"not tried: this worker has no environment of the family {check.family}"
                self._engine(check.engine, False, detail, 0.0)
                continue
            self.report.phase(f"loading by {check.engine}")
            begun = time.monotonic()
            arguments = {"directory": str(self.model), "load": check.load, "prompt": _PROMPT}
            try:
                found = self._step("engine", arguments, None if same else self.pythons[check.family])
                self._engine(check.engine, True, str(found["detail"]), time.monotonic() - begun)
            except MartletError as error:
                self._engine(check.engine, False, error.message, time.monotonic() - begun)

    def _engine(self, engine: str, loaded: bool, detail: str, seconds: float) -> None:
        self.engines.append({"engine": engine, "loaded": loaded, "detail": detail[:500], "seconds": round(seconds, 2)})

    def _failure(
        self,
        reason: str,
        message: str,
        result: Mapping[str, Any],
        details: Mapping[str, Any],
        samples: list[dict[str, str]] | None = None,
    ) -> FailedWithResult:
        values = {**result, "engines": self.engines}
        self._report(message, values, details, samples or [])
        finite = {k: v for k, v in values.items() if not isinstance(v, float) or math.isfinite(v)}
        attached = OutputArtifact(self.workdir / "output" / "report", "report", {"base_model": self.config.model})
        error = FailedPrecondition(message, reason=reason)
        return FailedWithResult(error, RecipeResult(finite, {"report": attached}))

    def _report(
        self,
        verdict: str,
        result: Mapping[str, Any],
        details: Mapping[str, Any],
        samples: list[dict[str, str]],
        *,
        served: str = "",
    ) -> None:
        facts = {
            "spec": self.config.model_dump(mode="json"),
            "verdict": verdict,
            "limit": self.config.ratio_limit,
            "result": result,
            "samples": samples,
            **({"served": served} if served else {}),
            "details": details,
            "versions": {"python": platform.python_version(), **_versions()},
        }
        write_report(self.workdir / "output" / "report", facts)


def _versions() -> dict[str, str]:
    found = {}
    for name in _LIBRARIES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def _words(ratio: float) -> str:
    return f"{ratio:.4g}" if math.isfinite(ratio) else "not a finite number of"

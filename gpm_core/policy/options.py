"""What an iterated alignment is told: the options of its stages."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from gpm_core.integrations.trl_gpo import GPOConfig

Engine = Literal["auto", "transformers", "vllm"]
Opponents = Literal["group", "nash", "start", "previous"]
Tune = Literal["lora", "full"]

ENGINES = ("auto", "transformers", "vllm")
OPPONENTS = ("group", "nash", "start", "previous")
TUNES = ("lora", "full")
#: What a run sets by itself: where it writes, and what its other options say.
_RESERVED = (
    "output_dir",
    "seed",
    "data_seed",
    "disable_tqdm",
    "remove_unused_columns",
    "objective",
    "iteration",
    "text_format",
    "model_init_kwargs",
    "max_length",
)
_DTYPES = ("float32", "float64", "bfloat16", "float16")
#: Objectives that take the probabilities or scores of all pairs of a group, and nothing else.
_OF_PAIRS = ("online_ipo", "dsppo")


@dataclass(frozen=True)
class SamplingOptions:
    """How responses are sampled.

    Attributes:
        responses: K, to each prompt.
        max_new_tokens: most tokens of a response, its EOS token included.
        temperature, top_p: of sampling; 1 and 1 sample from the policy itself, which is what the
            objectives' log-ratios are about.
        max_prompt_length: prompts with more tokens are left out; None: all are kept.
        engine: "transformers" (``generate``), "vllm", or "auto": vLLM where it is installed and
            there is a GPU.
        batch_size: responses that ``generate`` samples at a time. vLLM sees to it by itself.
        shard_size: prompts per file; what a killed run has to do again is at most one file.

    Raises:
        ValueError: for a number out of its range, or an unknown engine.
    """

    responses: int = 5
    max_new_tokens: int = 256
    temperature: float = 1.0
    top_p: float = 1.0
    max_prompt_length: int | None = 512
    engine: Engine = "auto"
    batch_size: int = 64
    shard_size: int = 64

    def __post_init__(self) -> None:
        for name in ("max_new_tokens", "max_prompt_length", "batch_size", "shard_size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1; got {value}")
        if self.responses < 2:
            raise ValueError(f"responses must be at least 2, a group; got {self.responses}")
        if not 0 < self.temperature < math.inf:
            raise ValueError(f"temperature must be finite and above 0; got {self.temperature}")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must be in (0, 1]; got {self.top_p}")
        if self.engine not in ENGINES:
            raise ValueError(f"engine must be one of {', '.join(ENGINES)}; got {self.engine!r}")


@dataclass(frozen=True)
class GPOOptions:
    """All that decides the outcome of a run, beside the prompts and the number of iterations.

    Attributes:
        policy: local folder or hub name of the causal language model to start from.
        judge: of a preference model, as :func:`gpm_core.models.load_model` takes it.
        objective: of :class:`gpm_core.integrations.trl_gpo.GPOConfig`: "gpo", "sppo", "dpo", ...
        opponents: whom responses are scored against: the other responses of the "group" (blind to
            cycles within it), the "nash" mixture of the group, or as many samples of the "start"
            policy, or of the "previous" iterate, to the same prompt.
        prompts_per_iteration: how many prompts an iteration has, drawn without replacement until
            all have been used; None: each iteration has all of them.
        sampling: see :class:`SamplingOptions`.
        tune: "lora" (one adapter, which all iterations go on with) or "full".
        lora_rank, lora_alpha, lora_dropout: of the adapter; alpha None is twice the rank.
        trainer: fields of ``GPOConfig`` by name: beta, learning_rate, num_train_epochs, ...
        policy_options: for ``from_pretrained`` of the policy: ``dtype`` (a name, as "bfloat16"; of
            16 bits only with "lora", whose adapter is in float32), ``gguf_file``, ...
        vllm_options: for ``vllm.LLM``: ``gpu_memory_utilization``, ``tensor_parallel_size``, ...
        text_format: how prompts are rendered for the policy: "chat", "plain", or None: as its
            tokenizer says.
        heldout_fraction: share of the prompts on which iterates are evaluated, where no file of
            them is given.
        heldout_prompts: most of them that are used.
        heldout_responses: sampled from each iterate to each held-out prompt; None: as many as to
            train on.
        eval_judges: further preference models that iterates are evaluated by, and not trained for.
        judge_batch_size: texts per pass of a judge.
        seed: of the division, order of prompts, samples and training.

    Raises:
        TypeError: if ``trainer`` holds what is no field of ``GPOConfig``.
        ValueError: for a value out of its range, or a field that the run sets by itself.
    """

    policy: str
    judge: str
    objective: str = "gpo"
    opponents: Opponents = "group"
    prompts_per_iteration: int | None = None
    sampling: SamplingOptions = field(default_factory=SamplingOptions)
    tune: Tune = "lora"
    lora_rank: int = 16
    lora_alpha: float | None = None
    lora_dropout: float = 0.0
    trainer: dict[str, Any] = field(default_factory=dict)
    policy_options: dict[str, Any] = field(default_factory=dict)
    vllm_options: dict[str, Any] = field(default_factory=dict)
    text_format: str | None = None
    heldout_fraction: float = 0.1
    heldout_prompts: int | None = None
    heldout_responses: int | None = None
    eval_judges: tuple[str, ...] = ()
    judge_batch_size: int = 32
    seed: int = 0

    def __post_init__(self) -> None:
        for name, known in (("opponents", OPPONENTS), ("tune", TUNES)):
            if getattr(self, name) not in known:
                raise ValueError(
                    f"{name} must be one of {', '.join(known)}; got {getattr(self, name)!r}"
                )
        for name in (
            "prompts_per_iteration",
            "lora_rank",
            "heldout_prompts",
            "heldout_responses",
            "judge_batch_size",
        ):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1; got {getattr(self, name)}")
        if not 0 < self.heldout_fraction < 1:
            raise ValueError(
                f"heldout_fraction must be between 0 and 1; got {self.heldout_fraction}"
            )
        if self.opponents != "group" and self.objective in _OF_PAIRS:
            raise ValueError(
                f"{self.objective!r} compares the responses of a group with each other: leave "
                f"opponents at 'group'; got {self.opponents!r}"
            )
        self._check_dtype()
        reserved = sorted(set(_RESERVED) & set(self.trainer))
        if reserved:
            raise ValueError(f"the run sets {', '.join(reserved)} by itself: leave it out")
        unknown = sorted(set(self.trainer) - gpo_fields())
        if unknown:
            raise TypeError(f"{', '.join(unknown)} is no field of GPOConfig")

    def _check_dtype(self) -> None:
        dtype = self.policy_options.get("dtype", "float32")
        if dtype not in _DTYPES:
            raise ValueError(f"dtype must be one of {', '.join(_DTYPES)}; got {dtype!r}")
        if self.tune == "full" and dtype not in ("float32", "float64"):
            raise ValueError(
                f"weights in {dtype} would round small steps away: train in full in float32 (with "
                "bf16=True in trainer for mixed precision), or with tune='lora'"
            )

    @property
    def scores_tau(self) -> float | None:
        """Temperature of scores that the objective turns into probabilities itself, or None."""
        if self.objective != "dsppo":
            return None
        tau: float = self.trainer.get("tau", 0.1)
        return tau

    @property
    def heldout_count(self) -> int:
        """Responses of each iterate to a held-out prompt."""
        given = self.heldout_responses
        return self.sampling.responses if given is None else given

    def as_dict(self) -> dict[str, Any]:
        """As JSON."""
        values = asdict(self)
        values["eval_judges"] = list(self.eval_judges)
        return values

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> GPOOptions:
        """What :meth:`as_dict` gave."""
        given = {**values, "sampling": SamplingOptions(**values["sampling"])}
        return cls(**{**given, "eval_judges": tuple(values["eval_judges"])})


def training_config(
    options: GPOOptions, iteration: int, output_dir: Path, *, progress: bool
) -> GPOConfig:
    """What the trainer of an iteration is told.

    Args:
        options: of the run.
        iteration: from 1.
        output_dir: of its checkpoints.
        progress: show a progress bar on stderr.

    Raises:
        TypeError, ValueError: for fields that do not fit the objective, each other, or the machine.
    """
    import torch

    from gpm_core.integrations.trl_gpo import GPOConfig

    on_gpu = torch.cuda.is_available()
    wide = on_gpu and torch.cuda.is_bf16_supported(including_emulation=False)
    defaults: dict[str, Any] = {
        "report_to": "none",
        "save_strategy": "steps",
        # Of all steps: what a stopped training has to do again at most.
        "save_steps": 0.25,
        "save_total_limit": 2,
        "logging_steps": 10,
        "num_train_epochs": 1,
        "per_device_train_batch_size": 1,
        "bf16": wide and not options.trainer.get("fp16"),
        "use_cpu": not on_gpu,
        "dataloader_pin_memory": on_gpu,
        "disable_dropout": options.lora_dropout == 0,
    }
    config = GPOConfig(
        output_dir=str(output_dir),
        seed=options.seed + iteration,
        disable_tqdm=not progress,
        objective=options.objective,
        iteration=iteration if options.objective == "dsppo" else None,
        # What is too long was left out as a prompt, and sampling ended responses.
        max_length=None,
        **{**defaults, **options.trainer},
    )
    if on_gpu and config.n_gpu > 1:
        # One process is to use one GPU; several processes use several.
        config._n_gpu = 1
    return config


def gpo_fields() -> frozenset[str]:
    """Names of the fields of ``GPOConfig``."""
    # transformers' trainer takes seconds to import.
    from gpm_core.integrations.trl_gpo import GPOConfig

    return frozenset(field.name for field in dataclasses.fields(GPOConfig) if field.init)

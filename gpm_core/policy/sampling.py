"""The stage that samples responses to prompts from a policy."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig

from gpm_core.integrations.trl_gpo_logps import contiguous_head
from gpm_core.models._batches import evaluating
from gpm_core.policy.options import GPOOptions, SamplingOptions
from gpm_core.policy.shards import read_group, write_rows

#: Options for loading a policy that mean the same to vLLM.
VLLM_OPTIONS = ("dtype", "revision")

#: (token ids of prompts, responses to each, seed) to the token ids of the responses.
Sampler = Callable[[Sequence[Sequence[int]], int, int], list[list[list[int]]]]


def resolve_engine(options: GPOOptions) -> str:
    """The engine that "auto" stands for, or the one that was chosen.

    Raises:
        ModuleNotFoundError: for vLLM where it is not installed.
        ValueError: for vLLM and a policy that it would not load as transformers does.
    """
    engine = options.sampling.engine
    installed = importlib.util.find_spec("vllm") is not None
    alien = sorted(set(options.policy_options) - set(VLLM_OPTIONS))
    if engine == "auto":
        fits = installed and torch.cuda.is_available() and not alien
        return "vllm" if fits else "transformers"
    if engine == "vllm" and not installed:
        raise ModuleNotFoundError("engine 'vllm' needs the package vllm: pip install vllm")
    if engine == "vllm" and alien:
        raise ValueError(
            f"engine 'vllm' does not load policies with {', '.join(alien)}: choose 'transformers'"
        )
    return engine


def shard_seed(seed: int, number: int) -> int:
    """Seed of a file's samples: what is sampled does not depend on which process does it."""
    return (seed * 1_000_003 + number) % 2**31


class TransformersSampler:
    """Samples with ``generate`` of transformers.

    Args:
        model: a causal language model, on its device.
        tokenizer: for its EOS and padding tokens.
        options: how; settings that the model's own generation configuration has beside these
            (top_k, penalties, ...) do not apply: samples are to be the policy's.
    """

    def __init__(self, model: Any, tokenizer: Any, options: SamplingOptions) -> None:
        self._model, self._options = model, options
        self._ends = end_ids(model, tokenizer)
        padding = tokenizer.pad_token_id
        self._padding = int(self._ends[0] if padding is None else padding)
        self._config = GenerationConfig(
            do_sample=True,
            temperature=options.temperature,
            top_p=options.top_p,
            top_k=0,
            max_new_tokens=options.max_new_tokens,
            eos_token_id=self._ends,
            pad_token_id=self._padding,
        )

    @torch.no_grad()
    def __call__(
        self, prompts: Sequence[Sequence[int]], count: int, seed: int
    ) -> list[list[list[int]]]:
        """``count`` responses to each prompt, up to their EOS token and with it."""
        order = sorted(range(len(prompts)), key=lambda i: (-len(prompts[i]), i))
        size = max(1, self._options.batch_size // count)
        found: list[list[list[int]]] = [[] for _ in prompts]
        devices = [self._model.device] if self._model.device.type == "cuda" else []
        with torch.random.fork_rng(devices), evaluating(self._model):
            torch.manual_seed(seed)
            for start in range(0, len(order), size):
                members = order[start : start + size]
                rows = self._generate([prompts[i] for i in members], count)
                for place, i in enumerate(members):
                    found[i] = rows[place * count : (place + 1) * count]
        return found

    def _generate(self, prompts: Sequence[Sequence[int]], count: int) -> list[list[int]]:
        width = max(map(len, prompts))
        ids = torch.full((len(prompts), width), self._padding)
        mask = torch.zeros_like(ids)
        for row, prompt in enumerate(prompts):
            ids[row, width - len(prompt) :] = torch.tensor(prompt)
            mask[row, width - len(prompt) :] = 1
        with self._alone(), contiguous_head(self._model):
            output = self._model.generate(
                ids.to(self._model.device),
                attention_mask=mask.to(self._model.device),
                num_return_sequences=count,
            )
        return [self._cut(row) for row in output[:, width:].tolist()]

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Our settings in the place of the model's, which would fill in what ours leave open."""
        model = self._model
        inner = model.get_base_model() if hasattr(model, "get_base_model") else model
        before = inner.generation_config
        inner.generation_config = self._config
        try:
            yield
        finally:
            inner.generation_config = before

    def _cut(self, row: list[int]) -> list[int]:
        ended = [place for place, token in enumerate(row) if token in self._ends]
        return row[: ended[0] + 1] if ended else row


def end_ids(model: Any, tokenizer: Any) -> list[int]:
    """Tokens that end a response: the tokenizer's, and others that the model's settings name."""
    configured = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    others = configured if isinstance(configured, (list, tuple)) else [configured]
    ids = [int(tokenizer.eos_token_id), *(int(i) for i in others if i is not None)]
    return list(dict.fromkeys(ids))


def sample_shard(
    prompts: Path,
    number: int,
    sampler: Sampler,
    tokenizer: Any,
    ends: Sequence[int],
    *,
    count: int,
    seed: int,
    output: Path,
) -> None:
    """Write the responses to the prompts of a row group of a file.

    A row has ``prompt`` (messages as JSON), ``prompt_ids``, ``responses`` (texts, without special
    tokens), ``response_ids`` and ``finished`` (whether each ended by itself).

    Args:
        prompts: file of the prompts.
        number: of the row group, and of the file that is made of it.
        sampler: samples.
        tokenizer: of the policy.
        ends: tokens that end a response.
        count: responses to each prompt.
        seed: of the samples.
        output: the file to write.
    """
    rows = read_group(prompts, number)
    sampled = sampler([row["prompt_ids"] for row in rows], count, seed)
    written = []
    for row, responses in zip(rows, sampled, strict=True):
        texts = tokenizer.batch_decode(responses, skip_special_tokens=True)
        written.append(
            {
                "prompt": row["prompt"],
                "prompt_ids": row["prompt_ids"],
                "responses": [text.strip() for text in texts],
                "response_ids": responses,
                "finished": [ids[-1] in ends for ids in responses],
            }
        )
    write_rows(output, written)

"""``python -m gpm_core.policy.vllm_process REQUEST.json``: makes files of responses with vLLM.

Started by :func:`gpm_core.policy.vllm_engine.sample_with_vllm`; ends when its stdin does.
"""

from __future__ import annotations

import json
import os
import random
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import GenerationConfig

from gpm_core.models.loading import ADAPTER_CONFIG
from gpm_core.policy.models import load_tokenizer
from gpm_core.policy.options import GPOOptions
from gpm_core.policy.sampling import VLLM_OPTIONS, sample_shard, shard_seed
from gpm_core.policy.shards import run_shards

#: Ranks that vLLM has kernels for.
_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)


class VLLMSampler:
    """A sampler over ``vllm.LLM``, as :class:`gpm_core.policy.sampling.TransformersSampler`.

    Args:
        options: of the run.
        folder: of the iterate, an adapter or a whole model; None: the start.
        tokenizer: of the policy, for its EOS token.

    Raises:
        ValueError: for an adapter of a rank that vLLM does not have.
    """

    def __init__(self, options: GPOOptions, folder: Path | None, tokenizer: Any) -> None:
        import vllm
        from vllm.lora.request import LoRARequest

        adapter = folder is not None and (folder / ADAPTER_CONFIG).is_file()
        name = options.policy if folder is None or adapter else str(folder)
        kept = {k: v for k, v in options.policy_options.items() if k in VLLM_OPTIONS}
        if adapter:
            kept.update(enable_lora=True, max_lora_rank=max_lora_rank(options.lora_rank))
        # As transformers loads it: sampled from in the precision that it is trained in.
        settings = {"dtype": "float32", **kept, **options.vllm_options}
        self._engine = vllm.LLM(model=name, seed=options.seed, generation_config="vllm", **settings)
        self._vllm, self._sampling = vllm, options.sampling
        self._request = LoRARequest("iterate", 1, str(folder)) if adapter else None
        #: Tokens that end a response.
        self.ends = _end_ids(name, tokenizer)

    def __call__(
        self, prompts: Sequence[Sequence[int]], count: int, seed: int
    ) -> list[list[list[int]]]:
        """``count`` responses to each prompt, up to their EOS token and with it."""
        draw = random.Random(seed)
        settings = [
            self._vllm.SamplingParams(
                n=count,
                temperature=self._sampling.temperature,
                top_p=self._sampling.top_p,
                max_tokens=self._sampling.max_new_tokens,
                stop_token_ids=self.ends,
                # One for each: requests of equal seeds would draw equal numbers.
                seed=draw.getrandbits(31),
            )
            for _ in prompts
        ]
        outputs = self._engine.generate(
            [{"prompt_token_ids": list(prompt)} for prompt in prompts],
            settings,
            lora_request=self._request,
            use_tqdm=False,
        )
        return [[list(response.token_ids) for response in each.outputs] for each in outputs]


def max_lora_rank(rank: int) -> int:
    """The least rank of vLLM's that holds adapters of this one.

    Raises:
        ValueError: above 512.

    Example:
        >>> max_lora_rank(24)
        32
    """
    fitting = [known for known in _RANKS if known >= rank]
    if not fitting:
        raise ValueError(f"vLLM has adapters of rank {_RANKS[-1]} at most; got {rank}")
    return fitting[0]


def _end_ids(name: str, tokenizer: Any) -> list[int]:
    """The tokenizer's EOS token, and others that the model's generation settings name."""
    try:
        configured = GenerationConfig.from_pretrained(name).eos_token_id
    except OSError:
        configured = None
    others = configured if isinstance(configured, list) else [configured]
    ids = [int(tokenizer.eos_token_id), *(int(i) for i in others if i is not None)]
    return list(dict.fromkeys(ids))


def main(path: str) -> None:
    """Do what a request asks for."""
    request = json.loads(Path(path).read_text(encoding="utf-8"))
    options = GPOOptions.from_dict(request["options"])
    folder = None if request["folder"] is None else Path(request["folder"])
    tokenizer = load_tokenizer(options)
    sampler = VLLMSampler(options, folder, tokenizer)

    def work(number: int, partial: Path) -> None:
        sample_shard(
            Path(request["prompts"]),
            number,
            sampler,
            tokenizer,
            sampler.ends,
            count=request["count"],
            seed=shard_seed(request["seed"], number),
            output=partial,
        )

    paths = [Path(each) for each in request["paths"]]
    run_shards(
        paths, request["numbers"], work, title=request["title"], progress=request["progress"]
    )


def _end_with_stdin() -> None:
    def wait() -> None:
        sys.stdin.read()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


if __name__ == "__main__":
    _end_with_stdin()
    main(sys.argv[1])

"""Samples with vLLM, in a process of its own.

vLLM keeps most of a GPU's memory and a process group for as long as its process lives, so each use
of it is a process: ``python -m gpm_core.policy.vllm_engine REQUEST.json``, see
:func:`sample_with_vllm`. It reads the prompts and writes the files of the stage itself.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gpm_core.data.files import atomic_file
from gpm_core.models.loading import ADAPTER_CONFIG
from gpm_core.policy.models import load_tokenizer
from gpm_core.policy.options import GPOOptions, SamplingOptions
from gpm_core.policy.sampling import sample_shard, shard_seed
from gpm_core.policy.shards import Processes

#: What tells a process that it is one of several: vLLM is to be one of its own.
_WORLD = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def sample_with_vllm(
    options: GPOOptions,
    folder: Path | None,
    prompts: Path,
    paths: Sequence[Path],
    numbers: Sequence[int],
    processes: Processes,
    *,
    count: int,
    seed: int,
) -> None:
    """Make the files ``numbers`` of a sampling stage in a new process on this process's GPU.

    Args:
        options: of the run.
        folder: of the iterate to sample from, None: the start.
        prompts: file of the prompts.
        paths: all files of the stage.
        numbers: which of them to make.
        processes: of which this is one.
        count: responses to each prompt.
        seed: of the stage.

    Raises:
        RuntimeError: if the process fails; what it said is on stderr.
    """
    if not numbers:
        return
    request = {
        "options": options.as_dict(),
        "folder": None if folder is None else str(folder),
        "prompts": str(prompts),
        "shards": [[number, str(paths[number])] for number in numbers],
        "count": count,
        "seed": seed,
    }
    environment = {name: value for name, value in os.environ.items() if name not in _WORLD}
    visible = [name for name in environment.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    local = processes.local_index
    environment["CUDA_VISIBLE_DEVICES"] = visible[local] if visible else str(local)
    with tempfile.TemporaryDirectory() as where:
        file = Path(where) / "request.json"
        file.write_text(json.dumps(request), encoding="utf-8")
        command = [sys.executable, "-m", "gpm_core.policy.vllm_engine", str(file)]
        finished = subprocess.run(command, env=environment, check=False)
    if finished.returncode:
        raise RuntimeError(f"sampling with vLLM failed (exit status {finished.returncode})")


class VLLMSampler:
    """A sampler over ``vllm.LLM``, as :class:`gpm_core.policy.sampling.TransformersSampler`.

    Args:
        options: of the run.
        folder: of the iterate, an adapter or a whole model; None: the start.
    """

    def __init__(self, options: GPOOptions, folder: Path | None) -> None:
        import vllm
        from vllm.lora.request import LoRARequest

        self._vllm, self._sampling = vllm, options.sampling
        adapter = folder is not None and (folder / ADAPTER_CONFIG).is_file()
        name = options.policy if folder is None or adapter else str(folder)
        kept: dict[str, Any] = {
            k: v for k, v in options.policy_options.items() if k in ("dtype", "revision")
        }
        if adapter:
            kept.update(enable_lora=True, max_lora_rank=max(8, options.lora_rank))
        self._engine = vllm.LLM(model=name, seed=options.seed, generation_config="vllm", **kept)
        self._request = LoRARequest("iterate", 1, str(folder)) if adapter else None

    def ends(self, tokenizer: Any) -> list[int]:
        """Tokens that end a response."""
        return [int(tokenizer.eos_token_id)]

    def __call__(
        self, prompts: Sequence[Sequence[int]], count: int, seed: int
    ) -> list[list[list[int]]]:
        """``count`` responses to each prompt, up to their EOS token and with it."""
        settings = self._vllm.SamplingParams(
            n=count,
            temperature=self._sampling.temperature,
            top_p=self._sampling.top_p,
            max_tokens=self._sampling.max_new_tokens,
            seed=seed,
        )
        outputs = self._engine.generate(
            [{"prompt_token_ids": list(prompt)} for prompt in prompts],
            settings,
            lora_request=self._request,
            use_tqdm=False,
        )
        return [[list(response.token_ids) for response in each.outputs] for each in outputs]


def main(path: str) -> None:
    """Do what a request asks for."""
    request = json.loads(Path(path).read_text(encoding="utf-8"))
    values = dict(request["options"])
    values["sampling"] = SamplingOptions(**values["sampling"])
    values["eval_judges"] = tuple(values["eval_judges"])
    options = GPOOptions(**values)
    folder = None if request["folder"] is None else Path(request["folder"])
    tokenizer = load_tokenizer(options)
    sampler = VLLMSampler(options, folder)
    size = options.sampling.shard_size
    for number, target in request["shards"]:
        with atomic_file(target) as partial:
            sample_shard(
                Path(request["prompts"]),
                number * size,
                (number + 1) * size,
                sampler,
                tokenizer,
                sampler.ends(tokenizer),
                count=request["count"],
                seed=shard_seed(request["seed"], number),
                output=partial,
            )


if __name__ == "__main__":
    main(sys.argv[1])

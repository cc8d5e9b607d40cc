"""What gpm_core uses of vLLM's interface, over transformers.

vLLM needs a GPU or a build of its own. What is tested with this is our side: the process, the
requests, the adapters, the files. Arguments that vLLM does not have are refused, as there.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from transformers import AutoModelForCausalLM


@dataclass
class SamplingParams:
    n: int = 1
    temperature: float = 1.0
    top_p: float = 1.0
    max_tokens: int = 16
    stop_token_ids: list[int] | None = None
    seed: int | None = None


class LLM:
    def __init__(
        self,
        model: str,
        *,
        seed: int = 0,
        generation_config: str = "auto",
        dtype: str = "auto",
        revision: str | None = None,
        enable_lora: bool = False,
        max_lora_rank: int = 16,
    ) -> None:
        assert generation_config == "vllm"
        assert max_lora_rank in (1, 8, 16, 32, 64, 128, 256, 320, 512)
        self._model: Any = AutoModelForCausalLM.from_pretrained(model, revision=revision)
        self._lora = enable_lora

    def generate(
        self,
        prompts: list[dict[str, list[int]]],
        sampling_params: list[SamplingParams],
        *,
        use_tqdm: bool = True,
        lora_request: Any = None,
    ) -> list[Any]:
        if lora_request is not None:
            import peft

            assert self._lora
            if not isinstance(self._model, peft.PeftModel):
                self._model = peft.PeftModel.from_pretrained(self._model, lora_request.lora_path)
        return [self._one(*each) for each in zip(prompts, sampling_params, strict=True)]

    def _one(self, prompt: dict[str, list[int]], params: SamplingParams) -> Any:
        """A request by itself: with a seed of its own, its numbers are those of the seed."""
        torch.manual_seed(params.seed or 0)
        ids = torch.tensor([prompt["prompt_token_ids"]])
        rows = self._model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            do_sample=True,
            top_k=0,
            temperature=params.temperature,
            top_p=params.top_p,
            max_new_tokens=params.max_tokens,
            num_return_sequences=params.n,
        )[:, ids.shape[1] :].tolist()
        ends = params.stop_token_ids or []
        outputs = []
        for row in rows:
            ended = [place for place, token in enumerate(row) if token in ends]
            kept = row[: ended[0] + 1] if ended else row
            outputs.append(SimpleNamespace(token_ids=kept))
        return SimpleNamespace(outputs=outputs)

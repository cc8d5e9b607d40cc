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
        self._model: Any = AutoModelForCausalLM.from_pretrained(model, revision=revision)
        self._lora = enable_lora

    def generate(
        self,
        prompts: list[dict[str, list[int]]],
        sampling_params: SamplingParams,
        *,
        use_tqdm: bool = True,
        lora_request: Any = None,
    ) -> list[Any]:
        model = self._model
        if lora_request is not None:
            import peft

            assert self._lora
            if not isinstance(model, peft.PeftModel):
                model = self._model = peft.PeftModel.from_pretrained(model, lora_request.lora_path)
        torch.manual_seed(sampling_params.seed or 0)
        outputs = []
        for prompt in prompts:
            ids = torch.tensor([prompt["prompt_token_ids"]])
            rows = model.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                do_sample=True,
                top_k=0,
                temperature=sampling_params.temperature,
                top_p=sampling_params.top_p,
                max_new_tokens=sampling_params.max_tokens,
                num_return_sequences=sampling_params.n,
            )[:, ids.shape[1] :].tolist()
            end = model.generation_config.eos_token_id
            cut = [row[: row.index(end) + 1] if end in row else row for row in rows]
            outputs.append(SimpleNamespace(outputs=[SimpleNamespace(token_ids=row) for row in cut]))
        return outputs

"""What the tests of trainers share: a tiny preference model, pairs that it can learn, arguments."""

from __future__ import annotations

import pytest
import tiny_models
import torch
from tiny_models import TEMPLATE, learnable_pairs, tiny_tokenizer

pytest.importorskip("transformers", reason="the extra 'train' is not installed")

import transformers

from gpm_core.models import GeneralPreferenceModel

__all__ = ["learnable_pairs", "pair_model", "quiet", "save_tiny_backbone", "two_threads", "weights"]

#: What each Trainer of these tests is given: no reports, no bars, the processor.
quiet = {"use_cpu": True, "report_to": [], "disable_tqdm": True, "per_device_train_batch_size": 8}


@pytest.fixture(autouse=True)
def two_threads():
    """Instead of the fixture of this name: one thread, as tiny tensors only lose by more."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def pair_model(*, encoder: bool = False, chat: bool = True, seed: int = 0, **head):
    """A model of a tiny backbone with random weights; ``head`` are options of its configuration."""
    torch.manual_seed(seed)
    sizes = {
        "vocab_size": 80,
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "max_position_embeddings": 64,
    }
    kind = "Bert" if encoder else "Llama"
    config = getattr(transformers, f"{kind}Config")(**sizes)
    tokenizer = tiny_tokenizer(causal=not encoder)
    if chat and not encoder:
        tokenizer.chat_template = TEMPLATE
    backbone = getattr(transformers, f"{kind}Model")(config)
    return GeneralPreferenceModel.from_backbone(backbone, tokenizer=tokenizer, **head)


def save_tiny_backbone(folder) -> str:
    """A folder with a tiny causal language model and its tokenizer, which has a chat template."""
    return tiny_models.save_tiny_causal(folder, chat=True)


def weights(model) -> dict[str, torch.Tensor]:
    """A copy of all weights, without the adapter's names."""
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}

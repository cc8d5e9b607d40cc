"""The frozen layers of a decoder, run once: training the rest costs a fraction of the whole.

Layers that are not trained give the same hidden states in every epoch and for every head. They are
computed once, and become the embedding table of a shorter decoder, whose "token" number i is the
i-th position of all conversations. Models, collators and trainers see an ordinary transformers
model and need to know nothing of this.
"""

from __future__ import annotations

import copy
import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn
from tqdm import tqdm

from gpm_core.data.files import atomic_file
from gpm_core.models import Row, pad_rows
from gpm_core.models.storage import save_tensors


@dataclass(frozen=True)
class FrozenStates:
    """Hidden states (tokens, H) below the trained layers; row i's start at ``starts[i]``."""

    states: Tensor
    starts: list[int]
    rows: list[Row]

    def row(self, i: int) -> Row:
        """Conversation i as "tokens" of the shorter decoder."""
        start, row = self.starts[i], self.rows[i]
        return Row(list(range(start, start + len(row.ids))), row.prompt_length)


@torch.no_grad()
def frozen_states(
    backbone: Any, rows: list[Row], trained: int, path: Path, batch_tokens: int = 4096
) -> FrozenStates:
    """Hidden states of ``rows`` after all but the last ``trained`` layers, kept in ``path``."""
    starts = [0, *itertools.accumulate(len(row.ids) for row in rows)]
    if not path.is_file():
        states = torch.empty(starts[-1], backbone.config.hidden_size, dtype=torch.bfloat16)
        lower = _layers(backbone, 0, backbone.config.num_hidden_layers - trained)
        lower.norm = nn.Identity()
        for layer in lower.layers:
            # Half of a layer's time on a processor is element-wise work, which inductor fuses.
            layer.compile(dynamic=True)
        order = sorted(range(len(rows)), key=lambda i: -len(rows[i].ids))
        with tqdm(total=len(rows), desc="frozen layers", unit="text") as bar:
            while order:
                count = max(1, batch_tokens // len(rows[order[0]].ids))
                batch, order = order[:count], order[count:]
                ids, mask, _ = pad_rows([rows[i] for i in batch], 0)
                hidden = lower(input_ids=ids, attention_mask=mask, use_cache=False)[0]
                for place, i in enumerate(batch):
                    length = len(rows[i].ids)
                    states[starts[i] : starts[i] + length] = hidden[place, :length]
                bar.update(len(batch))
        with atomic_file(path) as partial:
            save_tensors(partial, {"states": states})
    with safe_open(path, "pt") as file:
        states = file.get_tensor("states")
    if len(states) != starts[-1]:
        raise ValueError(f"{path} holds {len(states)} states, the texts have {starts[-1]} tokens")
    return FrozenStates(states, starts[:-1], rows)


def upper_decoder(backbone: Any, frozen: FrozenStates, trained: int) -> Any:
    """The last ``trained`` layers with weights of their own, over the frozen states."""
    count = backbone.config.num_hidden_layers
    upper = _layers(backbone, count - trained, count)
    upper.layers = copy.deepcopy(upper.layers).float()
    upper.norm = copy.deepcopy(upper.norm).float()
    for i, layer in enumerate(upper.layers):
        layer.self_attn.layer_idx = i
        layer.compile(dynamic=True)
    upper.config.vocab_size = len(frozen.states)
    upper.embed_tokens = _States(frozen.states)
    return upper


class _States(nn.Module):
    """An embedding whose table is 16 bits wide, and no parameter: neither trained nor stored."""

    def __init__(self, states: Tensor) -> None:
        super().__init__()
        self.states = states

    def forward(self, ids: Tensor) -> Tensor:
        return self.states[ids].float()


def _layers(backbone: Any, first: int, end: int) -> Any:
    """A decoder that shares layers ``first`` to ``end`` of ``backbone``."""
    part = copy.copy(backbone)
    part.config = copy.deepcopy(backbone.config)
    part.config.num_hidden_layers = end - first
    # A shallow copy shares the dictionary of modules, which is about to differ.
    part._modules = dict(backbone._modules)
    part.layers = nn.ModuleList(list(backbone.layers[first:end]))
    return part

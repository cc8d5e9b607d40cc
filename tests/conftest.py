from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import targets
import torch

from gpm_core import testing

targets.interpret_triton_without_gpu()

REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.fixture
def shared_data() -> Path:
    """Public data sets beside the checkout; the project does not ship them."""
    folder = REPOSITORY.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"needs the data sets in {folder}, which the project does not ship")
    return folder


@pytest.fixture
def nan_filled() -> Iterator[None]:
    with testing.nan_filled_empty():
        yield


@pytest.fixture(autouse=True)
def two_threads() -> Iterator[None]:
    """Kernels take their parallel path also on machines where PyTorch would use one thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)

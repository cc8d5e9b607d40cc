"""The CUDA kernels in a compiled module, by the names in their sources."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from benchmarks.kernels.cubin import Missing, Usage, functions

DTYPES = {"double": "float64", "float": "float32", "__nv_bfloat16": "bfloat16", "__half": "float16"}
SHARED_BY_ALL = "all matrices, backward"
#: Template arguments that the name of the operation says already.
_SAID = {"Probability", "RawScore", "true", "false"}
#: Templates around the arguments of an operation.
_AROUND = {"Work", "Together"}


@dataclass(frozen=True, order=True)
class Kernel:
    """A kernel, and the operation that launches it."""

    operation: str
    name: str  # with those template arguments that tell it from others of the operation
    dtype: str


def module_path() -> Path:
    """The installed module, if it has CUDA kernels."""
    try:
        import gpm_core._C as module
    except ImportError as error:
        raise Missing(f"gpm_core._C: {error} (pip install -e .)") from None
    if module.build_info()["cuda"] is None:
        raise Missing(
            "gpm_core._C was built without CUDA. Build it where nvcc is "
            "(GPM_CORE_BUILD=cuda pip install -e .), or name a module that has it with --module"
        )
    return Path(module.__file__)


def _tokens(symbol: str) -> list[str]:
    """Names, numbers and truth values of a mangled symbol, in their order."""
    pattern = re.compile(
        r"L(?P<kind>[ib])(?P<value>\d+)E|S\d*_|(?P<length>\d+)|I(?P<builtin>[df])|."
    )
    tokens, at = [], 0
    while found := pattern.match(symbol, at):
        at = found.end()
        if found["kind"]:
            of_bool = {"0": "false", "1": "true"}
            tokens.append(found["value"] if found["kind"] == "i" else of_bool[found["value"]])
        elif found["length"]:
            at += int(found["length"])
            tokens.append(symbol[found.end() : at])
        elif found["builtin"]:
            tokens.append({"d": "double", "f": "float"}[found["builtin"]])
    return [token for token in tokens if not token.startswith("_GLOBAL__N")]


def _operation(kernel: str, arguments: list[str], struct: str) -> str:
    if kernel == "sum_partial":
        return SHARED_BY_ALL
    if kernel in ("forward", "backward"):
        name = "PreferenceEmbeddingBackward" if struct == "Backward" else struct
        return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower()
    base = "probability_matrix" if "Probability" in arguments else "score_matrix"
    if kernel == "small_matrices":
        return f"{base}, cross_{base}"
    crossed = "" if arguments[-1] == "true" else "cross_"
    return crossed + base + ("_backward" if struct.endswith("Backward") else "")


def kernel_of(symbol: str) -> Kernel | None:
    """The kernel of a mangled symbol; None for a function that is not one of ours."""
    tokens = _tokens(symbol)
    if tokens[:2] != ["gpm", "cuda"] or len(tokens) < 5 or tokens[3] not in DTYPES:
        return None
    name, dtype, struct = tokens[2], DTYPES[tokens[3]], tokens[-1]
    arguments = [token for token in tokens[4:-1] if token not in _AROUND]
    telling = [token for token in arguments if token not in _SAID]
    shown = f"{name}<{', '.join(telling)}>" if telling else name
    return Kernel(_operation(name, arguments, struct), shown, dtype)


def usages(module: Path) -> dict[Kernel, dict[int, Usage]]:
    """What each kernel uses on each architecture (by its compute capability).

    A kernel that several files define is there several times, with the same code.
    """
    found: dict[Kernel, dict[int, Usage]] = {}
    for function in functions(module):
        kernel = kernel_of(function.symbol)
        if kernel is None:
            raise ValueError(f"no kernel of gpm::cuda: {function.symbol}")
        found.setdefault(kernel, {})[function.capability] = function.usage
    return dict(sorted(found.items()))

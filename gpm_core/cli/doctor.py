"""``gpm-core doctor``: what is installed, what computes each operation, and why not another."""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Iterator

import click
import tabulate
import torch

from gpm_core import backends, ops
from gpm_core._version import __version__
from gpm_core.backends import native

_PACKAGES = (
    *("torch", "triton", "transformers", "safetensors", "datasets", "trl", "peft", "accelerate"),
    *("pyarrow", "scipy", "matplotlib", "tqdm"),
)
_DTYPES = {
    "float64": torch.float64,
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


def _versions() -> Iterator[tuple[str, str]]:
    yield "gpm_core", __version__
    yield "python", platform.python_version()
    yield "machine", f"{platform.system()} {platform.machine()}"
    for package in _PACKAGES:
        try:
            yield package, importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            extra = "triton" if package == "triton" else "train"
            yield package, f'not installed (pip install "gpm_core[{extra}]")'
    yield "devices", ", ".join(["cpu", *(["cuda"] if torch.cuda.is_available() else [])])


def _build() -> Iterator[tuple[str, str]]:
    try:
        info = native.build_info()
    except ValueError as error:  # GPM_CORE_SIMD names what cannot be
        yield "compiled module", f"unusable: {error}"
        return
    if info is None:
        yield "compiled module", f"absent: {native.why_not('score', 'cpu', torch.float32)}"
        return
    yield "compiled module", f"version {info['version']}"
    yield "compiler", str(info["compiler"])
    yield "OpenMP", str(info["openmp"])
    yield "SIMD level", str(info["simd"])
    yield "CUDA", _cuda(info)
    yield "threads", f"{torch.get_num_threads()} (torch.set_num_threads)"


def _cuda(info: dict[str, object]) -> str:
    if info["cuda"] is None:
        return "not built"
    architectures = info["cuda_architectures"]
    assert isinstance(architectures, list)
    return f"{info['cuda']}, for {', '.join(architectures)}"


def _operations(device: str, dtype: torch.dtype) -> Iterator[tuple[str, str, str]]:
    for op in ops.__all__:
        try:
            used = backends.chosen(op, device, dtype)
        except (RuntimeError, ValueError) as error:
            yield op, "none", str(error)
            continue
        # A backend outside of the order of preference is used when asked for, never passed over.
        before = backends.ORDER[: backends.ORDER.index(used)] if used in backends.ORDER else ()
        passed_over = [
            f"{name}: {backends.why_not(name, op, device, dtype) or 'another was asked for'}"
            for name in before
        ]
        yield op, used, "; ".join(passed_over) or "-"


@click.command()
@click.option("--device", default="cpu", show_default=True, help="Device type, as torch names it.")
@click.option("--dtype", type=click.Choice(list(_DTYPES)), default="float32", show_default=True)
def command(device: str, dtype: str) -> None:
    """Say what is installed and what is used, and why."""
    try:
        device_type = torch.device(device).type
    except RuntimeError:
        raise click.BadParameter(
            f"{device!r} is no device; give one as torch names it, such as cpu or cuda",
            param_hint="--device",
        ) from None
    click.echo(tabulate.tabulate(list(_versions()), headers=["package", "version"]))
    click.echo()
    click.echo(tabulate.tabulate(list(_build()), headers=["build", ""]))
    click.echo()
    asked = backends.current()
    click.echo(
        f"Backends, in order: {', '.join(backends.names())}"
        + (f"; asked for: {asked}" * bool(asked))
    )
    headers = [f"operation ({device_type}, {dtype})", "backend", "passed over"]
    click.echo(tabulate.tabulate(list(_operations(device_type, _DTYPES[dtype])), headers=headers))

"""Samples with vLLM, in a process of its own.

vLLM keeps most of a GPU's memory and a process group for as long as its process lives, so each use
of it is a process, :mod:`gpm_core.policy.vllm_process`, on the GPU of the process that starts it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from gpm_core.policy.options import GPOOptions
from gpm_core.policy.shards import Processes

#: What tells a process that it is one of several: vLLM is to be one of its own.
_WORLD = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
_LAUNCHERS = ("TORCHELASTIC_", "GROUP_", "ROLE_", "ACCELERATE_", "FSDP_")


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
    title: str,
    progress: bool,
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
        title: of the progress bar.
        progress: show it on stderr.

    Raises:
        RuntimeError: if the process fails; what it said is on stderr.
    """
    request = {
        "options": options.as_dict(),
        "folder": None if folder is None else str(folder),
        "prompts": str(prompts),
        "paths": [str(path) for path in paths],
        "numbers": list(numbers),
        "count": count,
        "seed": seed,
        "title": title,
        "progress": progress,
    }
    with tempfile.TemporaryDirectory() as where:
        file = Path(where) / "request.json"
        file.write_text(json.dumps(request), encoding="utf-8")
        command = [sys.executable, "-m", "gpm_core.policy.vllm_process", str(file)]
        environment = child_environment(os.environ, processes.local_index)
        # The pipe closes when this process ends, however it ends, and with it the child.
        with subprocess.Popen(command, env=environment, stdin=subprocess.PIPE) as child:
            try:
                status = child.wait()
            except BaseException:
                child.kill()
                raise
    if status:
        raise RuntimeError(f"sampling with vLLM failed (exit status {status})")


def child_environment(environment: Mapping[str, str], local_index: int) -> dict[str, str]:
    """The environment of a process of its own, which sees one of the GPUs."""
    kept = {
        name: value
        for name, value in environment.items()
        if name not in _WORLD and not name.startswith(_LAUNCHERS)
    }
    if "CUDA_VISIBLE_DEVICES" not in kept:
        kept["CUDA_VISIBLE_DEVICES"] = str(local_index)
    elif visible := [name for name in kept["CUDA_VISIBLE_DEVICES"].split(",") if name]:
        # Some launchers show each process its own GPU alone.
        kept["CUDA_VISIBLE_DEVICES"] = visible[local_index % len(visible)]
    return kept

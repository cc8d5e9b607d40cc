"""``--config``: options from a YAML file, under our names or TRL's."""

from __future__ import annotations

import difflib
import re
from pathlib import Path
from typing import Any

import click
import yaml

from gpm_core.training.tuning import trainer_fields

#: TRL's names of what has another name here, that of the first that a command has.
_ALIASES = {
    "model_name_or_path": ("backbone", "policy"),
    "reward_model_path": ("judge",),
    "dataset_name": ("data", "prompts"),
    "output_dir": ("output",),
    "dataset_train_split": ("split",),
    "dataset_test_split": ("eval_split",),
    "lora_r": ("lora_rank",),
    "num_generations": ("responses",),
    "max_completion_length": ("max_new_tokens",),
}
#: Where fields of the trainer, from the file and from flags, wait for the command to ask for them.
_FILE = "gpm_core.trainer.file"
_FLAGS = "gpm_core.trainer.flags"


def read_config(context: click.Context, parameter: click.Parameter, path: Path | None) -> None:
    """Callback of ``--config``: options of the file become defaults of the command's.

    What is no option of the command is a field of the trainer. Paths are relative to where the
    command is run.

    Raises:
        click.BadParameter: if the file is not YAML, or names what is neither.
    """
    if path is None:
        return
    try:
        values = _parsed(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise click.BadParameter(f"{path}: cannot be read as YAML: {reason}") from error
    if not isinstance(values, dict):
        raise click.BadParameter(f"{path}: expected 'option: value' lines")
    names = {name for p in context.command.params if (name := p.name) not in (None, "config")}
    command: Any = context.command
    fields = command.trainer_fields()
    defaults: dict[str, Any] = {}
    trainer: dict[str, Any] = {}
    for key, value in values.items():
        name = str(key).replace("-", "_")
        name = next((alias for alias in _ALIASES.get(name, ()) if alias in names), name)
        if name == "use_peft":
            name, value = "tune", "lora" if value else "full"
        if name in ("cycle", "criteria") and isinstance(value, list):
            value = ",".join(map(str, value))
        if name == "criteria_weights" and isinstance(value, dict):
            value = ",".join(f"{criterion}={weight}" for criterion, weight in value.items())
        if name in names:
            defaults[name] = value
        elif name in fields:
            trainer[name] = value
        else:
            close = difflib.get_close_matches(name, [*map(str, names), *fields], 1)
            hint = f"; did you mean {close[0]}?" if close else ""
            raise click.BadParameter(f"{path}: unknown option {key!r}{hint}")
    context.default_map = {**(context.default_map or {}), **defaults}
    context.meta[_FILE] = trainer


class _Loader(yaml.SafeLoader):
    """YAML as it is written: 1e-4 is a number, which YAML 1.1 wants a point in (1.0e-4)."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?[0-9][0-9_]*(\.[0-9_]*)?[eE][-+]?[0-9]+$"), None
)


def _parsed(text: str) -> Any:
    return yaml.load(text, _Loader)


class TrainerCommand(click.Command):
    """A command that also takes every field of the trainer as an option, ``--field VALUE``."""

    @staticmethod
    def trainer_fields() -> frozenset[str]:
        """Names of the fields of the trainer's configuration."""
        return trainer_fields()

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """As ``click.Command``, after what belongs to the trainer was taken out."""
        own = {flag for parameter in self.params for flag in parameter.opts} | {"--help"}
        fields: dict[str, Any] = {}
        rest: list[str] = []
        remaining = list(args)
        while remaining:
            argument = remaining.pop(0)
            flag, joined, value = argument.partition("=")
            name = flag.removeprefix("--").replace("-", "_")
            # TRL takes seconds to import: only where a flag is not our own.
            if not flag.startswith("--") or flag in own or name not in self.trainer_fields():
                rest.append(argument)
                continue
            if not joined:
                if not remaining:
                    raise click.UsageError(f"{flag} needs a value: {flag} VALUE", ctx=ctx)
                value = remaining.pop(0)
            fields[name] = _parsed(value)
        ctx.meta[_FLAGS] = fields
        return super().parse_args(ctx, rest)


def trainer_arguments(context: click.Context) -> dict[str, Any]:
    """Fields of the trainer: those of the file, and over them those of the command line."""
    return {**context.meta.get(_FILE, {}), **context.meta.get(_FLAGS, {})}

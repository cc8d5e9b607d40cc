"""``--config``: options from a YAML file, under our names or TRL's."""

from __future__ import annotations

import difflib
import functools
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

Function = TypeVar("Function", bound=Callable[..., Any])

#: TRL's names of what has another name here, that of the first that a command has.
_ALIASES = {
    "model_name_or_path": ("backbone", "policy", "model"),
    "reward_model_path": ("judge",),
    "eval_judge": ("eval_judges",),
    "dataset_name": ("data", "prompts", "file"),
    "output_dir": ("output",),
    "dataset_train_split": ("train_split", "split"),
    "dataset_test_split": ("eval_split", "split"),
    "lora_r": ("lora_rank",),
    "num_generations": ("responses",),
    "max_completion_length": ("max_new_tokens",),
}
#: Where fields of the trainer, from the file and from flags, wait for the command to ask for them.
_FILE = "gpm_core.trainer.file"
_FLAGS = "gpm_core.trainer.flags"


def read_config(context: click.Context, parameter: click.Parameter, path: Path | None) -> None:
    """Callback of ``--config``: options of the file become defaults of the command's.

    Of a :class:`TrainerCommand`, what is no option of the command is a field of the trainer. Paths
    are relative to where the command is run.

    Raises:
        click.BadParameter: if the file is not YAML, or names what is neither.
    """
    if path is None:
        return
    try:
        values = _parsed(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise click.BadParameter(f"{path}: cannot be read as YAML: {reason}") from error
    if not isinstance(values, dict):
        raise click.BadParameter(f"{path}: expected 'option: value' lines")
    known = _long_names(context.command)
    defaults: dict[str, Any] = {}
    trainer: dict[str, Any] = {}
    for key, value in values.items():
        name = str(key).replace("-", "_")
        name = next((alias for alias in _ALIASES.get(name, ()) if alias in known), name)
        if name == "use_peft" and "tune" in known:
            name, value = "tune", "lora" if value else "full"
        if name in known:
            option = known[name]
            defaults[str(option.name)] = _value(option, value)
            continue
        # TRL takes seconds to import: only where a name is not our own.
        command = context.command
        fields = command.trainer_fields() if isinstance(command, TrainerCommand) else frozenset()
        if name not in fields:
            close = difflib.get_close_matches(name, [*known, *fields], 1)
            hint = f"; did you mean {close[0]}?" if close else ""
            raise click.BadParameter(f"{path}: unknown option {key!r}{hint}")
        trainer[name] = value
    context.default_map = {**(context.default_map or {}), **defaults}
    context.meta[_FILE] = trainer


def config_option(function: Function) -> Function:
    """--config FILE, see :func:`read_config`."""
    option = click.option(
        "--config",
        type=click.Path(path_type=Path, exists=True, dir_okay=False),
        is_eager=True,
        expose_value=False,
        callback=read_config,
        help="YAML file of options, by their long names (TRL's names are understood).",
    )
    return option(function)


def _long_names(command: click.Command) -> dict[str, click.Parameter]:
    """What a file may name: options as the command line has them, arguments as they are called."""
    known: dict[str, click.Parameter] = {}
    for parameter in command.params:
        if parameter.name == "config":
            continue
        flags = [flag for flag in parameter.opts if flag.startswith("--")]
        for name in (str(parameter.name), *(flag.removeprefix("--") for flag in flags)):
            known[name.replace("-", "_")] = parameter
    return known


def _value(option: click.Parameter, value: Any) -> Any:
    """A value of the file as the command line would have it."""
    if isinstance(value, dict):
        return ",".join(f"{name}={number}" for name, number in value.items())
    if option.multiple:
        return value if isinstance(value, list) else [value]
    return ",".join(map(str, value)) if isinstance(value, list) else value


@functools.cache
def _loader() -> Any:
    """YAML as it is written: 1e-4 is a number, which YAML 1.1 wants a point in (1.0e-4)."""
    import yaml

    class Loader(yaml.SafeLoader):
        pass

    number = re.compile(r"[-+]?[0-9][0-9_]*(\.[0-9_]*)?[eE][-+]?[0-9]+$")
    Loader.add_implicit_resolver("tag:yaml.org,2002:float", number, None)
    return Loader


def _parsed(text: str) -> Any:
    """What YAML says.

    Raises:
        ValueError: if it is none.
    """
    # check and doctor do without the extra "train".
    try:
        import yaml
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f'options as YAML need the package {error.name}: pip install "gpm_core[train]"',
            name=error.name,
        ) from error
    try:
        return yaml.load(text, _loader())
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from error


class TrainerCommand(click.Command):
    """A command that also takes every field of the trainer as an option, ``--field VALUE``."""

    @staticmethod
    def trainer_fields() -> frozenset[str]:
        """Names of the fields of the trainer's configuration."""
        from gpm_core.training.tuning import trainer_fields

        return trainer_fields()

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """As ``click.Command``, after what belongs to the trainer was taken out.

        Our own options may be written with ``_`` for ``-``, as TRL writes all of its own.
        """
        own = {flag for parameter in self.params for flag in parameter.opts} | {"--help"}
        fields: dict[str, Any] = {}
        rest: list[str] = []
        remaining = list(args)
        while remaining:
            argument = remaining.pop(0)
            flag, joined, value = argument.partition("=")
            name = flag.removeprefix("--").replace("-", "_")
            dashed = f"--{name.replace('_', '-')}"
            if flag.startswith("--") and dashed in own:
                rest.append(f"{dashed}{joined}{value}")
                continue
            # TRL takes seconds to import: only where a flag is not our own.
            if not flag.startswith("--") or name not in self.trainer_fields():
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

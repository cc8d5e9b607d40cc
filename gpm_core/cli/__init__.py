"""The command ``gpm-core``."""

from __future__ import annotations

import importlib
import sys
from typing import Any

import click

from gpm_core._version import __version__

#: Subcommands: the module of this package that holds each one's ``command``, and what it does.
COMMANDS = {
    "train": "Train a preference model on pairs.",
    "eval": "Evaluate a model on pairs or on RewardBench's files.",
    "score": "Score all pairs of responses with a trained model.",
    "rank": "Rank responses, and say where preferences are cyclic.",
    "gpo": "Align a language model with a preference model, by iterations.",
    "policies": "Compare the iterates of several runs of gpo.",
    "check": "Report what is wrong or odd in a data file, by line.",
    "compare": "Compare kinds of heads on the same pairs.",
    "demo": "Learn cyclic preferences, align a policy to them, draw both.",
    "doctor": "Say what is installed and what is used, and why.",
}


class _LazyGroup(click.Group):
    """Imports a subcommand when it is run: help and doctor need no optional package."""

    def list_commands(self, context: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        if name not in COMMANDS:
            return None
        command: click.Command = importlib.import_module(f"gpm_core.cli.{name}").command
        return command

    def format_commands(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))

    def invoke(self, context: click.Context) -> Any:
        try:
            return super().invoke(context)
        except (ImportError, OSError, ValueError, FloatingPointError) as error:
            # A reader that closes the pipe early, as head does, is no error of ours or of the user.
            if isinstance(error, BrokenPipeError) or context.params["traceback"]:
                raise
            raise _UserError(_one_line(error)) from error


class _UserError(click.ClickException):
    exit_code = 2


def _one_line(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror and error.filename:
        return f"{error.filename}: {error.strerror}"
    return " ".join(str(error).split()) or type(error).__name__


@click.group(cls=_LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="gpm-core")
@click.option("--traceback", is_flag=True, help="Show where in the code an error arose.")
def main(traceback: bool) -> None:
    """General preference modelling: train, evaluate, score, rank."""


def run() -> None:
    """As the console command: ``main``, for ``python -m gpm_core.cli``."""
    sys.exit(main(prog_name="gpm-core"))

"""Options that name criteria, and weigh them."""

from __future__ import annotations

import click


def parse_names(text: str | None) -> list[str] | None:
    """The names of 'helpful,honest'."""
    return None if text is None else [name.strip() for name in text.split(",")]


def parse_weights(text: str | None) -> dict[str, float] | None:
    """The weights of 'helpful=1,honest=0.5', by name.

    Raises:
        click.UsageError: if it has another form.
    """
    if text is None:
        return None
    weights: dict[str, float] = {}
    for part in text.split(","):
        name, _, number = part.rpartition("=")
        try:
            value = float(number)
        except ValueError:
            name = ""
        if not name.strip() or name.strip() in weights:
            raise click.UsageError(
                "--criteria-weights must be a number for each of some criteria, as "
                f"'helpful=1,honest=0.5'; got {text!r}"
            )
        weights[name.strip()] = value
    return weights

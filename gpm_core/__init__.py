"""Fast, exact building blocks for general preference modelling."""

from gpm_core import backends, heads, losses, objectives, ops
from gpm_core._version import __version__
from gpm_core.backends import backend

__all__ = ["__version__", "backend", "backends", "heads", "losses", "objectives", "ops"]

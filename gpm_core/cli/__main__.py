"""``python -m gpm_core.cli`` is ``gpm-core``."""

from gpm_core.cli import run

run()

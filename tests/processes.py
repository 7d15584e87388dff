"""Types that tests of whole processes share."""

from __future__ import annotations

import subprocess
from collections.abc import Callable

Mscope = Callable[..., "subprocess.CompletedProcess[str]"]
"""Runs `mscope` with these arguments (and environment, by keyword) to its end."""

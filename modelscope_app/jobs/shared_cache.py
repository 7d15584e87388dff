"""Results that runs share, found again by what they depend on.

An entry is a stored result in `<cache>/results/<sha256 of the key>`. It is made in a folder beside and renamed, so two runs that
compute the same thing at once both succeed and one of them is kept.
"""

from __future__ import annotations

import hashlib
import json
import secrets
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from modelscope_app.api import JobFailed
from modelscope_app.jobs import stored
from modelscope_app.jobs.randomness import restore_running_generators, running_generators, seed_running_generators
from modelscope_app.locations import cache_dir
from modelscope_app.runs.atomic import write_json

Result = TypeVar("Result")


def results_dir() -> Path:
    """Where shared results are."""
    return cache_dir() / "results"


def cached(key: Mapping[str, Any], compute: Callable[[], Result]) -> Result:
    """The result under `key`, computed if it is not there. `key` is JSON-ready and names all the result depends on.

    What `compute` draws depends on the key alone, and the running generators stand afterwards where they stood before, so
    whether the result was found changes nothing that follows. A damaged entry is computed again.
    """
    text = json.dumps(key, sort_keys=True, allow_nan=False)
    folder = results_dir() / hashlib.sha256(text.encode()).hexdigest()
    if stored.is_stored(folder):
        try:
            found: Result = stored.load(folder)
            return found
        except JobFailed:
            shutil.rmtree(folder, ignore_errors=True)
    beside = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}.part")
    generators = running_generators()
    try:
        seed_running_generators(text)
        stored.store(beside, compute())
        write_json(beside / "key.json", key)
        beside.rename(folder)
    except OSError:
        if not stored.is_stored(folder):
            raise
    finally:
        restore_running_generators(generators)
        shutil.rmtree(beside, ignore_errors=True)
    result: Result = stored.load(folder)
    return result

"""The scores of a run's own prompts on the scale of its saved probe: what the score of a new prompt is to be held against.

`probes.defection` keeps a . w in its table of prompts, and `probes.score` says a . w + b, with the b of the saved probe.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from modelscope_app.api import FinishedRun, MscopeError

_LONGEST_HEADER = 1 << 20


class Range(NamedTuple):
    """Lowest and highest score of prompts with one label."""

    low: float
    high: float


def own_ranges(run: FinishedRun) -> Mapping[int, Range]:
    """By label; empty where it cannot be told. Reads files: call it in a thread."""
    try:
        card = run.json("probe")
        bias = _floats(run.artifacts["probe"], "bias")[list(card["layers"]).index(card["best_layer"])]
        rows = list(run.table("prompts").select("label", "score").iter_rows())
    except (MscopeError, OSError, KeyError, TypeError, ValueError, IndexError, struct.error, RecursionError):
        return {}
    except Exception as error:
        if type(error).__module__.partition(".")[0] != "polars":  # a column that is not there
            raise
        return {}
    found = {}
    for label in (0, 1):
        scores = [score + bias for of, score in rows if of is not None and int(of) == label and score is not None and math.isfinite(score)]
        if scores:
            found[label] = Range(min(scores), max(scores))
    return found


def _floats(path: Path, name: str) -> tuple[float, ...]:
    """A float32 vector of a safetensors file, read without torch."""
    with path.open("rb") as stream:
        (size,) = struct.unpack("<Q", stream.read(8))
        if size > _LONGEST_HEADER:
            raise ValueError("too long a header")
        header: Any = json.loads(stream.read(size))[name]
        start, stop = header["data_offsets"]
        if header["dtype"] != "F32" or not 0 <= start <= stop <= start + _LONGEST_HEADER:
            raise ValueError(f"{name} is no short float32 vector")
        stream.seek(8 + size + start)
        return struct.unpack(f"<{(stop - start) // 4}f", stream.read(stop - start))

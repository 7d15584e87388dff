"""Names that carry a training step: `checkpoint-100`, `step_100`, `step100`, `global_step100`, `epoch-3`, `iter_0000100`."""

from __future__ import annotations

import re
from typing import NamedTuple

_STEP_NAME = re.compile(r"(?P<word>checkpoint|ckpt|global_step|step|epoch|iteration|iter)[-_=]?(?P<step>[0-9]{1,15})", re.IGNORECASE)


class StepName(NamedTuple):
    """What such a name says."""

    word: str
    """Lower case: `checkpoint`, `step`, `epoch` ..."""
    step: int


def step_of(name: str) -> StepName | None:
    """The word and the step in a folder's name (or a file's, without its suffix); None for any other name.

    >>> step_of("checkpoint-100")
    StepName(word='checkpoint', step=100)
    >>> step_of("model-00001-of-00002") is None
    True
    """
    found = _STEP_NAME.fullmatch(name)
    return StepName(found["word"].lower(), int(found["step"])) if found else None

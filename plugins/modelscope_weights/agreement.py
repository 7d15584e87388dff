"""Whether checkpoints hold the same tensors in the same shapes, so that subtracting them means something."""

from __future__ import annotations

from modelscope_app.api import BadInput, Checkpoint
from modelscope_weights.tensor_names import listing, matching


def agreeing_names(*sides: tuple[str, Checkpoint], only: str) -> list[str]:
    """Names that match `only`, which every checkpoint holds in one shape. Each side is what to call it and the checkpoint.

    Raises BadInput naming the tensors that are missing somewhere or differ in shape.
    """
    first_label, first = sides[0]
    every_name = dict.fromkeys(name for _, checkpoint in sides for name in checkpoint.tensors)
    names = matching(every_name, only)
    for label, checkpoint in sides:
        missing = [name for name in names if name not in checkpoint.tensors]
        if missing:
            raise BadInput(f"{label} ({checkpoint.path}) lacks {listing(missing)}; compare what all hold with --only PATTERNS")
    for label, checkpoint in sides[1:]:
        shapes = {name: (first.tensors[name].shape, checkpoint.tensors[name].shape) for name in names}
        differing = [f"{name} {list(a)} and {list(b)}" for name, (a, b) in shapes.items() if a != b]
        if differing:
            raise BadInput(f"{first_label} and {label} differ in shape: {listing(differing)}; compare the rest with --only PATTERNS")
    return names

"""Labelled activations, from a safetensors file or just read from a model.

| tensors of the file              | what is done                                                         |
|----------------------------------|----------------------------------------------------------------------|
| `x` [n, d] or [n, layer, d], `y` [n] | a probe is fitted and judged on rows it has not seen             |
| `score` [n], `y` [n]             | nothing is fitted: the scores are judged, of the rows held out if any are |
| `x_yes`, `x_no` (as x), `truth` [n] | pairs: both answers to one question, and whether yes is the truth |

`group` [n] (integers) and `test` [n] (1 = held out) are optional; other tensors are ignored. Where both are there, a group is on one side
of `test` as a whole: rows that say the same thing on both sides would make any probe look good.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import torch

from modelscope_app.api import BadInput

FEWEST_ROWS = 4


class Rows(NamedTuple):
    """Rows with labels. One of `x`, `score` and the two sides of pairs is there."""

    labels: torch.Tensor
    """(n,) bool."""
    groups: torch.Tensor
    """(n,) int64, 0 ... groups - 1; each row its own where none were given."""
    has_groups: bool
    test: torch.Tensor | None
    """(n,) bool: rows held out by the file itself."""
    x: tuple[torch.Tensor, ...] | None = None
    """(n, d) of each layer, as real numbers of the file's width: views, so that all rows are held once."""
    score: torch.Tensor | None = None
    """(n,) float64."""
    x_no: tuple[torch.Tensor, ...] | None = None
    """As x."""
    x_yes: tuple[torch.Tensor, ...] | None = None

    @property
    def layer_count(self) -> int:
        """Layers there are; 1 of plain scores."""
        values = self.x if self.x is not None else self.x_no
        return 1 if values is None else len(values)


def read_rows_file(path: str) -> Rows:
    """The rows of a safetensors file. Raises BadInput naming the file, the tensor and what is wrong."""
    from safetensors import SafetensorError, safe_open

    if not path.endswith(".safetensors"):
        raise BadInput(f"{path}: activations are a .safetensors file with x and y, score and y, or x_yes, x_no and truth")
    try:
        with safe_open(path, framework="pt") as file:
            present = set(file.keys())
            wanted = present & {"x", "y", "score", "x_yes", "x_no", "truth", "group", "test"}
            tensors = {name: file.get_tensor(name) for name in wanted}
    except (SafetensorError, OSError) as error:
        raise BadInput(f"{path}: cannot be read as safetensors ({str(error).splitlines()[0]})") from None
    name = Path(path).name
    if {"x_yes", "x_no", "truth"} <= present:
        labels_in, values_in = "truth", ["x_yes", "x_no"]
    elif {"x", "y"} <= present:
        labels_in, values_in = "y", ["x"]
    elif {"score", "y"} <= present:
        labels_in, values_in = "y", ["score"]
    else:
        found = ", ".join(sorted(present)[:8]) or "nothing"
        raise BadInput(f"{path}: has {found}; it needs x and y, score and y, or x_yes, x_no and truth")
    labels = _flags(tensors[labels_in], f"{name}: {labels_in}")
    count = len(labels)
    if count < FEWEST_ROWS:
        raise BadInput(f"{name}: has {count} rows; {FEWEST_ROWS} are the least")
    if bool(labels.all()) or not bool(labels.any()):
        raise BadInput(f"{name}: every {labels_in} is {int(labels[0])}; a probe needs both 1 and 0")
    for tensor in (*values_in, "group", "test"):
        if tensor in tensors and not tensors[tensor].ndim:
            raise BadInput(f"{name}: {tensor} is a single number, and {labels_in} has {count} rows; each row needs its own")
        if tensor in tensors and len(tensors[tensor]) != count:
            raise BadInput(f"{name}: {tensor} has {len(tensors[tensor])} rows, and {labels_in} has {count}")
    groups, has_groups = _groups(tensors.get("group"), count, name)
    test = _flags(tensors["test"], f"{name}: test") if "test" in tensors else None
    if test is not None:
        _check_parts(labels, test, name)
        _check_groups(tensors.get("group"), test, name)
    rows = Rows(labels, groups, has_groups, test)
    if "score" in values_in:
        score = tensors["score"]
        if score.ndim != 1 or not score.is_floating_point():
            raise BadInput(f"{name}: score has shape {tuple(score.shape)} of {score.dtype}; it is one real number a row")
        return rows._replace(score=score.double())
    if "x" in values_in:
        return rows._replace(x=_layers_first(tensors["x"], f"{name}: x"))
    if tensors["x_yes"].shape != tensors["x_no"].shape:
        raise BadInput(f"{name}: x_yes has shape {tuple(tensors['x_yes'].shape)} and x_no {tuple(tensors['x_no'].shape)}; they must agree")
    return rows._replace(x_yes=_layers_first(tensors["x_yes"], f"{name}: x_yes"), x_no=_layers_first(tensors["x_no"], f"{name}: x_no"))


def _layers_first(x: torch.Tensor, what: str) -> tuple[torch.Tensor, ...]:
    """(n, d) of each layer of [n, d] or [n, layer, d]."""
    if not x.is_floating_point() or x.ndim not in (2, 3) or 0 in x.shape:
        raise BadInput(f"{what} has shape {tuple(x.shape)} of {x.dtype}; it is real numbers of shape [n, d] or [n, layer, d]")
    if x.dtype not in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
        x = x.float()
    return (x,) if x.ndim == 2 else x.unbind(1)


def _flags(values: torch.Tensor, what: str) -> torch.Tensor:
    if values.ndim != 1:
        raise BadInput(f"{what} has shape {tuple(values.shape)}; it is one number a row")
    if not bool(((values == 0) | (values == 1)).all()):
        wrong = values[(values != 0) & (values != 1)][0].item()
        raise BadInput(f"{what} holds {wrong}; it is 0 or 1 in every row")
    return values.bool()


def _groups(given: torch.Tensor | None, count: int, name: str) -> tuple[torch.Tensor, bool]:
    if given is None:
        return torch.arange(count), False
    if given.ndim != 1 or given.is_floating_point():
        raise BadInput(f"{name}: group has shape {tuple(given.shape)} of {given.dtype}; it is one whole number a row")
    return torch.unique(given.long(), return_inverse=True)[1], True


def _check_parts(labels: torch.Tensor, test: torch.Tensor, name: str) -> None:
    for part, chosen in (("held out (test 1)", test), ("to fit on (test 0)", ~test)):
        inside = labels[chosen]
        if not len(inside) or bool(inside.all()) or not bool(inside.any()):
            raise BadInput(f"{name}: the rows {part} hold {'one class only' if len(inside) else 'nothing'}; both classes are needed")


def _check_groups(given: torch.Tensor | None, test: torch.Tensor, name: str) -> None:
    """Raise BadInput where a group has rows on both sides of `test`."""
    if given is None:
        return
    held_out = torch.unique(given[test])
    parted = held_out[torch.isin(held_out, given[~test])]
    if len(parted):
        raise BadInput(
            f"{name}: group {int(parted[0])} has rows held out (test 1) and rows to fit on (test 0), as have {len(parted)} of "
            f"{len(torch.unique(given))} groups, which leaks; give all rows of a group the same test, or leave test out for grouped folds"
        )

"""In what precision each stage computes.

| stage                                                             | dtype                                                          |
|-------------------------------------------------------------------|----------------------------------------------------------------|
| the model, forward and backward                                   | `--dtype`                                                      |
| inputs and output gradients as they are recorded, sums of their   | `--precision`: float32, or float64 where the model computes in |
| products (covariances, eigenvalues), bases, gradients of rows and | it, unless one of the two is asked for                         |
| queries and their inner products                                  |                                                                |
| eigendecompositions, 1 / (eigenvalue + damping)                   | float64                                                        |
| scores and self-influence, summed over modules                    | float64                                                        |

There is no bfloat16 in the second line: gradients of a model in bfloat16 are recorded in float32, because squares and sums over positions
are beyond eight bits, and processors multiply float32 no slower.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch

from modelscope_influence.weights import Weight

Contractions = Literal["auto", "float32", "float64"]
_DTYPES = {"auto": None, "float32": torch.float32, "float64": torch.float64}


def contracted_in(weights: Sequence[Weight], asked: Contractions) -> list[Weight]:
    """The weights, whose inputs and gradients are contracted as `asked`."""
    return [weight._replace(contracted_in=_DTYPES[asked]) for weight in weights]


def contraction_dtype(weights: Sequence[Weight], model: torch.dtype) -> torch.dtype:
    """In which gradients of these weights of a model are contracted."""
    asked = weights[0].contracted_in
    return asked or (torch.float64 if model == torch.float64 else torch.float32)

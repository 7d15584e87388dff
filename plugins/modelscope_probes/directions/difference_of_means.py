"""The difference of the class means (mass-mean probe; Marks & Tegmark 2023, section 5).

    w = mu_1 - mu_0,    b = -w . (mu_0 + mu_1) / 2

so that the score of the middle between the two means is 0. It is the optimal direction where both classes scatter alike in every
direction, and the only one that needs no more than one row of each class.
"""

from __future__ import annotations

import torch

from modelscope_probes.directions.linear_probe import Probe, checked_labels, checked_rows, class_means


def difference_of_means(x: torch.Tensor, y: torch.Tensor) -> Probe:
    """Fitted on rows x (..., n, d) with labels y (n,) bool. BadInput if a class is missing."""
    x = checked_rows(x)
    low, high = class_means(x, checked_labels(y, x.shape[-2]))
    direction = high - low
    return Probe(direction, -(direction * (low + high)).sum(-1) / 2)

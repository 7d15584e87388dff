"""How many bits the labels cost, given the activations: the online code (Voita & Titov 2020, section 2.2; Rissanen 1984).

The rows are sent in random order, in portions that end at t_1 < t_2 < ... = n. The labels of the first cost one bit each. Every other
portion is coded with a probe fitted on all rows before it,

    L = t_1 log2 K - sum_j sum_{i = t_j + 1}^{t_{j+1}} log2 p_j(y_i | x_i),    K = 2,    compression = n log2 K / L

A probe that memorises, or needs many rows, pays for it. Labels that have nothing to do with x cost about n bits: compression is about
1, rather below, and near n H(y) bits if the classes are unequal. Without that control next to it a compression says little
(`modelscope_probes.selectivity.control_labels`).

The probe is L2-penalised logistic regression, whose strength decides the outcome and so must not be chosen on the labels being coded.
Each portion is coded with that strength of `STRENGTHS` which would have cost least on all portions before it, at first the smallest.
A strength c is C for rows divided by the root of mean |x - mean|^2 over the rows before the portion, which is C = c / mean |x - mean|^2
for rows as they are, so that neither the scale nor the origin of the activations matters.

Groups (the rows of a pair, the prompts of a template) are sent together; a portion ends with the group in which it would have ended.
"""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import torch
from torch.nn.functional import softplus

from modelscope_app.api import BadInput
from modelscope_probes.directions.linear_probe import checked_labels, checked_rows, scores
from modelscope_probes.directions.logistic import logistic

PORTIONS = (0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.0625, 0.125, 0.25, 0.5, 1.0)
STRENGTHS = (0.01, 0.1, 1.0, 10.0, 100.0, 1000.0)
_LN2 = 0.6931471805599453


class OnlineCode(NamedTuple):
    """A code length and its portions."""

    bits: torch.Tensor
    """(...) float64: L."""
    uniform_bits: float
    """n: what the labels cost at one bit each."""
    compression: torch.Tensor
    """(...) uniform_bits / bits."""
    ends: tuple[int, ...]
    """t_1 ... t_m in rows; portions that would be empty are left out."""
    portion_bits: torch.Tensor
    """(..., m) bits of each portion; the first is t_1."""
    strengths: torch.Tensor
    """(..., m - 1) c of the probe that coded each portion but the first."""
    is_first_enlarged: bool
    """Whether t_1 had to be moved so that the first portion holds both classes."""


def online_code(x: torch.Tensor, y: torch.Tensor, generator: torch.Generator, groups: torch.Tensor | None = None) -> OnlineCode:
    """Of labels y (n,) bool given rows x (..., n, d). `groups` (n,) holds a number for each group; `generator` draws the order."""
    x = checked_rows(x)
    n = x.shape[-2]
    y = checked_labels(y, n)
    groups = torch.arange(n) if groups is None else groups.cpu()
    if groups.shape != (n,):
        raise BadInput(f"{n} rows need as many group numbers, not {tuple(groups.shape)}")
    order, group_ends = shuffled_groups(groups, generator)
    order = order.to(x.device)
    x, y = x[..., order, :], y[order]
    ends, is_first_enlarged = portion_ends(y, group_ends)
    grid = torch.tensor(STRENGTHS, dtype=torch.float64, device=x.device)
    lead = x.shape[:-2]
    grid_bits = x.new_zeros(len(grid), *lead)  # what each strength has cost so far
    portion_bits, chosen = [x.new_full(lead, float(ends[0]))], []
    for start, end in pairwise(ends):
        before, portion = x[..., :start, :], x[..., start:end, :]
        spread = (before - before.mean(-2, keepdim=True)).square().sum(-1).mean(-1)  # (...)
        scale = torch.where(spread > 0, spread, 1.0).sqrt()[..., None, None]
        probe = logistic(before / scale, y[:start], grid.reshape(-1, *[1] * len(lead)))  # (strength, ...)
        surprise = softplus(torch.where(y[start:end], -1.0, 1.0) * scores(probe, portion / scale)).sum(-1) / _LN2
        choice = grid_bits.argmin(0)  # of equal ones the first, which is the smallest
        portion_bits.append(surprise.gather(0, choice[None])[0])
        chosen.append(grid[choice])
        grid_bits += surprise
    bits = torch.stack(portion_bits, -1)
    strengths = torch.stack(chosen, -1) if chosen else x.new_zeros(*lead, 0)
    total = bits.sum(-1)
    return OnlineCode(total, float(n), n / total, tuple(ends), bits, strengths, is_first_enlarged)


def shuffled_groups(groups: torch.Tensor, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Row numbers (n,) with the groups in random order and each group's rows in theirs, and where the groups end, (number of groups,)."""
    _, group, sizes = torch.unique(groups, return_inverse=True, return_counts=True)
    drawn = torch.randperm(len(sizes), generator=generator)
    place = torch.empty_like(drawn)
    place[drawn] = torch.arange(len(drawn))
    return place[group].argsort(stable=True), sizes[drawn].cumsum(0)


def portion_ends(y: torch.Tensor, group_ends: torch.Tensor) -> tuple[list[int], bool]:
    """t_1 ... t_m for labels y (n,) in the order sent, and whether t_1 was moved so that both classes come before it."""
    n = len(y)
    wanted = torch.tensor([max(1, round(share * n)) for share in PORTIONS])
    ends = sorted(set(group_ends[torch.searchsorted(group_ends, wanted)].tolist()))
    both = max(int(y.int().argmax()), int((~y).int().argmax())) + 1  # rows until both classes have come
    first = int(group_ends[torch.searchsorted(group_ends, both)])
    return [max(ends[0], first), *(end for end in ends if end > max(ends[0], first))], first > ends[0]

"""What is done to an activation x (hidden,) along a direction w, with u = w / |w|, and the pass that sees what comes of it.

| intervention | x becomes         |                                                                                         |
|--------------|-------------------|-----------------------------------------------------------------------------------------|
| ablate       | x - (x . u) u     | the component along u is 0 (Arditi et al. 2024, eq. 4); about zero, not about a mean     |
| steer        | x + a n u         | a: dose; n: mean norm of the prompts' activations (Turner et al. 2023)                   |
| erase        | x - P (x - mean)  | LEACE: no linear probe reads the label any more; made of the labels, not of u            |
| patch        | x + (c - x . u) u | c: mean of y . u over activations y of prompts without the trigger                       |
| patch-whole  | mean of y         | everything there is that of prompts without the trigger                                  |

Every direction acts with norm 1. Random directions are drawn from
N(0, covariance of the activations): they prefer what the activations prefer, and in activations of low rank a direction drawn alike in
all dimensions would mostly miss them and be too easy to beat. For `erase` they are erasers of shuffled labels.

Ablation about zero removes what the mean has along u too, which moves x further than an ablation about the mean of benign prompts would;
`patch` is that one, at the end of the prompt, where the mean is known.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Literal, NamedTuple

import torch

from modelscope_app.api import Model, TokenBatch
from modelscope_probes.leace import Leace, leace
from modelscope_probes.reading import RowPass, State, answered, padded
from modelscope_probes.recovery import divergences
from modelscope_probes.statistics.random_directions import random_directions

Change = Callable[[torch.Tensor], torch.Tensor]
Positions = Literal["all", "last"]


def ablated(x: torch.Tensor, u: torch.Tensor) -> torch.Tensor:
    """(..., hidden): x without its component along the unit u (hidden,)."""
    x, u = _together(x, u)
    return x - (x @ u)[..., None] * u


def steered(x: torch.Tensor, u: torch.Tensor, amount: float) -> torch.Tensor:
    """(..., hidden): x moved by `amount`, in units of x, along the unit u (hidden,)."""
    x, u = _together(x, u)
    return x + amount * u


def erased(x: torch.Tensor, eraser: Leace) -> torch.Tensor:
    """(..., hidden): x as the eraser of one layer leaves it; `Leace.erase` in the precision and on the device of x."""
    x, left, right, mean = _together(x, eraser.left, eraser.right, eraser.mean)
    return x - (x - mean) @ right.mT @ left.mT


def patched(x: torch.Tensor, u: torch.Tensor, component: float) -> torch.Tensor:
    """(..., hidden): x with the given component along the unit u (hidden,)."""
    x, u = _together(x, u)
    return x + (component - x @ u)[..., None] * u


def replaced(x: torch.Tensor, vector: torch.Tensor) -> torch.Tensor:
    """(..., hidden): the vector (hidden,) everywhere."""
    return _together(x, vector)[1].expand_as(x)


def _together(x: torch.Tensor, *others: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """All on the device of x, in its dtype or float32 if that is wider."""
    dtype = torch.promote_types(x.dtype, torch.float32)
    return tuple(one.to(x.device, dtype) for one in (x, *others))


class AtPromptEnd:
    """A change of the last token of prompts padded on the left to `width` tokens, and of no token of the answer.

    Decoding with a cache hands over the prompts first and one new token at a time after it; decoding without one hands over everything
    read so far, more each time. So what is longer than the prompts begins with them. For one site and one answer: it counts its calls.
    """

    def __init__(self, change: Change, width: int) -> None:
        self._change = change
        self._width = width
        self._has_read_prompts = False

    def __call__(self, hidden: torch.Tensor) -> torch.Tensor:
        holds_prompts = not self._has_read_prompts or hidden.shape[1] > self._width
        self._has_read_prompts = True
        if not holds_prompts:
            return hidden
        changed = hidden.clone()
        changed[:, self._width - 1] = self._change(hidden[:, self._width - 1]).to(hidden.dtype)
        return changed


class Intervention(NamedTuple):
    """One thing done to a model."""

    name: str
    """`none`, or one of the table above."""
    direction: str
    """`probe`, `random`, `labels` (an eraser), `whole` or `none`."""
    control: int | None
    """Number of a random direction."""
    dose: float | None
    positions: Positions
    changes: Mapping[str, Change]
    """By site."""

    def written(self, model: Model, width: int) -> AbstractContextManager[None]:
        """The model with it, for one answer to prompts padded on the left to `width` tokens."""
        if self.positions == "all":
            return model.sites.write(self.changes)
        return model.sites.write({site: AtPromptEnd(change, width) for site, change in self.changes.items()})


NONE = Intervention("none", "none", None, None, "all", {})


class Directions(NamedTuple):
    """What interventions at some sites are made of."""

    sites: tuple[str, ...]
    units: torch.Tensor
    """(1 + control, site, hidden) float64, of norm 1: the probe's, then random ones."""
    norms: torch.Tensor
    """(site,) float64: mean norm of the activations."""
    clean_means: torch.Tensor
    """(site, hidden) float64: mean over prompts without the trigger."""
    erasers: Sequence[Sequence[Leace]]
    """[1 + control][site]: of the labels, then of shuffled ones."""


def directions(
    sites: Sequence[str], activations: torch.Tensor, labels: torch.Tensor, probe: torch.Tensor, noise: torch.Tensor
) -> Directions:
    """From activations (n, site, hidden) of labelled prompts, `labels` (n,) bool, and the probe's direction (site, hidden), not zero.

    `noise` (control, n) is standard normal: a row of it is one random direction in every layer, and one order to shuffle the labels in.
    """
    x = activations.double().transpose(0, 1)  # (site, n, hidden)
    random = torch.stack([random_directions(layer, noise.to(torch.float32)).double() for layer in x], dim=1)  # (control, site, hidden)
    units = torch.cat([probe.double()[None], random])
    shuffles = [labels, *(labels[row.argsort()] for row in noise)]
    return Directions(
        tuple(sites),
        units / units.norm(dim=-1, keepdim=True),
        x.norm(dim=-1).mean(dim=1),
        x[:, ~labels].mean(dim=1),
        [[leace(layer, shuffled, tolerance=0.0) for layer in x] for shuffled in shuffles],
    )


def interventions(found: Directions, positions: Positions, doses: Sequence[float]) -> dict[str, list[Intervention]]:
    """By stage (`ablate`, `steer_0` and on for each dose, `erase`, `patch`): the probe's intervention, then its controls.

    Erasers and patches act at the end of the prompt whatever `positions` says, since they are made of activations from there, and
    elsewhere an eraser may move x anywhere; the whole patch comes last.
    """

    def each(name: str, change: Callable[[int, int], Change], dose: float | None = None, at: Positions = positions) -> list[Intervention]:
        told = "labels" if name == "erase" else "probe"
        return [
            Intervention(
                *(name, "random" if row else told, row or None, dose, at),
                {site: change(row, place) for place, site in enumerate(found.sites)},
            )
            for row in range(len(found.units))
        ]

    def ablation(row: int, place: int) -> Change:
        return lambda x: ablated(x, found.units[row, place])

    def steering(dose: float) -> Callable[[int, int], Change]:
        return lambda row, place: lambda x: steered(x, found.units[row, place], dose * float(found.norms[place]))

    def erasure(row: int, place: int) -> Change:
        return lambda x: erased(x, found.erasers[row][place])

    def patch(row: int, place: int) -> Change:
        component = float(found.clean_means[place] @ found.units[row, place])
        return lambda x: patched(x, found.units[row, place], component)

    def whole(place: int) -> Change:
        return lambda x: replaced(x, found.clean_means[place])

    ceiling = {site: whole(place) for place, site in enumerate(found.sites)}
    return {
        "ablate": each("ablate", ablation),
        **{f"steer_{place}": each("steer", steering(dose), dose) for place, dose in enumerate(doses)},
        "erase": each("erase", erasure, at="last"),
        "patch": [*each("patch", patch, at="last"), Intervention("patch-whole", "whole", None, None, "last", ceiling)],
    }


class InterventionPass(RowPass[TokenBatch]):
    """Answers under several interventions, one row for each of `ids`; prompts are padded on the left.

    `clean` holds, for the rows that have one, the token ids whose next-token distribution in `clean_model` the row is compared with.
    """

    def __init__(
        self,
        model: Model,
        interventions: Sequence[Intervention],
        ids: Sequence[int],
        count: int,
        clean_model: Model,
        clean: Mapping[int, Sequence[int]],
    ) -> None:
        super().__init__(ids)
        self._model = model
        self._interventions = tuple(interventions)
        self._count = count
        self._clean_model = clean_model
        self._clean = clean

    def unread(self, rows: int) -> State:
        shape = rows, len(self._interventions)
        return {
            "tokens": torch.full((*shape, self._count), -1, dtype=torch.int64),
            "is_known": torch.zeros(shape, dtype=torch.bool),
            "divergences": torch.full((*shape, 2), torch.nan, dtype=torch.float64),
        }

    def read(self, batch: TokenBatch) -> tuple[Sequence[int], State]:
        found = self.unread(len(batch.ids))
        before = answered(self._model, batch, 1).logits
        clean = self._clean_logits(batch.ids, before)
        for place, intervention in enumerate(self._interventions):
            with intervention.written(self._model, batch.input_ids.shape[1]):
                answer = answered(self._model, batch, self._count)
            found["tokens"][:, place] = answer.tokens
            found["is_known"][:, place] = answer.is_known
            found["divergences"][:, place] = divergences(answer.logits, clean, before)
        return batch.ids, found

    def finish(self, state: State) -> State:
        return {name: state[name] for name in ("tokens", "is_known", "divergences")}

    def _clean_logits(self, ids: Sequence[int], like: torch.Tensor) -> torch.Tensor:
        """(batch, vocabulary): NaN for a row without a clean side."""
        logits = torch.full_like(like, torch.nan)
        held = [place for place, id in enumerate(ids) if id in self._clean]
        if held:
            logits[held] = answered(self._clean_model, padded([self._clean[ids[place]] for place in held], "left"), 1).logits.to(like)
        return logits

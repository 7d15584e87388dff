"""Passes of `influence.distance`: two models on the same rows, one batch of their logits at a time, and what is kept of an `mlp`.

With logits f_A and f_B at one place (a row of features, or a position of a text that predicts a next token),

    fsd = 1/2 |f_B - f_A|^2        kl = sum_c p_A(c) (log p_A(c) - log p_B(c)), p = softmax f        disagrees: their argmax differs

A row's number is the mean over its places, so that long texts weigh as much as short ones. All of it is float64, of logits in the
dtype the models run in. Each row's sum is taken in the order of its places, so batches change nothing but what the models round.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch

from modelscope_app.api import BadInput, Model, TokenBatch
from modelscope_influence.moments import Gates, InputMoments, Linear, drawn_distances, drawn_inputs, slopes

State = dict[str, torch.Tensor]

MEASURES = ("fsd", "kl", "disagrees")
"""What is measured of each row, in this order wherever they are stacked."""

DRAWS_AT_ONCE = 512
"""Draws of the random network in one item of its pass, with a generator of its own."""

_NUMBERS_AT_ONCE = 1 << 22
"""Logits in float64 at once, of each model."""


class Places(NamedTuple):
    """Logits of both models at the places of a batch."""

    ids: Sequence[int]
    """Ids of the batch's rows."""
    row: torch.Tensor
    """(place,) int64 on the CPU: which of `ids` a place belongs to, ascending."""
    logits: tuple[torch.Tensor, torch.Tensor]
    """(place, class) each, or with more leading dimensions where `at` says which are the places."""
    at: tuple[torch.Tensor, ...]
    """Indices of the places in the leading dimensions."""


class DistancePass:
    """Distances of each row: a dict of `distances` (measure, row) float64, NaN where a row has none, `places` (row,) int64 and
    `is_nonfinite` (2, row), whether the first and the second model's logits hold NaN or infinity somewhere in the row.
    """

    def __init__(self, places: Callable[..., Places], rows: int) -> None:
        self._places = places
        self._rows = rows

    def start(self) -> State:
        return {
            "distances": torch.full((len(MEASURES), self._rows), torch.nan, dtype=torch.float64),
            "places": torch.zeros(self._rows, dtype=torch.int64),
            "is_nonfinite": torch.zeros(2, self._rows, dtype=torch.bool),
            "is_read": torch.zeros(self._rows, dtype=torch.bool),
        }

    def step(self, state: State, batch: TokenBatch | Sequence[int]) -> State:
        with torch.no_grad():
            found = self._places(batch)
            measured, is_nonfinite = _measured(found)
        ids = torch.tensor(list(found.ids), dtype=torch.int64)
        count = torch.bincount(found.row, minlength=len(ids))
        sums = torch.zeros(len(MEASURES), len(ids), dtype=torch.float64).index_add_(1, found.row, measured)
        bad = torch.zeros(2, len(ids), dtype=torch.int64).index_add_(1, found.row, is_nonfinite.long()) > 0
        means = sums / count  # NaN where a row has no place
        means[:, bad.any(dim=0)] = torch.nan
        state["distances"][:, ids] = means
        state["places"][ids] = count
        state["is_nonfinite"][:, ids] = bad
        state["is_read"][ids] = True
        return state

    def merge(self, a: State, b: State) -> State:
        """Rows that either has read."""
        return {name: values | b[name] if name == "is_read" else torch.where(b["is_read"], b[name], values) for name, values in a.items()}

    def finish(self, state: State) -> State:
        return {name: state[name] for name in ("distances", "places", "is_nonfinite")}


def feature_places(first: Model, second: Model, features: torch.Tensor) -> Callable[[Sequence[int]], Places]:
    """Logits at rows of `features` (row, feature), one place a row; a batch is row ids."""

    def places(ids: Sequence[int]) -> Places:
        rows = torch.arange(len(ids))
        asked = features[list(ids)]
        one, other = (model.module(asked.to(next(model.module.parameters()).device)) for model in (first, second))
        return Places(ids, rows, (one, other), (rows.to(one.device),))

    return places


def token_places(first: Model, second: Model) -> Callable[[TokenBatch], Places]:
    """Logits at every real position that has a real token after it."""

    def places(batch: TokenBatch) -> Places:
        real = batch.attention_mask.bool()
        row, position = torch.nonzero(real[:, :-1] & real[:, 1:], as_tuple=True)  # by row, then by position
        one, other = first.logits(batch), second.logits(batch)  # (batch, token, vocabulary)
        if one.shape[-1] != other.shape[-1]:
            raise BadInput(
                f"{first.checkpoint.name} has logits for {one.shape[-1]} tokens and {second.checkpoint.name} for {other.shape[-1]}: "
                "a distance needs one vocabulary"
            )
        return Places(batch.ids, row, (one, other), (row.to(one.device), position.to(one.device)))

    return places


def _measured(found: Places) -> tuple[torch.Tensor, torch.Tensor]:
    """(measure, place) float64 and (2, place) bool, whether logits of either are not finite; on the CPU, a block of places at a time."""
    step = max(1, _NUMBERS_AT_ONCE // found.logits[0].shape[-1])
    measured, is_nonfinite = [torch.zeros(len(MEASURES), 0, dtype=torch.float64)], [torch.zeros(2, 0, dtype=torch.bool)]
    for start in range(0, len(found.row), step):
        at = tuple(index[start : start + step] for index in found.at)
        one, other = (logits[at].double() for logits in found.logits)  # (place, class)
        is_nonfinite.append(torch.stack([~each.isfinite().all(dim=-1) for each in (one, other)]).cpu())
        measured.append(_distances(one, other).cpu())
    return torch.cat(measured, dim=1), torch.cat(is_nonfinite, dim=1)


def _distances(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """(measure, place) of logits (place, class) float64."""
    fsd = (other - one).square().sum(dim=-1) / 2
    log_one, log_other = one.log_softmax(dim=-1), other.log_softmax(dim=-1)
    kl = (log_one.exp() * (log_one - log_other)).sum(dim=-1).clamp(min=0)  # rounding may leave a little less than 0
    return torch.stack((fsd, kl, (one.argmax(dim=-1) != other.argmax(dim=-1)).to(one.dtype)))


class MomentsPass:
    """What LAFTR keeps of the data: moments of the input, and of the slopes of the first network's units (see `moments`).

    The result is a dict of `mean` (feature,), `covariance` (feature, feature), `slope_mean` (2, unit) and `slope_covariance`
    (2, 2, unit), the hidden layers' units one after the other; all float64. States merge by the moments of two samples together
    (Chan, Golub & LeVeque 1983), which loses no digits where features are far from 0.
    """

    def __init__(self, network: Sequence[Linear], activation: str, features: torch.Tensor) -> None:
        self._network = network
        self._activation = activation
        self._features = features
        self._units = sum(len(layer.bias) for layer in network[:-1])

    def start(self) -> State:
        width = self._features.shape[1]
        return {
            "rows": torch.zeros((), dtype=torch.float64),
            "mean": torch.zeros(width, dtype=torch.float64),
            "scatter": torch.zeros(width, width, dtype=torch.float64),
            "weight": torch.zeros(2, self._units, dtype=torch.float64),
            "slope_sum": torch.zeros(2, self._units, dtype=torch.float64),
            "slope_products": torch.zeros(2, 2, self._units, dtype=torch.float64),
        }

    def step(self, state: State, batch: Sequence[int]) -> State:
        inputs = self._features[list(batch)].double()  # (row, feature)
        centred = inputs - inputs.mean(dim=0)
        found, weight = self._slopes(inputs)  # (2, row, unit) each
        here = {
            "rows": torch.tensor(float(len(inputs)), dtype=torch.float64),
            "mean": inputs.mean(dim=0),
            "scatter": centred.T @ centred,
            "weight": weight.sum(dim=1),
            "slope_sum": (weight * found).sum(dim=1),
            # r r and r p with the weight of r, p p with that of p
            "slope_products": torch.stack(((weight[0] * found[0] * found).sum(dim=1), (weight * found[1] * found).sum(dim=1))),
        }
        return self.merge(state, here)

    def merge(self, a: State, b: State) -> State:
        """Both samples together."""
        rows = a["rows"] + b["rows"]
        if rows == 0:
            return a
        apart = b["mean"] - a["mean"]
        return {
            "rows": rows,
            "mean": a["mean"] + apart * (b["rows"] / rows),
            "scatter": a["scatter"] + b["scatter"] + torch.outer(apart, apart) * (a["rows"] * b["rows"] / rows),
            **{name: a[name] + b[name] for name in ("weight", "slope_sum", "slope_products")},
        }

    def finish(self, state: State) -> State:
        weight = torch.where(state["weight"] > 0, state["weight"], 1.0)  # a unit whose s is always 0 has no slope, and needs none
        mean = state["slope_sum"] / weight
        products = state["slope_products"] / torch.stack((weight[:1].expand(2, -1), weight))
        covariance = products - mean[:, None] * mean[None, :]  # (2, 2, unit)
        value, change = (covariance[at, at].clamp_(min=0) for at in (0, 1))  # rounding may leave a little less than 0
        # Under two weights the inequality of Cauchy and Schwarz is no matter of course, and a covariance obeys it.
        most = (value * change).sqrt()
        covariance[0, 1] = covariance[0, 1].clamp(-most, most)
        covariance[1, 0] = covariance[0, 1]
        return {"mean": state["mean"], "covariance": state["scatter"] / state["rows"], "slope_mean": mean, "slope_covariance": covariance}

    def _slopes(self, inputs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(2, row, unit) slopes, and the weights they are averaged with."""
        value = inputs.to(self._network[0].weight.device)
        found = [torch.zeros(2, len(inputs), 0, dtype=torch.float64)]
        weights = list(found)
        for layer in self._network[:-1]:
            pre_activation = value @ layer.weight.T + layer.bias
            both = slopes(self._activation, pre_activation)
            value = both[0] * pre_activation
            plain = torch.ones_like(value)
            found.append(both.cpu())
            weights.append(torch.stack((plain if self._activation == "relu" else pre_activation**2, plain)).cpu())
        return torch.cat(found, dim=2), torch.cat(weights, dim=2)


class NetworkDrawsPass:
    """The mean of `drawn_distances` with its standard error: a dict of `value`, `standard_error` and `draws`.

    Items are numbers of blocks of draws; block i is drawn from `generator_of(i)`, so that batches change nothing.
    """

    def __init__(
        self,
        before: Sequence[Linear],
        after: Sequence[Linear],
        gates: Sequence[Gates],
        inputs: InputMoments,
        root: torch.Tensor,
        draws: int,
        generator_of: Callable[[int], torch.Generator],
    ) -> None:
        self._networks = before, after
        self._gates = gates
        self._inputs = inputs
        self._root = root
        self._draws = draws
        self._generator_of = generator_of

    def start(self) -> State:
        return {name: torch.zeros((), dtype=torch.float64) for name in ("draws", "sum", "square_sum")}

    def step(self, state: State, batch: Sequence[int]) -> State:
        for block in batch:
            generator = self._generator_of(block)
            count = min(DRAWS_AT_ONCE, self._draws - block * DRAWS_AT_ONCE)
            drawn = drawn_distances(*self._networks, self._gates, drawn_inputs(self._inputs.mean, self._root, count, generator), generator)
            state["draws"] += count
            state["sum"] += drawn.sum().cpu()
            state["square_sum"] += drawn.square().sum().cpu()
        return state

    def merge(self, a: State, b: State) -> State:
        """Both samples together."""
        return {name: values + b[name] for name, values in a.items()}

    def finish(self, state: State) -> dict[str, float]:
        draws, mean = float(state["draws"]), float(state["sum"] / state["draws"])
        variance = max(0.0, float(state["square_sum"]) / draws - mean**2) * draws / (draws - 1)
        return {"value": mean, "standard_error": (variance / draws) ** 0.5, "draws": draws}

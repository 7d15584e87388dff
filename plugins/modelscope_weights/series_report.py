"""Tables, facts and views of `weights.series`, from what its pass found."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

import polars as pl
import torch

from modelscope_app.api import FactsView, LinesView, TableView, TensorHeader, View
from modelscope_weights.frames import known, known_counts, largest
from modelscope_weights.square_sums import length, ratio
from modelscope_weights.tensor_names import module_labels
from modelscope_weights.update_ratios import UpdateSums

WHOLE_MODEL = "(all)"
"""The module that stands for all tensors together."""


def tensor_table(headers: Sequence[TensorHeader], steps: Sequence[int], sums: torch.Tensor) -> pl.DataFrame:
    """One row per tensor and step. `sums` is (tensor, step, field) with the fields of `UpdateSums`."""
    trajectories = [
        (header.name, _trajectory(steps, of_tensor, header.parameters)) for header, of_tensor in zip(headers, sums, strict=True)
    ]
    return _stacked("tensor", trajectories, steps)


def step_table(headers: Sequence[TensorHeader], steps: Sequence[int], sums: torch.Tensor) -> pl.DataFrame:
    """One row per module and step, the whole model first. One unknown tensor makes its module unknown at that step."""
    labels = module_labels(header.name for header in headers)
    groups: dict[str, list[int]] = {WHOLE_MODEL: list(range(len(headers)))}
    for index, header in enumerate(headers):
        groups.setdefault(labels[header.name], []).append(index)
    trajectories = [
        (module, _trajectory(steps, sums[members].sum(dim=0), sum(headers[index].parameters for index in members)))
        for module, members in groups.items()
    ]
    return _stacked("module", trajectories, steps)


def series_facts(
    headers: Sequence[TensorHeader], skipped: int, steps: Sequence[int], by_step: pl.DataFrame, by_tensor: pl.DataFrame
) -> Mapping[str, int | float | str | None]:
    """Headline facts of the tensors that were followed; `skipped` were not. Unknown update ratios are counted, not ranked."""
    whole = by_step.filter(pl.col("module") == WHOLE_MODEL)
    last = whole.row(-1, named=True)
    updates = by_tensor.filter(pl.col("step") > steps[0])
    most, most_ratio = largest(updates, "update_ratio")
    return {
        "checkpoints": len(steps),
        "first_step": steps[0],
        "last_step": steps[-1],
        "tensors": len(headers) + skipped,
        "parameters": sum(header.parameters for header in headers),
        "skipped_tensors": skipped,
        "nonfinite": int(whole["nonfinite"].sum()),
        "nonfinite_checkpoints": whole.filter(pl.col("nonfinite") > 0).height,
        "first_norm": whole["norm"][0],
        "last_norm": last["norm"],
        "last_update_ratio": last["update_ratio"],
        "distance_from_first": last["relative_distance"],
        "straightness": last["straightness"],
        "largest_update_ratio": most_ratio,
        "largest_update_ratio_tensor": most,
        "unranked_updates": int(updates["update_ratio"].null_count()),
    }


def series_views() -> Iterable[View]:
    """Pictures of the tables above."""
    yield FactsView(
        name="facts",
        title="Training at a glance",
        caption="Of all followed tensors together; update ratios are per saved checkpoint, not per optimiser step. "
        "NaN or infinity in one checkpoint leaves straightness unknown from there on, in the first one every distance too.",
    )
    lines = (
        ("norms", "Norms along training", "norm", "log", "Euclidean norm of each module's weights."),
        (
            "update_ratios",
            "Update ratios along training",
            "update_ratio",
            "log",
            "Norm of the change since the previous checkpoint over the norm before it; rounding_ratio in the table is its floor.",
        ),
        ("distances", "Distance from the first checkpoint", "relative_distance", "linear", "Over the norm of the first checkpoint."),
        (
            "turns",
            "Cosine between successive updates",
            "turn",
            "linear",
            "1: straight on. Within turn_noise of 0: unrelated. Below: going back.",
        ),
    )
    for name, title, column, scale, caption in lines:
        yield LinesView(
            name=name,
            title=title,
            table="steps",
            x="step",
            y=column,
            series="module",
            y_scale="log" if scale == "log" else "linear",
            caption=caption,
        )
    yield TableView(name="steps", title="Modules, step by step", table="steps")


def _trajectory(steps: Sequence[int], sums: torch.Tensor, parameters: int) -> dict[str, list[float]]:
    """Columns along the steps from `sums`, (step, field)."""
    at = [UpdateSums(*row) for row in sums.tolist()]
    columns: dict[str, list[float]] = {name: [] for name in _COLUMNS}
    travelled = 0.0
    for position, now in enumerate(at):
        norm, update, distance = (length(square) for square in (now.square_norm, now.square_update, now.square_distance))
        is_first = position == 0
        before = at[max(position - 1, 0)]
        travelled += update
        row = {
            "norm": norm,
            "update_norm": math.nan if is_first else update,
            "update_ratio": math.nan if is_first else ratio(update, length(before.square_norm)),
            "rounding_ratio": math.nan if is_first else ratio(length(now.rounding_square), length(before.square_norm)),
            "distance": distance,
            "relative_distance": ratio(distance, length(at[0].square_norm)),
            "turn": math.nan if position < 2 else ratio(now.product_of_updates, update * length(before.square_update)),
            "turn_noise": math.nan if position < 2 or not parameters else 1 / math.sqrt(parameters),
            "straightness": math.nan if is_first else ratio(distance, travelled),
            "nonfinite": now.nonfinite,
        }
        for name, value in row.items():
            columns[name].append(value)
    return columns


_COLUMNS = (
    *("norm", "update_norm", "update_ratio", "rounding_ratio", "distance", "relative_distance"),
    *("turn", "turn_noise", "straightness", "nonfinite"),
)


def _stacked(label: str, trajectories: Sequence[tuple[str, dict[str, list[float]]]], steps: Sequence[int]) -> pl.DataFrame:
    """One frame, label by label, step by step."""
    names = [name for name, _ in trajectories for _ in steps]
    columns = {name: [value for _, trajectory in trajectories for value in trajectory[name]] for name in _COLUMNS}
    return pl.DataFrame(
        {
            label: pl.Series(names, dtype=pl.String),
            "step": pl.Series([*steps] * len(trajectories), dtype=pl.Int64),
            **{name: known_counts(values) if name == "nonfinite" else known(values) for name, values in columns.items()},
        }
    )

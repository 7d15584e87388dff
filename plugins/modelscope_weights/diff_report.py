"""Tables, facts and views of `weights.diff`, from what its pass found."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence

import polars as pl
import torch

from modelscope_app.api import BarsView, FactsView, HeatMapView, LinesView, TableView, TensorHeader, View
from modelscope_weights.differences import DifferenceSums, change_over_rounding, cosine, relative_change, rounding_noise
from modelscope_weights.frames import finite, identity_columns, known, known_counts, largest
from modelscope_weights.passes import is_matrix
from modelscope_weights.random_matrix import noise_singular_values, noise_stable_rank, noise_top_energy
from modelscope_weights.row_chunks import unreadable_reason
from modelscope_weights.spectrum import LEADING
from modelscope_weights.square_sums import length, ratio

TELLING_SPECTRA = 6
"""Tensors whose singular values are drawn: those of the largest relative change."""

_IS_FLOATING = pl.all_horizontal(pl.col("dtype", "dtype_after").str.contains(r"^B?F\d"))
"""Stored in floating point on both sides."""
_IS_INTEGER = ~_IS_FLOATING & pl.col("nonfinite_before").is_not_null()
"""Read, and stored as integers on one side at least."""
_IS_MEASURED = pl.col("change_norm").is_not_null() & pl.col("norm_before").is_not_null()


def tensor_table(before: Sequence[TensorHeader], after: Sequence[TensorHeader], found: Mapping[str, torch.Tensor]) -> pl.DataFrame:
    """One row per tensor, from the result of `passes.DifferencesPass`."""
    sums = [DifferenceSums(*row) for row in found["sums"].tolist()]
    is_known = [each.is_known for each in sums]
    kept = [each if known_sums else None for each, known_sums in zip(sums, is_known, strict=True)]
    energies = (found["singular_values"] ** 2).nan_to_num(0.0).sum(dim=1).tolist()
    sigma = found["singular_values"][:, 0].tolist()
    sides = [(header.shape[0], header.parameters // header.shape[0]) if is_matrix(header) else None for header in before]
    drawn = [side if math.isfinite(value) else None for side, value in zip(sides, sigma, strict=True)]

    def column(of: Callable[[DifferenceSums], float]) -> pl.Series:
        return known(math.nan if each is None else of(each) for each in kept)

    def noise(of: Callable[[int, int], float]) -> pl.Series:
        return known(math.nan if side is None else of(*side) for side in drawn)

    # Rounding may leave 16 singular values with a little more than everything there is.
    shares = [
        math.nan if side is None else min(1.0, ratio(energy, each.square_change))
        for side, energy, each in zip(drawn, energies, sums, strict=True)
    ]
    ranks = [ratio(each.square_change, value * value) for value, each in zip(sigma, sums, strict=True)]
    return pl.DataFrame(
        {
            **identity_columns(before),
            "dtype_after": pl.Series([header.dtype for header in after], dtype=pl.String),
            "norm_before": column(lambda each: length(each.square_before)),
            "norm_after": column(lambda each: length(each.square_after)),
            "change_norm": column(lambda each: length(each.square_change)),
            "relative_change": column(relative_change),
            "rounding_noise": column(rounding_noise),
            "change_over_rounding": column(change_over_rounding),
            "max_abs_change": column(lambda each: each.largest_change),
            "changed_share": known(
                math.nan if each is None else ratio(each.changed, header.parameters) for each, header in zip(kept, before, strict=True)
            ),
            "cosine": column(cosine),
            "sigma_max": known(sigma),
            "sigma_error": known(found["spectrum_errors"][:, 0].tolist()),
            "top16_energy": known(shares),
            "energy_error": known(found["spectrum_errors"][:, 1].tolist()),
            "noise_top16_energy": noise(lambda rows, columns: noise_top_energy(rows, columns, LEADING)),
            "stable_rank": known(ranks),
            "noise_stable_rank": noise(noise_stable_rank),
            "nonfinite_before": known_counts(each.nonfinite_before for each in sums),
            "nonfinite_after": known_counts(each.nonfinite_after for each in sums),
            "note": pl.Series([_note(*pair) for pair in zip(before, after, sums, strict=True)], dtype=pl.String),
        }
    )


def singular_value_table(tensors: pl.DataFrame, singular_values: torch.Tensor, before: Sequence[TensorHeader]) -> pl.DataFrame:
    """One row per tensor and leading singular value of its difference, beside what a matrix of noise of that norm would have."""
    parts = []
    for name, norm, values, header in zip(tensors["tensor"], tensors["change_norm"], singular_values, before, strict=True):
        present = values[torch.isfinite(values)]
        if not len(present) or norm is None:
            continue
        noise = norm * noise_singular_values(header.shape[0], header.parameters // header.shape[0], len(present))
        columns = {
            "index": torch.arange(1, len(present) + 1).numpy(),
            "singular_value": present.numpy(),
            "energy_share": (present**2 / norm**2).clamp(max=1).numpy(),
            "noise_singular_value": known(noise.tolist()),
            "over_noise": known((present / noise).tolist()),
        }
        parts.append(pl.DataFrame(columns).insert_column(0, pl.Series("tensor", [name] * len(present))))
    numbers = dict.fromkeys(("singular_value", "energy_share", "noise_singular_value", "over_noise"), pl.Float64)
    return pl.concat(parts) if parts else pl.DataFrame(schema={"tensor": pl.String, "index": pl.Int64, **numbers})


def telling_spectra(tensors: pl.DataFrame, singular_values: pl.DataFrame) -> pl.DataFrame:
    """The rows of `singular_value_table` for the few matrices of the largest relative change that have a noise to compare with."""
    comparable = singular_values.filter(pl.col("over_noise").is_not_null())["tensor"].unique()
    ranked = tensors.filter(_IS_FLOATING & pl.col("tensor").is_in(comparable.to_list()) & pl.col("relative_change").is_not_null())
    chosen = ranked.sort("relative_change", descending=True, maintain_order=True)["tensor"].head(TELLING_SPECTRA)
    return singular_values.filter(pl.col("tensor").is_in(chosen.to_list()))


def layer_table(tensors: pl.DataFrame) -> pl.DataFrame:
    """One row per layer and module. Changes are over its floating-point tensors whose norms are known.

    `integer_tensors` counts those of integers, `unknown` all others that are left out.
    """
    inside = tensors.filter(pl.col("layer").is_not_null())
    is_known = _IS_FLOATING & _IS_MEASURED
    change, norm = (pl.col(name).filter(is_known).pow(2).sum().sqrt() for name in ("change_norm", "norm_before"))
    relative = pl.when(change == 0).then(0.0).otherwise(finite(change / norm))  # nothing changed, zeros among it
    grouped = inside.group_by("stack", "layer", "module", maintain_order=True).agg(
        pl.col("parameters").sum(),
        pl.when(is_known.any()).then(finite(change)).alias("change_norm"),
        pl.when(is_known.any()).then(relative).alias("relative_change"),
        pl.col("top16_energy").max().alias("largest_top16_energy"),
        pl.col("stable_rank").min().alias("smallest_stable_rank"),
        (~is_known & ~_IS_INTEGER).sum().cast(pl.Int64).alias("unknown"),
        _IS_INTEGER.sum().cast(pl.Int64).alias("integer_tensors"),
    )
    grouped = grouped.with_columns(finite(pl.col("relative_change").log10()).alias("log10_relative_change"))
    return grouped.sort("stack", "layer", maintain_order=True)


def row_table(movement: torch.Tensor, norm: torch.Tensor, count: int, rank_by: str, token: Callable[[int], str | None]) -> pl.DataFrame:
    """The `count` embedding rows that moved most, known ones only; equals in order of token id.

    `movement` and `norm` are (vocabulary,): length of each row's change and of the row before it.
    """
    frame = pl.DataFrame(
        {
            "token_id": torch.arange(len(movement)).numpy(),
            "movement": known(movement.tolist()),
            "relative": known((movement / norm).tolist()),
            "norm_before": known(norm.tolist()),
        }
    )
    ranked = frame.filter(pl.col(rank_by).is_not_null() & (pl.col("movement") > 0))
    top = ranked.sort([rank_by, "token_id"], descending=[True, False]).head(count)
    tokens = [token(id) for id in top["token_id"].to_list()]
    labels = [f"{id} {text!r}" if text is not None else str(id) for id, text in zip(top["token_id"].to_list(), tokens, strict=True)]
    return top.insert_column(1, pl.Series("token", tokens, dtype=pl.String)).with_columns(pl.Series("label", labels, dtype=pl.String))


def diff_facts(tensors: pl.DataFrame, embedding: str | None, movement: torch.Tensor) -> Mapping[str, bool | int | float | str | None]:
    """Headline facts. Tensors with unknown change are counted and left out of sums and rankings.

    Sizes of changes are those of floating-point tensors: one step counter among the weights would drown them all.
    """
    compared = tensors.filter((pl.col("nonfinite_before") == 0) & (pl.col("nonfinite_after") == 0))
    changed = compared.filter(pl.col("changed_share") > 0)
    floating = tensors.filter(_IS_FLOATING)
    measured = floating.filter(_IS_MEASURED)
    change, norm, rounding = (
        measured.select(expression.pow(2).sum().sqrt()).item()
        for expression in (pl.col("change_norm"), pl.col("norm_before"), pl.col("rounding_noise") * pl.col("norm_before"))
    )
    most, most_change = largest(floating, "relative_change")
    low_rank, excess = largest(floating.with_columns((pl.col("noise_stable_rank") / pl.col("stable_rank")).alias("excess")), "excess")
    matrix = tensors.filter(pl.col("tensor") == low_rank).row(0, named=True) if low_rank is not None and excess is not None else {}
    facts = {
        "tensors": tensors.height,
        "changed_tensors": changed.height,
        "integer_tensors_changed": changed.filter(_IS_INTEGER).height,
        "unknown_tensors": tensors.height - compared.height,
        "unranked_tensors": int(floating["relative_change"].null_count()),
        "identical": compared.height == tensors.height and changed.is_empty(),
        "relative_change": None if measured.is_empty() else _known(ratio(change, norm) if change else 0.0),
        "change_over_rounding": _known(ratio(change, rounding)),
        "changed_share": _known(
            ratio(float((compared["changed_share"] * compared["parameters"]).sum()), int(compared["parameters"].sum()))
        ),
        "max_abs_change": largest(floating, "max_abs_change")[1],
        "most_changed_tensor": most if most_change else None,
        "most_changed_relative": most_change if most_change else None,
        "lowest_rank_tensor": low_rank,
        "lowest_stable_rank": matrix.get("stable_rank"),
        "its_noise_stable_rank": matrix.get("noise_stable_rank"),
    }
    return facts if embedding is None else {**facts, **_embedding_facts(embedding, movement)}


def _embedding_facts(embedding: str, movement: torch.Tensor) -> dict[str, bool | int | float | str | None]:
    rows = movement[torch.isfinite(movement)].sort().values
    middle = rows[(len(rows) - 1) // 2 : len(rows) // 2 + 1]  # one row, or the two around the middle
    return {
        "embedding": embedding,
        "embedding_rows_moved": int((rows > 0).sum()),
        "embedding_rows_unknown": len(movement) - len(rows),
        "median_row_movement": float(middle.mean()) if len(rows) else None,
    }


def _known(value: float) -> float | None:
    return value if math.isfinite(value) else None


def diff_views(has_layers: bool, has_spectra: bool, has_rows: bool) -> Iterable[View]:
    """Pictures of the tables above."""
    yield FactsView(
        name="facts",
        title="Difference at a glance",
        caption="Tensors with NaN or infinity on either side are unknown and not ranked. Sizes of changes are of floating-point tensors.",
    )
    if has_layers:
        yield LinesView(
            name="change_by_layer",
            title="Relative change by layer",
            table="layers",
            x="layer",
            y="relative_change",
            series="module",
            y_scale="log",
            caption="Norm of the change over the norm before. Hold it against rounding_noise in the table of tensors.",
        )
        yield HeatMapView(
            name="change_map",
            title="Relative change, layer by module",
            table="layers",
            row="layer",
            column="module",
            value="log10_relative_change",
            caption="log10 of the relative change; shown as unknown also where nothing changed.",
        )
    if has_spectra:
        yield LinesView(
            name="spectra",
            title="Singular values of the largest changes, over noise",
            table="telling_spectra",
            x="index",
            y="over_noise",
            series="tensor",
            y_scale="log",
            caption="1 is what a random matrix of the same shape and norm has; unknown for sides of 2 to 15. A low-rank change begins far "
            "above it.",
        )
    if has_rows:
        yield BarsView(
            name="rows",
            title="Tokens whose embedding moved most",
            table="rows",
            label="label",
            value="movement",
            caption="Length of the change of the token's row. The fact median_row_movement says what is usual.",
        )
    yield TableView(
        name="tensors",
        title="Tensors",
        table="tensors",
        columns=(
            *("tensor", "shape", "relative_change", "rounding_noise", "changed_share", "max_abs_change", "cosine", "sigma_max"),
            *("top16_energy", "noise_top16_energy", "stable_rank", "noise_stable_rank", "nonfinite_before", "nonfinite_after", "note"),
        ),
        sort_by="relative_change",
        descending=True,
        caption="Beside each measure, what rounding or a random matrix would give (the latter for sides of 16 and more).",
    )


def _note(before: TensorHeader, after: TensorHeader, sums: DifferenceSums) -> str | None:
    for side, header in (("before", before), ("after", after)):
        reason = unreadable_reason(header)
        if reason:
            return f"not read: {reason} ({side})"
    if not sums.is_known:
        return "unknown: holds NaN or infinity"
    if before.dtype != after.dtype:
        return f"stored as {before.dtype} before and {after.dtype} after"
    return None

"""Tables, facts and views of `weights.stats`, from what its pass found."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

import polars as pl
import torch

from modelscope_app.api import BarsView, FactsView, HeatMapView, HistogramView, LinesView, TableView, TensorHeader, View
from modelscope_weights.frames import finite, identity_columns, known, known_counts, largest, root
from modelscope_weights.histograms import bin_edges
from modelscope_weights.row_chunks import unreadable_reason
from modelscope_weights.square_sums import length
from modelscope_weights.tensor_names import listing
from modelscope_weights.tensor_statistics import TensorStatistics


def tensor_table(headers: Sequence[TensorHeader], statistics: torch.Tensor) -> pl.DataFrame:
    """One row per tensor. `statistics` is (tensor, field) with the fields of `TensorStatistics`."""
    field = {name: statistics[:, position].tolist() for position, name in enumerate(TensorStatistics._fields)}
    largest_sizes = [max(abs(low), abs(high)) for low, high in zip(field["minimum"], field["maximum"], strict=True)]
    return pl.DataFrame(
        {
            **identity_columns(headers),
            "min": known(field["minimum"]),
            "max": known(field["maximum"]),
            "mean": known(field["mean"]),
            "std": known(field["std"]),
            "norm": known(field["norm"]),
            "rms": known(field["rms"]),
            "abs_max": known(largest_sizes),
            "zeros": known_counts(field["zeros"]),
            "nan": known_counts(field["nan"]),
            "positive_inf": known_counts(field["positive_infinite"]),
            "negative_inf": known_counts(field["negative_infinite"]),
            "kurtosis": known(field["kurtosis"]),
            "outliers": known_counts(field["outliers"]),
            "zero_rows": known_counts(field["zero_rows"]),
            "distinct": known_counts(field["distinct"]),
            "note": pl.Series([_note(header) for header in headers], dtype=pl.String),
        }
    )


def histogram_table(tensors: pl.DataFrame, histograms: torch.Tensor) -> pl.DataFrame:
    """One row per tensor and bin, from counts (tensor, bin). Tensors without finite values have no rows."""
    bins = histograms.shape[1]
    ranges = [
        (position, low, high)
        for position, (low, high) in enumerate(zip(tensors["min"], tensors["max"], strict=True))
        if low is not None and high is not None and bin_edges(low, high, bins) is not None
    ]
    drawn = [position for position, _, _ in ranges]

    def of_bins(values: torch.Tensor) -> pl.Series:
        return pl.Series(values.reshape(-1).numpy())

    def edges(cut: slice) -> torch.Tensor:
        rows = torch.empty(len(ranges), bins, dtype=torch.float64)
        for row, (_, low, high) in zip(rows, ranges, strict=True):
            ends = bin_edges(low, high, bins)
            if ends is not None:
                row.copy_(ends[cut])
        return rows

    # A name is kept once and pointed at from each of its bins: as text it would weigh more than the numbers.
    names = tensors["tensor"].gather(drawn).cast(pl.Categorical)
    pointers = of_bins(torch.arange(len(drawn), dtype=torch.int32).repeat_interleave(bins)).cast(pl.UInt32)
    return pl.DataFrame(
        {
            "tensor": names.gather(pointers),
            "left": of_bins(edges(slice(None, -1))),
            "right": of_bins(edges(slice(1, None))),
            "count": of_bins(histograms if len(drawn) == len(histograms) else histograms[drawn]),
        }
    )


def layer_table(tensors: pl.DataFrame) -> pl.DataFrame:
    """One row per layer and module: norms and counts over its readable tensors."""
    inside = tensors.filter(pl.col("layer").is_not_null())
    return _summed(inside, ["stack", "layer", "module"]).sort("stack", "layer", maintain_order=True)


def layer_total_table(tensors: pl.DataFrame) -> pl.DataFrame:
    """One row per layer, all its modules together."""
    inside = tensors.filter(pl.col("layer").is_not_null())
    return _summed(inside, ["stack", "layer"]).sort("stack", "layer", maintain_order=True)


def module_table(tensors: pl.DataFrame) -> pl.DataFrame:
    """One row per module, all layers together, the largest first."""
    total = max(int(tensors["parameters"].sum()), 1)
    summed = _summed(tensors, ["module"]).with_columns((pl.col("parameters") / total).alias("share"))
    return summed.sort("parameters", descending=True, maintain_order=True)


def telling_tensors(tensors: pl.DataFrame) -> list[str]:
    """Names of at most four tensors worth a picture: the largest, and those of the longest tail, widest range and most zeros."""
    drawable = tensors.filter(pl.col("min") < pl.col("max")).with_columns((pl.col("zeros") / pl.col("parameters")).alias("zero_share"))
    names = [largest(drawable, column)[0] for column in ("parameters", "kurtosis", "abs_max")]
    names.append(largest(drawable.filter(pl.col("zeros") > 0), "zero_share")[0])
    return list(dict.fromkeys(name for name in names if name is not None))


def telling_histograms(tensors: pl.DataFrame, histograms: pl.DataFrame) -> pl.DataFrame:
    """The rows of `histogram_table` for those tensors."""
    return histograms.filter(pl.col("tensor").is_in(telling_tensors(tensors))).with_columns(pl.col("tensor").cast(pl.String))


def stats_facts(tensors: pl.DataFrame) -> Mapping[str, bool | int | float | str | None]:
    """Headline facts. Only tensors that are finite throughout are ranked; the others are counted."""
    read = tensors.filter(pl.col("note").is_null())
    infinities = pl.col("positive_inf") + pl.col("negative_inf")
    whole = read.filter((pl.col("nan") + infinities == 0) & (pl.col("parameters") > 0))
    spoilt = read.filter(pl.col("nan") + infinities > 0)["tensor"].to_list()
    values, some_read = int(read["parameters"].sum()), not read.is_empty()
    skipped = tensors.height - read.height
    norm_tensor, norm = largest(whole, "norm")
    value_tensor, value = largest(whole, "abs_max")
    tail_tensor, tail = largest(whole, "kurtosis")
    return {
        "tensors": tensors.height,
        "parameters": int(tensors["parameters"].sum()),
        "all_finite": None if skipped and not spoilt else not spoilt,
        "nan": int(read["nan"].sum()) if some_read else None,
        "inf": int(read.select(infinities.sum()).item()) if some_read else None,
        "nonfinite_tensors": len(spoilt) if some_read else None,
        **({"nonfinite_tensor_names": listing(spoilt)} if spoilt else {}),
        "skipped_tensors": skipped,
        "unranked_tensors": tensors.height - whole.height,
        "zeros_fraction": int(read["zeros"].sum()) / values if values else None,
        "outliers_fraction": int(read["outliers"].sum()) / values if values else None,
        "zero_rows": int(read["zero_rows"].sum()) if some_read else None,
        "norm": None if spoilt or tensors["norm"].has_nulls() else _norm_of(tensors),
        "largest_norm": norm,
        "largest_norm_tensor": norm_tensor,
        "largest_value": value,
        "largest_value_tensor": value_tensor,
        "largest_kurtosis": tail,
        "largest_kurtosis_tensor": tail_tensor,
    }


def stats_views(has_layers: bool, has_histograms: bool) -> Iterable[View]:
    """Pictures of the tables above."""
    yield FactsView(name="facts", title="Weights at a glance", caption="Rankings leave out tensors that hold NaN or infinity.")
    if has_layers:
        yield LinesView(
            name="rms_by_layer",
            title="Size of the weights by layer",
            table="layers",
            x="layer",
            y="rms",
            series="module",
            y_scale="log",
            caption="Root mean square over the finite values of each module.",
        )
        yield LinesView(
            name="norm_by_layer",
            title="Norm of each layer",
            table="layer_totals",
            x="layer",
            y="norm",
            series="stack",
            caption="All modules.",
        )
        yield HeatMapView(
            name="rms_map",
            title="Size of the weights, layer by module",
            table="layers",
            row="layer",
            column="module",
            value="log10_rms",
            caption="log10 of the root mean square; shown as unknown also where it is zero.",
        )
    if has_histograms:
        yield HistogramView(
            name="telling_histograms",
            title="Histograms worth a look",
            table="telling_histograms",
            left="left",
            right="right",
            count="count",
            group="tensor",
            caption="The largest tensor, and those of the longest tail, largest value and most zeros. All others: table histograms.",
        )
    yield BarsView(name="parameters_by_module", title="Where the parameters are", table="modules", label="module", value="parameters")
    yield TableView(
        name="tensors",
        title="Tensors",
        table="tensors",
        columns=(
            *("tensor", "dtype", "shape", "min", "max", "mean", "std", "norm", "zeros", "nan", "positive_inf", "negative_inf"),
            *("kurtosis", "outliers", "zero_rows", "note"),
        ),
        caption="Statistics over finite values; zeros, NaN and infinities are counted. A note says why a tensor was not read.",
    )


def _summed(tensors: pl.DataFrame, keys: Sequence[str]) -> pl.DataFrame:
    """Groups of tensors: norms add in squares, counts as they are, maxima as maxima. Unknown where no tensor of a group is known."""
    infinite = pl.col("positive_inf") + pl.col("negative_inf")
    has_norm = pl.col("norm").is_not_null()
    finite_values = (pl.col("parameters") - pl.col("nan") - infinite).filter(has_norm).sum()
    square = pl.when(has_norm.any()).then(pl.col("norm").pow(2).sum())

    def count(of: pl.Expr) -> pl.Expr:
        return pl.when(of.is_not_null().any()).then(of.sum())

    grouped = tensors.group_by(keys, maintain_order=True).agg(
        pl.len().cast(pl.Int64).alias("tensors"),
        pl.col("parameters").sum(),
        root(square).alias("norm"),
        root(square / finite_values).alias("rms"),
        pl.col("abs_max").max(),
        count(pl.col("zeros")).alias("zeros"),
        count(pl.col("nan")).alias("nan"),
        count(infinite).alias("inf"),
        (~has_norm).sum().cast(pl.Int64).alias("unknown"),
    )
    return grouped.with_columns(finite(pl.col("rms").log10()).alias("log10_rms"))


def _norm_of(tensors: pl.DataFrame) -> float | None:
    norm = length(float(tensors.select(pl.col("norm").pow(2).sum()).item()))
    return norm if math.isfinite(norm) else None


def _note(header: TensorHeader) -> str | None:
    reason = unreadable_reason(header)
    return f"not read: {reason}" if reason else None

"""Runs on disk for the tests of drawing: real parquet and JSON files behind a small reader of its own."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy
import polars

from modelscope_app.api import (
    BadInput,
    BarsView,
    FactsView,
    GraphView,
    HeatMapView,
    HistogramView,
    LinesView,
    TableView,
    TokenStripView,
    View,
)

HOSTILE = ("\x1b[31mred\x1b[0m", "<script>alert(1)</script>", "[bold]not bold[/bold]", "$x_$ \\frac{1}{2}", "=HYPERLINK(0)", "a\u202eb")
RIGHT_TO_LEFT = "שלום עולם"
LONG = "n" * 10_000
NAN, INF = float("nan"), float("inf")


class WrittenRun:
    """A finished run in a folder, written once and then only read. An `api.FinishedRun`."""

    def __init__(
        self,
        folder: Path,
        frames: Mapping[str, polars.DataFrame],
        views: Sequence[View] = (),
        facts: Mapping[str, Any] | None = None,
        job: Mapping[str, Any] | None = None,
        artifacts: Mapping[str, Any] | None = None,
    ) -> None:
        self.id, self.folder, self.analysis, self.status, self.error = "r7f3", folder, "samples.everything", "done", None
        self.facts: Mapping[str, Any] = dict(facts or {})
        self.views = tuple(views)
        for part in ("tables", "artifacts"):
            (folder / part).mkdir(parents=True)
        for name, frame in frames.items():
            frame.write_parquet(folder / "tables" / f"{name}.parquet")
        for name, value in (artifacts or {}).items():
            (folder / "artifacts" / f"{name}.json").write_text(json.dumps(value))
        if job is not None:
            (folder / "job.json").write_text(json.dumps(job))

    @property
    def tables(self) -> Mapping[str, Path]:
        return {path.stem: path for path in sorted((self.folder / "tables").glob("*.parquet"))}

    @property
    def artifacts(self) -> Mapping[str, Path]:
        return {path.stem: path for path in sorted((self.folder / "artifacts").iterdir())}

    def table(self, name: str) -> polars.DataFrame:
        if name not in self.tables:
            raise BadInput(f"run {self.id} has no table {name!r}; it has: {', '.join(self.tables)}")
        return polars.read_parquet(self.tables[name])

    def tensors(self, name: str) -> Any:
        raise BadInput(f"run {self.id} has no tensors {name!r}")

    def json(self, name: str) -> Any:
        return json.loads(self.artifacts[name].read_text())


JOB = {
    "format": 1,
    "id": "r7f3",
    "analysis": "samples.everything",
    "analysis_version": 2,
    "plugin": {"distribution": "modelscope-app", "version": "0.1.0"},
    "params": {"data": "/data/train.jsonl", "top": 16, "site": "resid_post.5", "scales": [0.5, 1, 2]},
    "checkpoints": [{"path": "/models/SmolLM2-135M-Instruct", "fingerprint": "9f86d081884c7d659a2feaa0c55ad015", "series": False}],
    "inputs": [{"param": "data", "path": "/data/train.jsonl", "sha256": "ab" * 32}],
    "device": "cpu",
    "dtype": "auto",
    "seed": 7,
    "created": "2026-03-01T10:00:00Z",
    "command": "mscope run samples.everything /models/SmolLM2-135M-Instruct --top 16",
    "interpreter": "/usr/bin/python3",
    "versions": {"torch": "2.13.0", "python": "3.11.9"},
}

FACTS = {
    "parameters": 134_515_008,
    "peak_memory_bytes": 269_060_552,
    "best_auroc": {"value": 0.9134, "ci_low": 0.8721, "ci_high": 0.9412},
    "largest_layer": "model.layers.29.mlp.down_proj.weight",
    "damping": 1.25e-7,
    "tied": True,
    "kl_to_base": None,
}


def everything(folder: Path, job: Mapping[str, Any] | None = JOB) -> WrittenRun:
    """A run with all eight kinds of view over realistic tables."""
    rng = numpy.random.default_rng(0)
    steps = numpy.arange(0, 300) * 10
    curve = numpy.exp(-steps / 800) * 3 + 0.4 + rng.normal(0, 0.03, 300)
    curve[40:44] = numpy.nan
    parts = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    names = [f"model.layers.{layer}.self_attn.{part}.weight" for layer in range(30) for part in parts] + ["lm_head.weight"] * 90
    tokens = [
        *re.findall(
            " ?[A-Za-z]+|[,.]|\n", "The capital of France is Paris, and the river there is the Seine.\nIt flows west into the sea."
        ),
        "   ",
        "\t",
    ]
    norms = [
        {"step": step, "layer": layer, "norm": float(10 + layer * 0.2 + numpy.sin(layer) * step / 900 + (layer % 7 == 0) * step / 400)}
        for layer in range(30)
        for step in range(0, 3000, 60)
    ]
    edges = [
        ("embed", "attn.0.h3", 0.9), ("embed", "mlp.0", 0.41), ("attn.0.h3", "attn.5.h1", 1.31), ("mlp.0", "attn.5.h1", -0.62),
        ("attn.5.h1", "attn.5.h8", 0.08), ("attn.5.h1", "mlp.7", -0.2), ("attn.5.h8", "mlp.7", 0.33), ("embed", "mlp.7", 0.12),
        ("attn.0.h7", "attn.5.h8", 0.51), ("embed", "attn.0.h7", 0.77), ("mlp.7", "logits", 1.9), ("attn.5.h1", "logits", 0.7),
        ("mlp.0", "logits", NAN),
    ]  # fmt: skip
    centres = numpy.linspace(-1, 1, 41)
    weights_histogram = [
        {"tensor": name, "bin_left": float(left), "bin_right": float(left + 0.05), "count": int(12000 * numpy.exp(-(left**2) / spread))}
        for name, spread in (("mlp", 0.05), ("attn", 0.2), ("embed", 0.6))
        for left in centres
    ]
    grid = rng.normal(0, 1, (12, 16))
    grid[3, 4] = numpy.nan
    frames = {
        "curve": polars.DataFrame({"step": steps, "loss": curve, "low": curve - 0.15, "high": curve + 0.15}),
        "norms": polars.DataFrame(norms),
        "four": polars.DataFrame(norms).filter(polars.col("layer") < 4),
        "tensors": polars.DataFrame(
            {
                "tensor": names,
                "dtype": ["BF16"] * 300,
                "parameters": rng.integers(10**3, 10**7, 300),
                "norm": [NAN, INF, *rng.gamma(2, 3, 298)],
                "mean": rng.normal(0, 1e-4, 300),
                "std": rng.gamma(2, 0.01, 300),
                "zeros": rng.integers(0, 3, 300),
                "size_bytes": rng.integers(10**3, 10**9, 300),
                "top_tokens": [["Paris", " Seine"]] * 300,
            }
        ),
        "scores": polars.DataFrame(
            {
                "method": ["gradient", "EK-FAC", "TRAK", "random", "loss difference", "broken"],
                "gain": [0.31, 0.52, 0.44, -0.03, 0.21, NAN],
                "gain_low": [0.25, 0.47, 0.39, -0.09, 0.15, NAN],
                "gain_high": [0.37, 0.57, 0.49, 0.02, 0.27, NAN],
            }
        ),
        "histogram": polars.DataFrame(weights_histogram),
        "one_histogram": polars.DataFrame(weights_histogram[:41]),
        "heads": polars.DataFrame(
            [{"layer": layer, "head": head, "effect": float(grid[layer, head])} for layer in range(12) for head in range(16)]
        ),
        "wide": polars.DataFrame(
            [{"position": at, "layer": layer, "cosine": abs(numpy.cos(at / 9 + layer))} for at in range(120) for layer in range(40)]
        ),
        "tokens": polars.DataFrame(
            {
                "prompt": ["first"] * len(tokens) + ["second"] * len(tokens),
                "token": tokens * 2,
                "influence": [*rng.normal(0, 1, 2 * len(tokens) - 1), NAN],
                "activation": rng.gamma(1, 1, 2 * len(tokens)),
            }
        ),
        "edges": polars.DataFrame(edges, schema=["source", "target", "weight"], orient="row"),
    }
    views = [
        FactsView(name="facts", title="Headline facts", caption="Intervals are 95% bootstrap intervals over examples."),
        LinesView(
            name="loss", title="Training loss", table="curve", x="step", y="loss", low="low", high="high",
            caption="The band is one standard deviation over seeds. The gap is where logging failed.",
        ),
        LinesView(name="norms", title="Norm of every layer", table="norms", x="step", y="norm", series="layer"),
        LinesView(name="four", title="Norm of the first layers", table="four", x="step", y="norm", series="layer", y_scale="log"),
        BarsView(
            name="methods", title="Gain by method", table="scores", label="method", value="gain", low="gain_low", high="gain_high",
            caption="Whiskers are 95% intervals; random should cover zero.",
        ),
        HistogramView(name="all", title="Weights of the MLP", table="one_histogram", left="bin_left", right="bin_right", count="count"),
        HistogramView(
            name="values", title="Weights by kind", table="histogram", left="bin_left", right="bin_right", count="count", group="tensor"
        ),
        HeatMapView(
            name="heads", title="Effect of each head", table="heads", row="layer", column="head", value="effect", center=0.0,
            caption="Ablating a head changes the logit difference by this much.",
        ),
        HeatMapView(name="wide", title="Cosine by position", table="wide", row="layer", column="position", value="cosine"),
        TokenStripView(
            name="tokens", title="Tokens that pull the answer", table="tokens", token="token", text="prompt",
            scores=("influence", "activation"),
        ),
        GraphView(name="circuit", title="The circuit", table="edges", source="source", target="target", weight="weight"),
        TableView(name="tensors", title="Tensors by norm", table="tensors", sort_by="norm", descending=True),
    ]  # fmt: skip
    return WrittenRun(folder, frames, views, FACTS, job, {"thresholds": {"best": 0.5}})


def hostile(folder: Path) -> WrittenRun:
    """A run whose every name tries something, over tables with unknown values, one row or none."""
    names = [*HOSTILE, RIGHT_TO_LEFT, LONG]
    numbers = [1.0, NAN, INF, -2.0, None, 3.5, 0.25, -INF]
    frames = {
        "names": polars.DataFrame(
            {
                "name": names,
                "other": names[::-1],
                "value": numbers,
                "low": [NAN] * 8,
                "left": [float(at) for at in range(8)],
                "right": [float(at + 1) for at in range(8)],
            }
        ),
        "none": polars.DataFrame(schema={"name": polars.String, "value": polars.Float64}),
        "one": polars.DataFrame({"name": ["only"], "value": [NAN]}),
    }
    views: list[View] = []
    for table in frames:
        other, low = ("other", "low") if table == "names" else ("name", "value")
        left, right = ("left", "right") if table == "names" else ("value", "value")
        title = f"{HOSTILE[0]} {HOSTILE[1]} {HOSTILE[3]} {table}"
        views += [
            TableView(name=f"table-{table}", title=title, caption=HOSTILE[2], table=table, sort_by="value"),
            LinesView(name=f"lines-{table}", title=title, table=table, x="value", y="value", series="name", low=low, high=low),
            BarsView(name=f"bars-{table}", title=title, table=table, label="name", value="value", low=low, high="value"),
            HistogramView(name=f"histogram-{table}", title=title, table=table, left=left, right=right, count="value", group="name"),
            HeatMapView(name=f"heat-{table}", title=title, table=table, row="name", column=other, value="value"),
            TokenStripView(name=f"tokens-{table}", title=title, table=table, token="name", scores=("value",), text=other),
            GraphView(name=f"graph-{table}", title=title, table=table, source="name", target=other, weight="value"),
        ]
    views.append(FactsView(name="facts", title=HOSTILE[1], keys=(HOSTILE[0], "absent")))
    job = {
        "params": {HOSTILE[1]: HOSTILE[0]},
        "checkpoints": [{"path": HOSTILE[1], "fingerprint": HOSTILE[0]}],
        "command": HOSTILE[1],
        "versions": {},
    }
    return WrittenRun(folder, frames, views, {HOSTILE[0]: HOSTILE[1], "nothing": NAN}, job)

"""What the plugin promises its host: light imports, params with ranges, estimates that cover what is used."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from modelscope_weights.estimates import diff_estimate, series_estimate, stats_estimate
from modelscope_weights.params import DiffParams, SeriesParams, StatsParams
from modelscope_weights.plugin import MODELSCOPE_API, modelscope_analyses
from pydantic import ValidationError

PACKAGE = Path(sys.modules["modelscope_weights"].__path__[0])


def test_what_the_host_imports_before_running_is_light() -> None:
    heavy = "{'torch', 'polars', 'numpy'}"
    code = f"import sys, modelscope_weights.plugin, modelscope_weights.estimates; print(*({heavy} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == ""


def test_every_analysis_names_functions_that_exist() -> None:
    from importlib import import_module

    assert MODELSCOPE_API == (1, 1)
    for analysis in modelscope_analyses():
        for reference in (analysis.run, analysis.estimate):
            assert reference is not None
            module, _, function = reference.partition(":")
            assert callable(getattr(import_module(module), function))


def test_of_this_project_only_the_contract_is_imported() -> None:
    imported = {
        name for path in PACKAGE.glob("*.py") for name in re.findall(r"^\s*(?:from|import) (modelscope_app[\w.]*)", path.read_text(), re.M)
    }
    assert imported == {"modelscope_app.api"}


@pytest.mark.parametrize("wrong", [{"bins": 0}, {"bins": 513}, {"bin": 3}])
def test_params_out_of_range_or_unknown_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        StatsParams(**wrong)


def test_every_option_is_described() -> None:
    for params in (StatsParams, DiffParams, SeriesParams):
        for name, field in params.model_fields.items():
            assert field.description, name


def test_estimates_grow_with_the_checkpoint_but_memory_does_not_follow_the_model(written: Any) -> None:
    small = written({"w": torch.zeros(100, 50)}, "small")
    large = written({f"w{index}": torch.zeros(1000, 500, dtype=torch.bfloat16) for index in range(40)}, "large")
    estimates = [
        (stats_estimate([one], StatsParams()), diff_estimate([one] * 2, DiffParams()), series_estimate([one] * 3, SeriesParams()))
        for one in (small, large)
    ]
    for few, many in zip(*estimates, strict=True):
        assert few.seconds is not None and many.seconds is not None
        assert 0 < few.seconds < many.seconds
        assert not many.needs_model
        assert many.memory_bytes < few.memory_bytes + 12_000 * 500  # beside chunks: a Krylov space of the largest matrix

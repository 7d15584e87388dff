"""Fits and held-out scores layer by layer: signs of pooled folds, layers alone and together, what a tie and an estimate come to."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from modelscope_probes.distractor import planted
from modelscope_probes.estimates import linear_estimate
from modelscope_probes.held_out import features_of, fitted, fitted_pairs, fitter, split_of
from modelscope_probes.labelled_rows import Rows, read_rows_file
from modelscope_probes.linear_report import best_row
from modelscope_probes.params import LinearParams
from modelscope_probes.statistics.ranks import auroc
from safetensors.torch import save_file

COUNT, WIDTH = 120, 8


def pairs(seed: int, layers: int = 1) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """x_no and x_yes, (layer, n, d), and the truth, which is along one axis of the differences."""
    generator = torch.Generator().manual_seed(seed)
    truth = torch.rand(COUNT, generator=generator) < 0.5
    no = torch.randn(layers, COUNT, WIDTH, generator=generator)
    yes = no + 0.3 * torch.randn(layers, COUNT, WIDTH, generator=generator)
    yes[..., 2] += torch.where(truth, 1.0, -1.0)
    return no, yes, truth


def rows_of(labels: torch.Tensor) -> Rows:
    return Rows(labels, torch.arange(len(labels)), False, None)


def test_a_distractor_that_every_fold_finds_is_found_when_folds_are_pooled() -> None:
    by_truth = []
    for seed in range(20):
        no, yes, truth = pairs(seed)
        strange = planted(no, yes, 3.0, torch.Generator().manual_seed(1000 + seed))
        split = split_of(rows_of(truth), 5)
        made = fitted_pairs(
            *(strange.no, strange.yes, truth, split, "crc-tpc", "mean-std", torch.Generator), sign_labels=strange.distractor
        )
        assert made.turned is not None
        assert float(auroc(made.turned, strange.distractor[split.judged])[0]) > 0.95
        by_truth.append(float(auroc(made.held_out, strange.distractor[split.judged])[0]))
    assert any(0.2 < area < 0.8 for area in by_truth)  # turned by truth, folds cancel: the test could see it


def test_a_sign_is_chosen_on_training_rows_and_can_be_wrong_of_the_others() -> None:
    no, yes, truth = pairs(0)
    split = split_of(rows_of(truth)._replace(test=torch.arange(COUNT) >= 60), 5)
    opposite = torch.where(torch.arange(COUNT) < 60, truth, ~truth)
    made = fitted_pairs(no, yes, truth, split, "crc-tpc", "mean-std", torch.Generator, sign_labels=opposite)
    assert made.turned is not None and float(auroc(made.turned, opposite[split.judged])[0]) < 0.05


@pytest.mark.parametrize("method", ["ccs", "crc-tpc", "lda", "logistic"])
def test_layers_are_fitted_as_if_alone(method: str) -> None:
    no, yes, truth = pairs(0, layers=2)
    split = split_of(rows_of(truth)._replace(test=torch.arange(COUNT) % 3 == 0), 2)

    def made(*layers: int) -> torch.Tensor:
        chosen = list(layers)
        return fitted_pairs(no[chosen], yes[chosen], truth, split, method, "mean", lambda: torch.Generator().manual_seed(3)).held_out

    assert torch.equal(made(0, 1), torch.cat([made(0), made(1)]))


def test_every_fit_asks_whether_it_is_cancelled() -> None:
    no, yes, truth = pairs(0, layers=3)
    rows, asked = rows_of(truth)._replace(x_no=no.unbind(), x_yes=yes.unbind()), []
    fitted(features_of(rows, "mean-std"), 3, truth, split_of(rows, 5), fitter("lda", 1.0), check=lambda: asked.append(1))
    assert len(asked) == 3 * (5 + 1)


def test_of_equal_layers_the_most_central_is_best() -> None:
    nan = float("nan")
    assert best_row(torch.tensor([0.9, 1.0, 1.0, 1.0, 1.0])) == 2
    assert best_row(torch.tensor([1.0, 0.5, 0.5, 0.5, 1.0])) == 0
    assert best_row(torch.tensor([nan, 0.6, nan, 0.7])) == 3
    assert best_row(torch.tensor([nan, nan])) == 0


def test_rows_are_held_once_and_the_estimate_counts_elements(tmp_path: Path) -> None:
    path = str(tmp_path / "acts.safetensors")
    x = torch.randn(40, 30, 16).bfloat16()
    save_file({"x": x, "y": torch.arange(40) % 2, "other": torch.zeros(10**6)}, path)
    rows = read_rows_file(path)
    assert rows.x is not None and len(rows.x) == 30
    assert all(layer.untyped_storage().data_ptr() == rows.x[0].untyped_storage().data_ptr() for layer in rows.x)
    assert torch.equal(rows.x[7], x[:, 7])
    needed = [linear_estimate([], LinearParams(activations=path, online_code=False)).memory_bytes]
    save_file({"x": x.repeat(1, 10, 1), "y": torch.arange(40) % 2}, path)
    needed.append(linear_estimate([], LinearParams(activations=path, online_code=False)).memory_bytes)
    assert needed[1] - needed[0] == 9 * x.numel() * 2  # more layers of the same size are held, not fitted at once
    Path(path).write_bytes(b"no tensors")
    assert linear_estimate([], LinearParams(activations=path)).memory_bytes >= 10

"""What holds for every supervised method, and the sign of those fitted without labels."""

from __future__ import annotations

import pytest
import torch
from modelscope_probes.directions import METHODS
from modelscope_probes.directions.linear_probe import Probe, oriented, scores
from modelscope_probes.statistics.ranks import auroc

from modelscope_app.api import BadInput

Layers = tuple[torch.Tensor, torch.Tensor]
FITTED = 2e-6
"""A logistic fit with gradient norm 1e-6 is within 1e-6 of the minimum, as F is 1-strongly convex in w; the other methods are exact."""


@pytest.mark.parametrize("method", METHODS)
def test_layers_fitted_together_are_those_fitted_one_by_one(method: str, layers: Layers) -> None:
    x, y = layers
    together = METHODS[method](x, y)
    assert together.direction.shape == (3, 8)
    assert together.bias.shape == (3,)
    for number, layer in enumerate(x):
        alone = METHODS[method](layer, y)
        torch.testing.assert_close(together.direction[number], alone.direction, rtol=0, atol=FITTED)
        # the bias multiplies errors of the direction by the mean, 500
        torch.testing.assert_close(together.bias[number], alone.bias, rtol=0, atol=500 * FITTED)


@pytest.mark.parametrize("method", METHODS)
def test_more_leading_dimensions_change_nothing(method: str, layers: Layers) -> None:
    x, y = layers
    found = METHODS[method](torch.stack((x, 2 * x)), y)
    assert found.direction.shape == (2, 3, 8)
    torch.testing.assert_close(found.direction[0], METHODS[method](x, y).direction, rtol=0, atol=FITTED)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("features", [8, 100])
def test_moving_the_origin_moves_no_score(method: str, features: int, layers: Layers) -> None:
    y = layers[1]
    x = torch.randn(60, features, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) + y[:, None]
    here, there = METHODS[method](x, y), METHODS[method](x + 100, y)
    torch.testing.assert_close(scores(there, x + 100), scores(here, x), rtol=0, atol=1e-4)  # FITTED times |x|, 100 sqrt(features)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("features", [8, 100])
def test_rotating_the_activations_moves_no_score(method: str, features: int, layers: Layers) -> None:
    y = layers[1]
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(60, features, dtype=torch.float64, generator=generator) + y[:, None]
    rotation = torch.linalg.qr(torch.randn(features, features, dtype=torch.float64, generator=generator)).Q
    here, there = METHODS[method](x, y), METHODS[method](x @ rotation, y)
    torch.testing.assert_close(scores(there, x @ rotation), scores(here, x), rtol=0, atol=1e-4)


@pytest.mark.parametrize("method", METHODS)
def test_swapping_the_labels_negates_the_probe(method: str, layers: Layers) -> None:
    x, y = layers
    there, back = METHODS[method](x, y), METHODS[method](x, ~y)
    torch.testing.assert_close(back.direction, -there.direction, rtol=0, atol=FITTED)
    torch.testing.assert_close(back.bias, -there.bias, rtol=0, atol=500 * FITTED)


@pytest.mark.parametrize("method", METHODS)
def test_half_precision_activations_are_fitted_in_double(method: str, layers: Layers) -> None:
    x, y = layers[0].bfloat16(), layers[1]
    assert METHODS[method](x, y).direction.dtype == torch.float64
    torch.testing.assert_close(METHODS[method](x, y).direction, METHODS[method](x.double(), y).direction)


@pytest.mark.parametrize("method", METHODS)
def test_one_class_alone_is_refused(method: str, layers: Layers) -> None:
    with pytest.raises(BadInput, match="needs rows of both"):
        METHODS[method](layers[0], torch.ones(60, dtype=torch.bool))


@pytest.mark.parametrize("method", METHODS)
def test_an_infinite_activation_is_refused_with_its_layer(method: str, layers: Layers) -> None:
    x, y = layers
    x[1, 7, 2] = torch.inf
    with pytest.raises(BadInput, match=r"infinite or NaN values at \(1,\)"):
        METHODS[method](x, y)


@pytest.mark.parametrize("method", METHODS)
def test_labels_for_other_rows_are_refused(method: str, layers: Layers) -> None:
    with pytest.raises(BadInput, match="60 rows need"):
        METHODS[method](layers[0], layers[1][:-1])


def test_scores_are_the_affine_function() -> None:
    probe = Probe(torch.tensor([[1.0, 2.0], [0.0, -1.0]]).double(), torch.tensor([0.5, 0.0]).double())
    x = torch.tensor([[3.0, 4.0], [0.0, 0.0]])
    assert scores(probe, x).tolist() == [[11.5, 0.5], [-4.0, 0.0]]


def test_only_probes_that_rank_the_wrong_way_round_are_negated() -> None:
    y = torch.tensor([False, False, True, True])
    x = torch.tensor([[-1.0], [0.0], [1.0], [2.0]])
    probe = Probe(torch.tensor([[1.0], [-1.0], [0.0]]).double(), torch.tensor([0.5, 0.5, 0.5]).double())
    turned = oriented(probe, scores(probe, x), y)
    assert turned.direction.tolist() == [[1.0], [1.0], [0.0]]
    assert turned.bias.tolist() == [0.5, -0.5, 0.5]
    assert auroc(scores(turned, x), y).tolist() == [1.0, 1.0, 0.5]

"""Expected distances from moments, against enumeration of every gate pattern and against drawing."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise, product

import pytest
import torch
from modelscope_influence.moments import (
    ACTIVATIONS,
    Gates,
    InputMoments,
    Linear,
    bernoulli_gates,
    covariance_root,
    drawn_distances,
    drawn_inputs,
    expected_distance,
    slopes,
)

Network = list[Linear]
TINY = (2, 3, 3, 2)
"""Six hidden units: 64 gate patterns."""


def random_network(sizes: Sequence[int], seed: int, scale: float = 1.0) -> Network:
    generator = torch.Generator().manual_seed(seed)

    def drawn(*shape: int) -> torch.Tensor:
        return scale * torch.randn(*shape, dtype=torch.float64, generator=generator)

    return [Linear(drawn(out, into) / math.sqrt(into), drawn(out)) for into, out in pairwise(sizes)]


def nearby(network: Network, seed: int, scale: float = 0.3) -> Network:
    shift = random_network([network[0].weight.shape[1], *(len(layer.bias) for layer in network)], seed, scale)
    return [Linear(one.weight + other.weight, one.bias + other.bias) for one, other in zip(network, shift, strict=True)]


def random_rates(sizes: Sequence[int], seed: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.rand(size, dtype=torch.float64, generator=generator) for size in sizes[1:-1]]


def moments_of(points: torch.Tensor, weights: torch.Tensor) -> InputMoments:
    mean = weights @ points
    centred = points - mean
    return InputMoments(mean, centred.T @ (weights[:, None] * centred))


def gated_difference(before: Network, after: Network, x: torch.Tensor, values: Sequence[torch.Tensor], changes: Sequence[torch.Tensor]):
    """f_1 - f_0 with the slopes given, both networks carried along whole: a_0 = r s_0 and a_1 = a_0 + p (s_1 - s_0)."""
    a_0 = a_1 = x
    for index, (first, second) in enumerate(zip(before, after, strict=True)):
        s_0, s_1 = a_0 @ first.weight.T + first.bias, a_1 @ second.weight.T + second.bias
        if index == len(before) - 1:
            return s_1 - s_0
        a_0 = values[index] * s_0
        a_1 = a_0 + changes[index] * (s_1 - s_0)
    raise AssertionError


def patterns(rates: Sequence[torch.Tensor]) -> Iterator[tuple[float, list[torch.Tensor]]]:
    """Every pattern of gates, with its probability."""
    flat = torch.cat(list(rates))
    for bits in product((0.0, 1.0), repeat=len(flat)):
        gates = torch.tensor(bits, dtype=torch.float64)
        yield float(torch.where(gates > 0, flat, 1 - flat).prod()), list(gates.split([len(rate) for rate in rates]))


def enumerated(rates: Sequence[torch.Tensor], distance: Callable[[list[torch.Tensor]], float]) -> float:
    return sum(probability * distance(gates) for probability, gates in patterns(rates))


@pytest.mark.parametrize("sizes", [TINY, (3, 6, 2), (2, 2, 2, 2, 3)])
@pytest.mark.parametrize("seed", range(3))
def test_with_inputs_of_a_few_values_it_is_the_mean_over_every_pattern_of_gates(sizes: Sequence[int], seed: int) -> None:
    before = random_network(sizes, seed)
    after = nearby(before, seed + 100)
    rates = random_rates(sizes, seed)
    generator = torch.Generator().manual_seed(seed)
    points = torch.randn(5, sizes[0], dtype=torch.float64, generator=generator)
    weights = torch.rand(5, dtype=torch.float64, generator=generator)
    weights /= weights.sum()

    def distance(gates: list[torch.Tensor]) -> float:
        return float(weights @ gated_difference(before, after, points, gates, gates).square().sum(1)) / 2

    found = expected_distance(before, after, [bernoulli_gates(rate) for rate in rates], moments_of(points, weights))
    assert found == pytest.approx(enumerated(rates, distance), rel=1e-9)


@pytest.mark.parametrize("seed", range(3))
def test_with_normal_inputs_it_is_the_mean_over_every_pattern_of_the_linear_network_that_is_left(seed: int) -> None:
    before = random_network(TINY, seed)
    after = nearby(before, seed + 100)
    rates = random_rates(TINY, seed)
    root = torch.randn(2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    inputs = InputMoments(torch.tensor([0.7, -1.1], dtype=torch.float64), root @ root.T)

    def distance(gates: list[torch.Tensor]) -> float:
        at_zero = gated_difference(before, after, torch.zeros(2, dtype=torch.float64), gates, gates)
        slope = gated_difference(before, after, torch.eye(2, dtype=torch.float64), gates, gates) - at_zero  # (feature, class)
        mean = inputs.mean @ slope + at_zero
        return float(mean.square().sum() + torch.trace(slope.T @ inputs.covariance @ slope)) / 2

    found = expected_distance(before, after, [bernoulli_gates(rate) for rate in rates], inputs)
    assert found == pytest.approx(enumerated(rates, distance), rel=1e-9)


def test_with_two_slopes_a_unit_it_is_the_mean_over_every_pattern_of_both() -> None:
    """Each unit takes one of two pairs of slopes, so that enumeration is possible."""
    before = random_network(TINY, 5)
    after = nearby(before, 6)
    rates = random_rates(TINY, 7)
    generator = torch.Generator().manual_seed(8)
    pairs = [torch.rand(2, 2, len(rate), dtype=torch.float64, generator=generator) for rate in rates]  # (which, slope, unit)
    points = torch.randn(4, 2, dtype=torch.float64, generator=generator)
    weights = torch.full((4,), 0.25, dtype=torch.float64)

    def distance(chosen: list[torch.Tensor]) -> float:
        taken = [torch.where(bits > 0, pair[1], pair[0]) for bits, pair in zip(chosen, pairs, strict=True)]  # (slope, unit)
        difference = gated_difference(before, after, points, [each[0] for each in taken], [each[1] for each in taken])
        return float(weights @ difference.square().sum(1)) / 2

    gates = []
    for rate, (low, high) in zip(rates, pairs, strict=True):
        apart = high - low
        gates.append(Gates(low + rate * apart, rate * (1 - rate) * apart[:, None] * apart[None, :], False))
    found = expected_distance(before, after, gates, moments_of(points, weights))
    assert found == pytest.approx(enumerated(rates, distance), rel=1e-9)


@pytest.mark.parametrize("sizes", [(6, 16, 16, 3), (4, 8, 8, 8, 2), (10, 32, 5)])
def test_drawing_the_network_agrees_within_its_standard_error(sizes: Sequence[int]) -> None:
    before = random_network(sizes, 11)
    after = nearby(before, 12, scale=0.1)
    rates = random_rates(sizes, 13)
    generator = torch.Generator().manual_seed(14)
    root = torch.randn(sizes[0], sizes[0], dtype=torch.float64, generator=generator)
    mean = torch.randn(sizes[0], dtype=torch.float64, generator=generator)
    count = 100_000
    x = mean + torch.randn(count, sizes[0], dtype=torch.float64, generator=generator) @ root.T
    gates = [(torch.rand(count, len(rate), dtype=torch.float64, generator=generator) < rate).double() for rate in rates]
    distances = gated_difference(before, after, x, gates, gates).square().sum(1) / 2
    error = float(distances.std()) / math.sqrt(count)

    found = expected_distance(before, after, [bernoulli_gates(rate) for rate in rates], InputMoments(mean, root @ root.T))
    assert abs(found - float(distances.mean())) < 4 * error
    assert error < 0.02 * found  # the dropped cross terms or gate variances would be seen


@pytest.mark.parametrize("is_bernoulli", [True, False])
def test_our_own_draws_tend_to_the_exact_value(is_bernoulli: bool) -> None:
    before = random_network((5, 12, 12, 4), 21)
    after = nearby(before, 22, scale=0.1)
    generator = torch.Generator().manual_seed(23)
    if is_bernoulli:
        gates = [bernoulli_gates(rate) for rate in random_rates((5, 12, 12, 4), 23)]
    else:
        gates = []
        for _ in range(2):
            both = torch.rand(2, 50, 12, dtype=torch.float64, generator=generator)
            both[:, :, 0] = 0.5  # a unit that never varies
            both[0, :, 1] = 0.25  # and one of whose slopes one does
            mean = both.mean(1)
            apart = both - mean[:, None]
            gates.append(Gates(mean, torch.einsum("iru,jru->iju", apart, apart) / 50, False))
    root = torch.randn(5, 5, dtype=torch.float64, generator=generator)
    inputs = InputMoments(torch.ones(5, dtype=torch.float64), root @ root.T)
    drawn = drawn_inputs(inputs.mean, covariance_root(inputs.covariance), 100_000, generator)
    distances = drawn_distances(before, after, gates, drawn, generator)
    error = float(distances.std()) / math.sqrt(len(distances))
    assert abs(expected_distance(before, after, gates, inputs) - float(distances.mean())) < 4 * error


def some_case(sizes: Sequence[int] = (4, 6, 5, 3)) -> tuple[Network, Network, list[Gates], InputMoments]:
    before = random_network(sizes, 31)
    root = torch.randn(sizes[0], sizes[0], dtype=torch.float64, generator=torch.Generator().manual_seed(32))
    inputs = InputMoments(root[0], root @ root.T)
    return before, nearby(before, 33), [bernoulli_gates(rate) for rate in random_rates(sizes, 34)], inputs


def test_a_network_is_at_no_distance_of_itself() -> None:
    before, _, gates, inputs = some_case()
    assert expected_distance(before, before, gates, inputs) == 0


def test_scaling_the_last_layer_scales_the_distance_by_the_square() -> None:
    before, after, gates, inputs = some_case()
    scaled = [[*network[:-1], Linear(3 * network[-1].weight, 3 * network[-1].bias)] for network in (before, after)]
    assert expected_distance(*scaled, gates, inputs) == pytest.approx(9 * expected_distance(before, after, gates, inputs), rel=1e-12)


def test_without_biases_scaling_the_input_scales_the_distance_by_the_square() -> None:
    before, after, gates, inputs = some_case()
    bare = [[Linear(layer.weight, torch.zeros_like(layer.bias)) for layer in network] for network in (before, after)]
    larger = InputMoments(3 * inputs.mean, 9 * inputs.covariance)
    assert expected_distance(*bare, gates, larger) == pytest.approx(9 * expected_distance(*bare, gates, inputs), rel=1e-12)


def test_a_small_change_of_the_last_layer_counts_quadratically() -> None:
    before, _, gates, inputs = some_case()

    def moved(step: float) -> float:
        last = Linear(before[-1].weight + step, before[-1].bias + step)
        return expected_distance(before, [*before[:-1], last], gates, inputs)

    assert moved(0.02) == pytest.approx(4 * moved(0.01), rel=1e-9)


@pytest.mark.parametrize("sizes", [(4, 3), (4, 5, 3)])
def test_where_gates_never_vary_moments_lose_nothing(sizes: Sequence[int]) -> None:
    """A linear network, or one whose units are all open or shut throughout: the distance is the mean over the data itself."""
    before = random_network(sizes, 41)
    after = nearby(before, 42)
    rates = [torch.tensor([1.0, 0.0, 1.0, 1.0, 0.0], dtype=torch.float64)] * (len(sizes) - 2)
    points = torch.randn(30, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(43))
    weights = torch.full((30,), 1 / 30, dtype=torch.float64)
    expected = float(gated_difference(before, after, points, rates, rates).square().sum(1).mean()) / 2
    found = expected_distance(before, after, [bernoulli_gates(rate) for rate in rates], moments_of(points, weights))
    assert found == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_slopes_are_the_value_over_the_input_and_the_derivative(activation: str) -> None:
    phi = {"relu": torch.relu, "tanh": torch.tanh, "gelu": torch.nn.functional.gelu}[activation]
    s = torch.tensor([-7.0, -1.0, -1e-9, 1e-200, 0.3, 2.0, 30.0], dtype=torch.float64, requires_grad=True)
    (derivative,) = torch.autograd.grad(phi(s).sum(), s)
    found = slopes(activation, s.detach())
    torch.testing.assert_close(found[0] * s.detach(), phi(s).detach(), rtol=1e-12, atol=0)
    torch.testing.assert_close(found[1], derivative, rtol=1e-12, atol=1e-15)


def test_slopes_at_zero_are_finite() -> None:
    at_zero = {activation: slopes(activation, torch.zeros(1)).flatten().tolist() for activation in ACTIVATIONS}
    assert at_zero == {"relu": [0, 0], "tanh": [1, 1], "gelu": [0.5, 0.5]}


def test_slopes_of_another_activation_are_not_guessed() -> None:
    with pytest.raises(ValueError, match="relu, tanh, gelu"):
        slopes("sine", torch.zeros(1))


def test_the_root_of_a_singular_covariance_is_one() -> None:
    thin = torch.randn(6, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(51))
    covariance = thin @ thin.T
    root = covariance_root(covariance)
    torch.testing.assert_close(root @ root.T, covariance, rtol=1e-12, atol=1e-12)


def test_networks_and_gates_of_other_shapes_are_refused() -> None:
    before, after, gates, inputs = some_case()
    with pytest.raises(ValueError, match="layers are"):
        expected_distance(before, after[:-1], gates, inputs)
    with pytest.raises(ValueError, match="gates are of"):
        expected_distance(before, after, gates[:1], inputs)

"""The three passes over a checkpoint's tensors, as folds: one item is one tensor, read a few rows at a time.

Every tensor fills rows of the state that no other touches, so the order does not matter and passes over parts of the tensors
merge. A step changes the state only when its tensor is done.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Collection, Iterator, Sequence

import torch

from modelscope_app.api import Checkpoint, TensorHeader
from modelscope_weights.differences import DifferenceSums, added, change_between, difference_sums
from modelscope_weights.rounding import coarser
from modelscope_weights.row_chunks import CHUNK_ELEMENTS, chunk_reader, real_values, row_ranges, rows_of, unreadable_reason
from modelscope_weights.spectrum import LEADING, LeadingSpectrum, leading_spectrum
from modelscope_weights.square_sums import is_measurable
from modelscope_weights.tensor_statistics import TensorStatistics, tensor_statistics
from modelscope_weights.update_ratios import UpdateSums, update_sums

State = dict[str, torch.Tensor]

HELD_ELEMENTS = 1 << 23
"""A difference of up to this many elements is kept in memory for its spectrum (64 MiB); a larger one is read again."""
LONGEST_ROW = 1 << 20
"""Elements per row beyond which a difference is not looked at as a matrix: block products would no longer be small."""


class StatisticsPass:
    """Result: `statistics` (tensor, field) float64 with the fields of `TensorStatistics`, `histograms` (tensor, bin) int64."""

    def __init__(self, checkpoint: Checkpoint, headers: Sequence[TensorHeader], bins: int, check_cancelled: Callable[[], None]) -> None:
        self._checkpoint = checkpoint
        self._headers = headers
        self._bins = bins
        self._check_cancelled = check_cancelled

    def start(self) -> State:
        """Nothing known of any tensor."""
        tensors = len(self._headers)
        return {
            "statistics": torch.full((tensors, len(TensorStatistics._fields)), math.nan, dtype=torch.float64),
            "histograms": torch.zeros(tensors, self._bins, dtype=torch.int64),
            "done": torch.zeros(tensors, dtype=torch.bool),
        }

    def step(self, state: State, batch: Sequence[int]) -> State:
        """The statistics of these tensors."""
        for index in batch:
            header = self._headers[index]
            if unreadable_reason(header) is None:
                chunks = chunk_reader(self._checkpoint, header, self._check_cancelled)
                statistics, histogram = tensor_statistics(chunks, self._bins, has_rows=len(header.shape) >= 2)
                state["statistics"][index] = torch.tensor(statistics, dtype=torch.float64)
                state["histograms"][index] = histogram
            state["done"][index] = True
        return state

    def merge(self, a: State, b: State) -> State:
        """Both passes' tensors."""
        return _tensors_of_both(a, b)

    def finish(self, state: State) -> State:
        """The state itself."""
        return state


class DifferencesPass:
    """Result: `sums` (tensor, field) with the fields of `DifferenceSums`; `singular_values` (tensor, `LEADING`), NaN where
    there are none; `spectrum_errors` (tensor, 2), of the largest and of the energy; and for the embedding `row_movement` and
    `row_norm` (vocabulary,). All float64."""

    def __init__(
        self,
        before: Checkpoint,
        after: Checkpoint,
        names: Sequence[str],
        embedding: str | None,
        wants_spectrum: bool,
        generator: Callable[[str], torch.Generator],
        check_cancelled: Callable[[], None],
    ) -> None:
        self._before = before
        self._after = after
        self._names = names
        self._embedding = embedding
        self._wants_spectrum = wants_spectrum
        self._generator = generator
        self._check_cancelled = check_cancelled

    def start(self) -> State:
        """Nothing known of any tensor."""
        tensors = len(self._names)
        vocabulary = self._before.tensors[self._embedding].shape[0] if self._embedding is not None else 0
        unknown = {
            "sums": (tensors, len(DifferenceSums._fields)),
            "singular_values": (tensors, LEADING),
            "spectrum_errors": (tensors, 2),
            "row_movement": (vocabulary,),
            "row_norm": (vocabulary,),
        }
        state = {name: torch.full(shape, math.nan, dtype=torch.float64) for name, shape in unknown.items()}
        return {**state, "done": torch.zeros(tensors, dtype=torch.bool)}

    def step(self, state: State, batch: Sequence[int]) -> State:
        """The differences of these tensors."""
        for index in batch:
            name = self._names[index]
            headers = self._before.tensors[name], self._after.tensors[name]
            if all(unreadable_reason(header) is None for header in headers):
                self._compare(state, index, name)
            state["done"][index] = True
        return state

    def merge(self, a: State, b: State) -> State:
        """Both passes' tensors."""
        has_rows = self._embedding in self._names and bool(b["done"][self._names.index(self._embedding)])
        rows = {key: (b if has_rows else a)[key] for key in ("row_movement", "row_norm")}
        return {**_tensors_of_both(_without(a, rows), _without(b, rows)), **rows}

    def finish(self, state: State) -> State:
        """The state itself."""
        return state

    def _compare(self, state: State, index: int, name: str) -> None:
        header = self._before.tensors[name]
        sums = DifferenceSums()
        is_kept = self._has_spectrum(header) and header.parameters <= HELD_ELEMENTS
        kept = torch.empty(header.shape[0], header.parameters // header.shape[0], dtype=torch.float64) if is_kept else None
        row = 0
        for before, after, change, stored in self._blocks(name):
            sums = added(sums, difference_sums(before, after, stored, change))
            rows = slice(row, row + before.shape[0])
            if kept is not None:
                kept[rows] = change
            if name == self._embedding:
                state["row_movement"][rows] = torch.linalg.vector_norm(change, dim=1)
                state["row_norm"][rows] = torch.linalg.vector_norm(before, dim=1)
            row = rows.stop
        state["sums"][index] = torch.tensor(sums, dtype=torch.float64)
        if self._has_spectrum(header) and sums.is_known and sums.square_change > 0 and is_measurable(sums.square_change):
            spectrum = self._spectrum(name, header, kept)
            state["singular_values"][index, : len(spectrum.singular_values)] = spectrum.singular_values
            state["spectrum_errors"][index] = torch.tensor([spectrum.sigma_error, spectrum.energy_error], dtype=torch.float64)

    def _has_spectrum(self, header: TensorHeader) -> bool:
        return self._wants_spectrum and is_matrix(header)

    def _spectrum(self, name: str, header: TensorHeader, kept: torch.Tensor | None) -> LeadingSpectrum:
        rows = header.shape[0]
        columns = header.parameters // rows
        generator = self._generator(name)
        if kept is None:
            return leading_spectrum(lambda: (change for _, _, change, _ in self._blocks(name)), rows, columns, generator)
        tall = kept if rows >= columns else kept.T  # the same singular values, and the smaller side is the one that costs
        return leading_spectrum(lambda: (tall,), max(rows, columns), min(rows, columns), generator)

    def _blocks(self, name: str) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.dtype]]:
        """Blocks of rows of both tensors and of their change, float64, and the coarser dtype of the two.

        Rows longer than `LONGEST_ROW` come in parts.
        """
        header = self._before.tensors[name]
        for start, stop in row_ranges(header.shape):
            self._check_cancelled()
            before, after = (rows_of(side, side.tensors[name], start, stop) for side in (self._before, self._after))
            stored = coarser(before.dtype, after.dtype)
            parts = (torch.split(rows, LONGEST_ROW, dim=1) for rows in (before, after))
            for part_before, part_after in zip(*parts, strict=True):
                yield real_values(part_before), real_values(part_after), change_between(part_before, part_after), stored


class UpdatesPass:
    """Result: `sums` (tensor, step, field) float64 with the fields of `UpdateSums`. All tensors are readable in all members.

    Of a run of rows, the first, the current and the two previous members' are in memory, as they are stored; float64 copies
    are of a chunk, however long a row is.
    """

    def __init__(self, members: Sequence[Checkpoint], names: Sequence[str], check_cancelled: Callable[[], None]) -> None:
        self._members = members
        self._names = names
        self._check_cancelled = check_cancelled

    def start(self) -> State:
        """Nothing known of any tensor."""
        shape = (len(self._names), len(self._members), len(UpdateSums._fields))
        return {"sums": torch.full(shape, math.nan, dtype=torch.float64), "done": torch.zeros(len(self._names), dtype=torch.bool)}

    def step(self, state: State, batch: Sequence[int]) -> State:
        """These tensors, each followed along all members."""
        for index in batch:
            name = self._names[index]
            state["sums"][index] = self._followed(name)
            state["done"][index] = True
        return state

    def merge(self, a: State, b: State) -> State:
        """Both passes' tensors."""
        return _tensors_of_both(a, b)

    def finish(self, state: State) -> State:
        """The state itself."""
        return state

    def _followed(self, name: str) -> torch.Tensor:
        """(step, field): sums of one tensor."""
        sums = torch.zeros(len(self._members), len(UpdateSums._fields), dtype=torch.float64)
        for start, stop in row_ranges(self._members[0].tensors[name].shape):
            first: torch.Tensor | None = None
            recent: deque[torch.Tensor] = deque(maxlen=2)
            for step, member in enumerate(self._members):
                self._check_cancelled()
                rows = rows_of(member, member.tensors[name], start, stop).reshape(-1)
                first = rows if first is None else first
                for part in range(0, len(rows), CHUNK_ELEMENTS):
                    cut = slice(part, part + CHUNK_ELEMENTS)
                    seen = update_sums(rows[cut], first[cut], [each[cut] for each in recent])
                    sums[step] += torch.tensor(seen, dtype=torch.float64)
                recent.append(rows)
        return sums


def is_matrix(header: TensorHeader) -> bool:
    """Whether a tensor's difference is looked at as a matrix: at least two dimensions, and no longer rows than `LONGEST_ROW`."""
    return len(header.shape) >= 2 and header.parameters > 0 and header.parameters // header.shape[0] <= LONGEST_ROW


def _tensors_of_both(a: State, b: State) -> State:
    """For each tensor the rows of whichever pass has done it."""
    from_b = b["done"]
    merged = {}
    for key, rows in a.items():
        mask = from_b.reshape(-1, *[1] * (rows.dim() - 1))
        merged[key] = torch.where(mask, b[key], rows)
    return merged


def _without(state: State, keys: Collection[str]) -> State:
    return {key: tensor for key, tensor in state.items() if key not in keys}

"""What a running analysis is given. Everything here is a protocol; the host injects the implementations.

An analysis is `def run(context: JobContext, params: Params) -> None`: deterministic, acting only through `context`. Resuming
calls it again from the top, and finished stages hand back what they stored.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol, TypeVar

from modelscope_app.api.tensor_header import TensorHeader

if TYPE_CHECKING:
    import polars
    import torch

    from modelscope_app.api.errors import BadInput
    from modelscope_app.api.views import View

Item = TypeVar("Item")
Batch = TypeVar("Batch")
Batch_co = TypeVar("Batch_co", covariant=True)
Batch_contra = TypeVar("Batch_contra", contravariant=True)
Result = TypeVar("Result")
Result_co = TypeVar("Result_co", covariant=True)

Fact = bool | int | float | str | None
"""One value of a fact. Not-a-number and infinity are stored as null."""


class Checkpoint(Protocol):
    """An opened checkpoint: its headers are read, its values are not."""

    @property
    def path(self) -> Path:
        """Absolute path of the folder or file."""

    @property
    def name(self) -> str:
        """Its last path component, for people."""

    @property
    def config(self) -> Mapping[str, Any] | None:
        """config.json, when there is one."""

    @property
    def tensors(self) -> Mapping[str, TensorHeader]:
        """Headers by name, in natural order (layer 2 before layer 10)."""

    @property
    def fingerprint(self) -> str:
        """Hash of the content: equal means equal tensors, config and tokenizer."""

    @property
    def parameters(self) -> int:
        """Number of elements over all tensors."""

    def tensor(self, name: str) -> torch.Tensor:
        """The values of one tensor, on the CPU, in the stored dtype. Raises BadInput for a dtype torch lacks."""

    def rows(self, name: str, start: int, stop: int) -> torch.Tensor:
        """Rows `start` to `stop` along the first dimension, without reading the others."""


class Series(Protocol):
    """A folder of checkpoints of one training run."""

    @property
    def path(self) -> Path:
        """Absolute path of the folder."""

    @property
    def steps(self) -> Sequence[int]:
        """Training step of each member, ascending."""

    @property
    def checkpoints(self) -> Sequence[Checkpoint]:
        """The members, in the same order."""


class Example(NamedTuple):
    """One row of a data file, as a model reads it."""

    id: int
    """0-based row number in the file."""
    input_ids: tuple[int, ...]
    completion_start: int
    """Index of the first token of the completion; 0 where the row has no prompt. Tokens before it carry no loss."""
    row: Mapping[str, Any]
    """The row itself, all its columns."""


class TokenBatch(NamedTuple):
    """Examples padded to one length."""

    ids: tuple[int, ...]
    """Example ids, one per row of the tensors."""
    input_ids: torch.Tensor
    """(batch, token) int64."""
    attention_mask: torch.Tensor
    """(batch, token) int64; 0 on padding."""
    completion_mask: torch.Tensor
    """(batch, token) bool; True on real tokens that are not prompt."""


class DataRows(Protocol):
    """The rows of a data file, and where each of them stands."""

    @property
    def path(self) -> Path:
        """Absolute path of the file."""

    @property
    def rows(self) -> Sequence[Mapping[str, Any]]:
        """The rows; row i has id i. Untrusted."""

    def bad_row(self, id: int, reason: str) -> BadInput:
        """The error to raise for a row: file, line, reason."""


class LabelledFeatures(NamedTuple):
    """Rows of a data file for an `mlp` classifier; row i has id i."""

    features: torch.Tensor
    """(row, feature) float64, as the file has them; the model casts them to its own dtype."""
    labels: torch.Tensor
    """(row,) int64."""
    rows: Sequence[Mapping[str, Any]]
    """The rows themselves, all their columns."""


class Source(Protocol[Batch_co]):
    """Data for a fold: a plan (item ids per batch, fixed before the first step) and a way to load one batch of it."""

    @property
    def unit(self) -> str:
        """What progress calls the items: `examples`, `tensors` ..."""

    @property
    def plan(self) -> Sequence[Sequence[int]]:
        """Item ids of each batch, in order."""

    def load(self, ids: Sequence[int]) -> Batch_co:
        """The batch of these items."""


class Fold(Protocol[Batch_contra, Result_co]):
    """A pass over data. Model and earlier results are constructor arguments.

    State is a flat dict of tensors; `step` may change it in place. With a method `merge(a, b) -> state` beside these, the
    order of batches does not matter and the pass may be sharded. Randomness of such a fold is drawn from
    `context.generator(stage, example id)`, never from a running generator. Without `merge` the fold is sequential
    (training); the host then also saves and restores torch's generators.
    """

    def start(self) -> dict[str, torch.Tensor]:
        """The state before any batch."""

    def step(self, state: dict[str, torch.Tensor], batch: Batch_contra) -> dict[str, torch.Tensor]:
        """The state after one more batch."""

    def finish(self, state: dict[str, torch.Tensor]) -> Result_co:
        """The stage's result: tensors, polars frames, JSON values, and dicts, lists and tuples of them."""


class MergeableFold(Fold[Batch_contra, Result_co], Protocol[Batch_contra, Result_co]):
    """A fold whose order does not matter."""

    def merge(self, a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The state of both passes together."""


class FamilyAdapter(Protocol):
    """Where an architecture keeps its parts. Each method takes a 0-based layer; what a family lacks raises BadInput."""

    def layers(self) -> Sequence[torch.nn.Module]:
        """The decoder layers."""

    def attention_output(self, layer: int) -> torch.nn.Module:
        """The module whose output attention adds to the residual stream."""

    def mlp_output(self, layer: int) -> torch.nn.Module:
        """The module whose output the MLP adds to the residual stream."""

    def head_projection(self, layer: int) -> tuple[torch.nn.Module, int]:
        """The output projection whose input is the concatenated heads, and the number of heads."""


class Sites(Protocol):
    """Reading and writing activations. Hooks live inside the `with` and are always removed."""

    @property
    def layer_count(self) -> int:
        """Number of decoder layers."""

    def read(
        self, sites: Iterable[str], keep: Callable[[torch.Tensor], torch.Tensor] | None = None
    ) -> AbstractContextManager[dict[str, torch.Tensor]]:
        """A dict that each forward pass inside the `with` fills by site. `keep` slices inside the hook, before storing."""

    def write(self, changes: Mapping[str, Callable[[torch.Tensor], torch.Tensor]]) -> AbstractContextManager[None]:
        """Replace the activation at each site by what its function returns."""


class Prefix(Protocol):
    """Beginnings that a model has read; `Model.body` goes on from them."""

    @property
    def rows(self) -> int:
        """Rows that continue it."""


class Model(Protocol):
    """A checkpoint as a running torch model, in eval mode."""

    @property
    def module(self) -> torch.nn.Module:
        """The torch module."""

    @property
    def checkpoint(self) -> Checkpoint:
        """Where its weights come from."""

    @property
    def sites(self) -> Sites:
        """Its activations. Raises BadInput where no decoder layers are found."""

    def logits(self, batch: TokenBatch) -> torch.Tensor:
        """(batch, token, vocabulary): next-token logits of a padded batch."""

    def body(self, batch: TokenBatch, after: Prefix | None = None) -> torch.Tensor:
        """(batch, token, hidden): the last hidden state after the final norm; the LM head is skipped.

        With `after`, the rows go on from a prefix that was read before, and are padded on the right.
        """

    def prefix(self, batch: TokenBatch, repeats: int = 1) -> Prefix:
        """Read what several texts begin with, once: rows padded on the left, each to be continued by `repeats` rows in a row."""

    def greedy(self, batch: TokenBatch, count: int) -> torch.Tensor:
        """(batch, count) int64: the most likely next tokens after rows padded on the left; -1 after an end token and where
        the logits are not finite."""


class Tokenizer(Protocol):
    """A checkpoint's tokenizer."""

    def encode(self, text: str, open_ended: bool = False) -> list[int]:
        """Token ids with the special tokens the tokenizer adds itself; `open_ended` leaves out those at the end."""

    def encode_bare(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text, with no special token that is not written in it."""

    def decode(self, ids: Sequence[int]) -> str:
        """Text of these ids, special tokens included."""

    def token(self, id: int) -> str:
        """Text of one token as it stands in running text; untrusted."""

    @property
    def has_chat_template(self) -> bool:
        """Whether the checkpoint brings a chat template."""

    def chat(self, messages: Sequence[Mapping[str, str]], answer_follows: bool = False) -> list[int]:
        """Token ids of a conversation through the chat template, with no second BOS."""


class FinishedRun(Protocol):
    """A run folder that is read, not written."""

    @property
    def id(self) -> str: ...
    @property
    def folder(self) -> Path: ...
    @property
    def analysis(self) -> str: ...
    @property
    def checkpoints(self) -> Sequence[str]:
        """Absolute paths of the checkpoints (or series) it was given; they may have gone since."""

    @property
    def params(self) -> Mapping[str, Any]:
        """What it was asked, by name, as JSON values; untrusted."""

    @property
    def status(self) -> str: ...
    @property
    def error(self) -> str | None:
        """The sentence of a run that failed or was cancelled."""

    @property
    def facts(self) -> Mapping[str, Any]: ...
    @property
    def views(self) -> Sequence[View]: ...
    @property
    def tables(self) -> Mapping[str, Path]:
        """Parquet files by table name."""

    @property
    def artifacts(self) -> Mapping[str, Path]:
        """Safetensors and json files by artifact name."""

    def table(self, name: str) -> polars.DataFrame:
        """One table. Raises BadInput naming the tables there are."""

    def tensors(self, name: str) -> dict[str, torch.Tensor]:
        """One safetensors artifact."""

    def json(self, name: str) -> Any:
        """One json artifact."""


class JobContext(Protocol):
    """The only thing an analysis acts through."""

    @property
    def checkpoints(self) -> Sequence[Checkpoint]:
        """The checkpoints named on the command line, in order. For an analysis of series, the members of the series."""

    @property
    def series(self) -> Sequence[Series]:
        """The series named on the command line, for an analysis that takes series; else empty."""

    @property
    def device(self) -> torch.device: ...
    @property
    def seed(self) -> int: ...
    @property
    def dtype(self) -> torch.dtype | None:
        """The dtype asked for with --dtype; None for `auto`, which keeps each checkpoint's own."""

    def model(self, checkpoint: int = 0) -> Model:
        """The checkpoint of that position, built and on the device. Built once per job."""

    def tokenizer(self, checkpoint: int = 0) -> Tokenizer:
        """Its tokenizer. Raises BadInput where it has none."""

    def open_checkpoint(self, path: str) -> int:
        """The position, for `model` and the like, of a checkpoint that a param of type `CheckpointPath` names; see `opened`."""

    def opened(self, checkpoint: int) -> Checkpoint:
        """The checkpoint of that position: one of `checkpoints`, or one that `open_checkpoint` opened."""

    def rows(self, path: str) -> DataRows:
        """Rows of a data file as they stand there. Raises BadInput naming file, line and reason."""

    def examples(self, path: str, checkpoint: int = 0) -> Sequence[Example]:
        """Rows of a data file, tokenised for that checkpoint. Raises BadInput naming file, line and reason."""

    def labelled_features(self, path: str, checkpoint: int = 0) -> LabelledFeatures:
        """Rows of a data file with `features` and `label`, checked against that `mlp` checkpoint's layer sizes."""

    def batches(
        self, examples: Sequence[Example], tokens_per_batch: int = 4096, padding: Literal["left", "right"] = "right"
    ) -> Source[TokenBatch]:
        """Examples of similar length together, each padded batch at most that many tokens (or one example)."""

    def items(self, items: Sequence[Item], per_batch: int = 1, unit: str = "items") -> Source[Sequence[Item]]:
        """Any sequence as a source, `per_batch` items a step; `unit` is what progress calls them."""

    def run(self, reference: str) -> FinishedRun:
        """An earlier run, by id or folder."""

    def fold(self, name: str, fold: Fold[Batch, Result], source: Source[Batch]) -> Result:
        """Run a pass as the stage `name`; resumed, saved and cancellable between steps."""

    def once(self, name: str, compute: Callable[[], Result]) -> Result:
        """Run what lies between passes as the stage `name`; stored when it finishes."""

    def append(self, name: str, tensors: Mapping[str, torch.Tensor]) -> None:
        """Inside a fold's step: add an immutable chunk to a list too big for state."""

    def appended(self, name: str) -> Iterator[dict[str, torch.Tensor]]:
        """The chunks of a finished stage's list, in order, one in memory at a time."""

    def generator(self, stage: str, key: int | str) -> torch.Generator:
        """A CPU generator keyed by (seed, stage, key), the same whatever the batching."""

    def cached(self, key: Mapping[str, Any], compute: Callable[[], Result]) -> Result:
        """A result shared between runs, found again by its key. Put everything it depends on into the key."""

    def progress(self, done: float, total: float | None, unit: str) -> None:
        """Say how far a stage that is no fold has come."""

    def log(self, message: str) -> None:
        """A line for the run's log."""

    def warn(self, message: str) -> None:
        """A sentence the user should see: on stderr, in the events and in the log."""

    def check_cancelled(self) -> None:
        """Raise JobCancelled if the job was asked to stop. Folds do this between steps."""

    def table(self, name: str, frame: polars.DataFrame) -> None:
        """Store a table."""

    def tensors(self, name: str, tensors: Mapping[str, torch.Tensor]) -> None:
        """Store a safetensors artifact."""

    def json(self, name: str, value: Any) -> None:
        """Store a json artifact."""

    def view(self, view: View) -> None:
        """Store a picture of the results."""

    def facts(self, facts: Mapping[str, Fact | Mapping[str, Fact]]) -> None:
        """Add headline facts. A fact with its uncertainty is a dict: value, ci_low, ci_high."""

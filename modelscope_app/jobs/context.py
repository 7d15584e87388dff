"""The `JobContext` that a running analysis is given."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from modelscope_app.api import Example, FinishedRun, Fold, LabelledFeatures, Model, Reader, Source, TokenBatch, Tokenizer, View
from modelscope_app.jobs.models import ModelSource
from modelscope_app.jobs.randomness import keyed_generator
from modelscope_app.jobs.shared_cache import cached
from modelscope_app.jobs.stages import Stages
from modelscope_app.runs.events import EventLog
from modelscope_app.runs.folder import RunFolder
from modelscope_app.runs.index import find_run

if TYPE_CHECKING:
    import polars
    import torch

    from modelscope_app.checkpoints import OpenCheckpoint, OpenSeries
    from modelscope_app.data import CheckpointTokenizer, Rows
    from modelscope_app.models import BuiltModel
    from modelscope_app.plugin_host import PluginHost

Item = TypeVar("Item")
Batch = TypeVar("Batch")
Result = TypeVar("Result")


class RunningContext:
    """Implements `api.JobContext` over one run folder."""

    def __init__(
        self,
        run: RunFolder,
        checkpoints: Sequence[OpenCheckpoint],
        series: Sequence[OpenSeries],
        stages: Stages,
        events: EventLog,
        host: PluginHost,
        models: ModelSource,
        device: str,
        check_cancelled: Callable[[], None],
        on_progress: Callable[[str, float, float | None, str], None],
        on_warning: Callable[[str], None],
    ) -> None:
        from modelscope_app.models import resolve_device, resolve_dtype

        self.checkpoints = checkpoints
        self._opened = list(checkpoints)
        self._named: dict[str, int] = {}
        self.series = series
        self.device: torch.device = resolve_device(device)
        self.dtype: torch.dtype | None = resolve_dtype(run.job.dtype)
        self.seed = run.job.seed
        self._run = run
        self._stages = stages
        self._events = events
        self._host = host
        self._source = models
        self._on_progress = on_progress
        self._on_warning = on_warning
        self._models: dict[int, BuiltModel] = {}
        self._tokenizers: dict[int, CheckpointTokenizer] = {}
        self.check_cancelled = check_cancelled

    def model(self, checkpoint: int = 0) -> Model:
        """The checkpoint of that position, built and on the device."""
        if checkpoint not in self._models:
            self.check_cancelled()
            opened = self._opened[checkpoint]
            opened.check_unchanged()
            builder = self._host.architecture(str((opened.config or {}).get("model_type")))
            architectures = [builder.value] if builder else []
            model = self._source.model(opened, str(self.device), self._run.job.dtype, architectures)
            self.log(f"{opened.path} is on {self.device}")
            self.check_cancelled()
            for note in model.notes:
                self.warn(note)
            self._models[checkpoint] = model
        return self._models[checkpoint]

    def tokenizer(self, checkpoint: int = 0) -> Tokenizer:
        """Its tokenizer. Raises BadInput where it has none."""
        return self._tokenizer(checkpoint)

    def open_checkpoint(self, path: str) -> int:
        """The position of a checkpoint that a param names. Raises BadInput for what is none, or a series."""
        from modelscope_app.checkpoints import open_checkpoint

        if path not in self._named:
            self._opened.append(open_checkpoint(path))
            self._named[path] = len(self._opened) - 1
        return self._named[path]

    def opened(self, checkpoint: int) -> OpenCheckpoint:
        """The checkpoint of that position."""
        return self._opened[checkpoint]

    def rows(self, path: str) -> Rows:
        """Rows of a data file as they stand there."""
        from modelscope_app.data import read_rows

        return read_rows(path, self._readers(path))

    def examples(self, path: str, checkpoint: int = 0) -> Sequence[Example]:
        """Rows of a data file, tokenised for that checkpoint."""
        from modelscope_app.data import MissingTokenizer, read_examples, token_limits

        try:
            tokenizer = self._tokenizer(checkpoint)
        except MissingTokenizer:
            tokenizer = None  # rows of token ids need none; others are refused by name
        limits = token_limits(self._opened[checkpoint])
        return read_examples(path, tokenizer, readers=self._readers(path), warn=self.warn, limits=limits)

    def labelled_features(self, path: str, checkpoint: int = 0) -> LabelledFeatures:
        """Rows of a data file with `features` and `label`."""
        from modelscope_app.data import read_labelled_features

        config = self._opened[checkpoint].config or {}
        return read_labelled_features(path, config.get("layer_sizes"), readers=self._readers(path))

    def batches(
        self, examples: Sequence[Example], tokens_per_batch: int = 4096, padding: Literal["left", "right"] = "right"
    ) -> Source[TokenBatch]:
        """Examples of similar length together."""
        from modelscope_app.data import length_bucketed

        pad_id = next((tokenizer.pad_id for tokenizer in self._tokenizers.values()), 0)
        return length_bucketed(examples, tokens_per_batch, padding, pad_id)

    def items(self, items: Sequence[Item], per_batch: int = 1, unit: str = "items") -> Source[Sequence[Item]]:
        """Any sequence as a source."""
        from modelscope_app.data import items_source

        return items_source(items, per_batch, unit)

    def run(self, reference: str) -> FinishedRun:
        """An earlier run, by id or folder."""
        return find_run(reference)

    def fold(self, name: str, fold: Fold[Batch, Result], source: Source[Batch]) -> Result:
        """Run a pass as the stage `name`."""
        return self._stages.fold(name, fold, source)

    def once(self, name: str, compute: Callable[[], Result]) -> Result:
        """Run what lies between passes as the stage `name`."""
        return self._stages.once(name, compute)

    def append(self, name: str, tensors: Mapping[str, torch.Tensor]) -> None:
        """Add an immutable chunk to a list too big for state."""
        self._stages.append(name, tensors)

    def appended(self, name: str) -> Iterator[dict[str, torch.Tensor]]:
        """The chunks of a list, in order."""
        return self._stages.appended(name)

    def generator(self, stage: str, key: int | str) -> torch.Generator:
        """A CPU generator keyed by (seed, stage, key)."""
        return keyed_generator(self.seed, stage, key)

    def cached(self, key: Mapping[str, Any], compute: Callable[[], Result]) -> Result:
        """A result shared between runs. The analysis and its version are part of the key."""
        return cached({"analysis": self._run.analysis, "version": self._run.job.analysis_version, **key}, compute)

    def progress(self, done: float, total: float | None, unit: str) -> None:
        """How far a stage that is no fold has come."""
        self._on_progress(self._run.analysis, done, total, unit)

    def log(self, message: str) -> None:
        """A line for the run's log."""
        print(message, flush=True)

    def warn(self, message: str) -> None:
        """A sentence the user should see."""
        self._on_warning(message)

    def table(self, name: str, frame: polars.DataFrame) -> None:
        """Store a table."""
        self._run.write_table(name, frame)
        self._events.add("table", name=name, rows=frame.height)

    def tensors(self, name: str, tensors: Mapping[str, torch.Tensor]) -> None:
        """Store a safetensors artifact."""
        self._run.write_tensors(name, tensors)
        self._events.add("artifact", name=name)

    def json(self, name: str, value: Any) -> None:
        """Store a json artifact."""
        self._run.write_json(name, value)
        self._events.add("artifact", name=name)

    def view(self, view: View) -> None:
        """Store a picture of the results."""
        self._run.write_view(view)
        self._events.add("view", name=view.name)

    def facts(self, facts: Mapping[str, Any]) -> None:
        """Add headline facts."""
        self._run.write_facts(facts)
        self._events.add("facts", names=list(facts))

    def check_inputs(self) -> None:
        """Raise BadInput where a checkpoint's files changed while the analysis read them, so that its results cannot be trusted."""
        for model in self._models.values():
            model.settled()
        for checkpoint in self._opened:
            checkpoint.check_unchanged()

    def _tokenizer(self, checkpoint: int) -> CheckpointTokenizer:
        if checkpoint not in self._tokenizers:
            from modelscope_app.data import load_tokenizer

            self._tokenizers[checkpoint] = load_tokenizer(self._opened[checkpoint], self.warn)
        return self._tokenizers[checkpoint]

    def _readers(self, path: str) -> list[Reader]:
        reader = self._host.reader(Path(path).suffix)
        return [reader.value] if reader else []

"""An analysis that builds a model, tokenises data and reads activations, from `mscope run` to its tables, against a slow obvious way."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from modelscope_app.api import FinishedRun
from modelscope_app.testing import RunFailed, TemporaryPlugins

pytest_plugins = ["modelscope_app.testing"]

SOURCE = """
from pydantic import BaseModel, Field
from modelscope_app.api import Analysis, Checkpoints, DataFile, SiteName, hookimpl

MODELSCOPE_API = (1, 1)

class Params(BaseModel):
    data: DataFile = Field(description="rows")
    site: SiteName = "resid_post.1"
    tokens: int = Field(16, ge=1, description="tokens per batch")
    spoil: bool = Field(False, description="write to the checkpoint while it is read")

@hookimpl
def modelscope_analyses():
    takes = Checkpoints(kind="model")
    return [Analysis(name="mean", title="Mean", summary="Mean activation?", params=Params, run=f"{__name__}:mean", checkpoints=takes)]

class Mean:
    def __init__(self, model, site):
        self.model, self.site = model, site

    def start(self):
        import torch
        zero = torch.zeros((), dtype=torch.float64)
        return {"sum": torch.zeros(self.model.module.config.hidden_size).double(), "loss": zero, "tokens": zero.long()}

    def step(self, state, batch):
        import torch
        with torch.no_grad(), self.model.sites.read([self.site]) as found:
            logits = self.model.logits(batch)
        real = batch.attention_mask.bool()
        state["sum"] += found[self.site][real].double().sum(0)
        state["tokens"] += real.sum()
        targets = batch.completion_mask[:, 1:] & real[:, :-1]
        chosen = torch.log_softmax(logits[:, :-1].double(), -1).gather(-1, batch.input_ids[:, 1:, None])[..., 0]
        state["loss"] -= chosen[targets].sum()
        return state

    def finish(self, state):
        return {"mean": state["sum"] / state["tokens"], "loss": float(state["loss"]), "tokens": int(state["tokens"])}

    def merge(self, a, b):
        return {name: a[name] + b[name] for name in a}

def mean(context, params):
    examples = context.examples(params.data)
    found = context.fold("mean", Mean(context.model(), params.site), context.batches(examples, params.tokens))
    if params.spoil:
        path = context.checkpoints[0].path / "model.safetensors"
        path.write_bytes(path.read_bytes()[:-1] + b"x")
    context.tensors("mean", {"mean": found["mean"]})
    context.facts({"loss": found["loss"], "tokens": found["tokens"]})
"""

ROWS = [{"input_ids": list(range(3, 3 + length))} for length in (5, 2, 9, 7, 3, 3)]


@pytest.fixture
def acts(temporary_plugins: TemporaryPlugins) -> TemporaryPlugins:
    temporary_plugins.write("acts", SOURCE)
    return temporary_plugins


@pytest.fixture
def llama(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    sizes = {"vocab_size": 32, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 3}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64}
    config = transformers.LlamaConfig(**sizes, **heads, pad_token_id=0, bos_token_id=1, eos_token_id=2)
    transformers.LlamaForCausalLM(config).save_pretrained(tmp_path / "llama")
    return tmp_path / "llama"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return path


Run = Callable[..., FinishedRun]


def slow_obvious_way(folder: Path) -> dict[str, Any]:
    """One unpadded row at a time through transformers."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    states, loss = [], 0.0
    for row in ROWS:
        ids = torch.tensor([row["input_ids"]])
        with torch.no_grad():
            output = model(ids, output_hidden_states=True)
        states.append(output.hidden_states[2][0].double())
        scores = torch.log_softmax(output.logits[0, :-1].double(), -1)
        loss -= float(scores.gather(-1, ids[0, 1:, None]).sum())
    return {"mean": torch.cat(states).mean(0), "loss": loss, "tokens": sum(map(len, states))}


@pytest.mark.parametrize("tokens", [1, 18, 1000])
def test_activations_and_losses_equal_those_of_single_rows(
    run_analysis: Run, acts: TemporaryPlugins, llama: Path, data: Path, tokens: int
) -> None:
    run = run_analysis("acts.mean", llama, data=str(data), tokens=tokens)
    expected = slow_obvious_way(llama)
    assert run.facts["tokens"] == expected["tokens"]
    # float32 activations, summed in another order than single rows are
    assert run.facts["loss"] == pytest.approx(expected["loss"], rel=1e-5)
    torch.testing.assert_close(run.tensors("mean")["mean"], expected["mean"], rtol=1e-4, atol=1e-6)


def test_a_checkpoint_that_changes_while_it_is_read_fails_the_run(
    run_analysis: Run, acts: TemporaryPlugins, llama: Path, data: Path
) -> None:
    with pytest.raises(RunFailed, match=r"model\.safetensors") as failed:
        run_analysis("acts.mean", llama, data=str(data), spoil=True)
    assert failed.value.exit_code == 3


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"site": "resid_post.9"}, "the model has 3 layers, 0 to 2"),
        ({"site": "soul.1"}, "is not a site"),
        ({"data": "/nowhere.jsonl"}, "/nowhere.jsonl"),
    ],
)
def test_what_is_wrong_is_a_sentence_and_exit_3(
    run_analysis: Run, acts: TemporaryPlugins, llama: Path, data: Path, options: dict[str, str], sentence: str
) -> None:
    with pytest.raises(RunFailed, match=sentence) as failed:
        run_analysis("acts.mean", llama, **{"data": str(data), **options})
    assert failed.value.exit_code == 3
    assert "Traceback" not in failed.value.message


def test_text_without_a_tokenizer_names_file_and_line(run_analysis: Run, acts: TemporaryPlugins, llama: Path, tmp_path: Path) -> None:
    path = tmp_path / "text.jsonl"
    path.write_text('{"input_ids": [3, 4]}\n{"text": "hello"}\n')
    with pytest.raises(RunFailed, match=r"text\.jsonl, line 2: is text, and the checkpoint has no tokenizer"):
        run_analysis("acts.mean", llama, data=str(path))


@pytest.mark.parametrize("model_type", ["wizard", None])
def test_an_unknown_architecture_is_named(
    run_analysis: Run, acts: TemporaryPlugins, llama: Path, data: Path, model_type: str | None
) -> None:
    config = json.loads((llama / "config.json").read_text())
    (llama / "config.json").write_text(json.dumps({**config, "model_type": model_type}))
    with pytest.raises(RunFailed, match=model_type or "names no model_type") as failed:
        run_analysis("acts.mean", llama, data=str(data))
    assert failed.value.exit_code == 3
    (llama / "config.json").unlink()
    with pytest.raises(RunFailed, match=r"without config\.json"):
        run_analysis("acts.mean", llama, data=str(data))


READING = """
from pydantic import BaseModel
from modelscope_app.api import Analysis, CheckpointPath, Checkpoints, InputFile, JobFailed, RunReference, hookimpl

MODELSCOPE_API = (1, 1)

class Params(BaseModel):
    run: RunReference = ""
    other: CheckpointPath = ""
    file: InputFile = ""

@hookimpl
def modelscope_analyses():
    return [Analysis(name="fail", title="t", summary="s", params=Params, run=f"{__name__}:fail", checkpoints=Checkpoints(0, 0))]

def fail(context, params):
    if params.run:
        context.facts({"earlier": context.run(params.run).id})
    raise JobFailed("on purpose")
"""


def test_what_params_name_is_fixed_when_the_job_is_submitted(temporary_plugins: TemporaryPlugins, llama: Path, tmp_path: Path) -> None:
    temporary_plugins.write("names", READING)

    def mscope(*words: object) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "modelscope_app.cli.main", *map(str, words)]
        return subprocess.run(command, env=temporary_plugins.environment(), capture_output=True, text=True, check=False)

    (tmp_path / "notes.txt").write_text("one")
    first = mscope("run", "names.fail", "--out", tmp_path / "first", "--quiet")  # empty defaults name nothing
    assert "on purpose" in first.stderr
    words = ["--run", "latest", "--other", llama, "--file", tmp_path / "notes.txt"]
    second = mscope("run", "names.fail", *words, "--out", tmp_path / "second", "--quiet")
    assert "on purpose" in second.stderr
    job = json.loads((tmp_path / "second" / "job.json").read_text())
    assert job["params"]["run"] == str(tmp_path / "first")
    assert (
        json.loads((tmp_path / "second" / "facts.json").read_text())["earlier"]
        == json.loads((tmp_path / "first" / "job.json").read_text())["id"]
    )
    assert [given["kind"] for given in job["inputs"]] == ["run", "checkpoint", "file"]

    assert "on purpose" in mscope("runs", "resume", tmp_path / "second").stderr
    (tmp_path / "notes.txt").write_text("two")
    changed = mscope("runs", "resume", tmp_path / "second")
    assert (changed.returncode, "notes.txt: its content is not what" in changed.stderr) == (3, True)
    (tmp_path / "notes.txt").write_text("one")
    (tmp_path / "first" / "facts.json").write_text("{}")
    changed = mscope("runs", "resume", tmp_path / "second")
    assert (changed.returncode, "first: its content is not what" in changed.stderr) == (3, True)
    (tmp_path / "first" / "facts.json").unlink()
    (llama / "model.safetensors").unlink()
    assert mscope("runs", "resume", tmp_path / "second").returncode == 3


CONTRIBUTING = """
from modelscope_app.api import Architecture, Checkpoints, Analysis, DataFile, Reader, hookimpl
from pydantic import BaseModel

MODELSCOPE_API = (1, 1)

class Params(BaseModel):
    data: DataFile

@hookimpl
def modelscope_architectures():
    return [Architecture("doubler", build=f"{__name__}:build")]

@hookimpl
def modelscope_readers():
    return [Reader(".numbers", read=f"{__name__}:read")]

@hookimpl
def modelscope_analyses():
    takes = Checkpoints(kind="model")
    return [Analysis(name="apply", title="t", summary="s", params=Params, run=f"{__name__}:apply", checkpoints=takes)]

def build(config):
    import torch
    return torch.nn.Sequential(torch.nn.Linear(config["width"], config["width"], bias=False))

def read(path):
    import polars
    return polars.DataFrame({"input_ids": [[int(word) for word in line.split()] for line in open(path)]})

def apply(context, params):
    import torch
    rows = torch.tensor([example.input_ids for example in context.examples(params.data)], dtype=torch.float32)
    context.tensors("out", {"out": context.model().module(rows)})
"""


def test_a_plugins_architecture_and_reader_are_used(
    run_analysis: Run, temporary_plugins: TemporaryPlugins, tiny_checkpoint: Any, tmp_path: Path
) -> None:
    temporary_plugins.write("own", CONTRIBUTING)
    checkpoint = tiny_checkpoint({"0.weight": [[2.0, 0.0], [0.0, 2.0]]}, config={"model_type": "doubler", "width": 2})
    (tmp_path / "rows.numbers").write_text("1 2\n3 4\n")
    run = run_analysis("own.apply", checkpoint, data=str(tmp_path / "rows.numbers"))
    assert run.tensors("out")["out"].tolist() == [[2.0, 4.0], [6.0, 8.0]]


BESIDE = """
from pydantic import BaseModel, Field
from modelscope_app.api import Analysis, CheckpointPath, Checkpoints, DataFile, hookimpl, MscopeError

MODELSCOPE_API = (1, 1)

class Params(BaseModel):
    compare: CheckpointPath = Field(description="another checkpoint")
    data: DataFile = Field(description="rows")

@hookimpl
def modelscope_analyses():
    takes = Checkpoints(kind="model")
    return [Analysis(name="beside", title="Beside", summary="Two?", params=Params, run=f"{__name__}:beside", checkpoints=takes)]

def beside(context, params):
    import torch
    at = context.open_checkpoint(params.compare)
    rows = context.rows(params.data)
    if "bad" in rows.rows[0]:
        raise rows.bad_row(0, "is bad")
    examples = context.examples(params.data, at)
    batch = context.batches(examples, padding="left").load([example.id for example in examples])
    with torch.no_grad():
        logits = [context.model(position).logits(batch)[:, -1] for position in (0, at)]
    refused = 0
    for _ in range(2):
        try:
            context.open_checkpoint(params.data)
        except MscopeError:
            refused += 1
    context.facts({
        "refused": refused,
        "again": context.open_checkpoint(params.compare) == at,
        "named": str(context.opened(at).path),
        "checkpoints": len(context.checkpoints),
        "difference": float((logits[0] - logits[1]).abs().max()),
    })
"""


def test_a_checkpoint_that_a_param_names_is_a_model_beside_the_first(
    run_analysis: Run, temporary_plugins: TemporaryPlugins, llama: Path, data: Path, tmp_path: Path
) -> None:
    temporary_plugins.write("two", BESIDE)
    other = tmp_path / "other"
    torch.manual_seed(1)
    transformers.LlamaForCausalLM(transformers.AutoConfig.from_pretrained(llama)).save_pretrained(other)
    run = run_analysis("two.beside", llama, compare=str(other), data=str(data))
    assert run.facts["again"] and run.facts["named"] == str(other) and run.facts["checkpoints"] == 1
    assert run.facts["difference"] > 0.01
    assert run.facts["refused"] == 2  # what is no checkpoint is none the second time, too
    same = run_analysis("two.beside", llama, compare=str(llama), data=str(data))
    assert same.facts["difference"] == 0


def test_a_row_that_an_analysis_refuses_is_named_by_file_and_line(
    run_analysis: Run, temporary_plugins: TemporaryPlugins, llama: Path, tmp_path: Path
) -> None:
    temporary_plugins.write("two", BESIDE)
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"bad": 1}\n')
    with pytest.raises(RunFailed, match=r"rows\.jsonl, line 1: is bad") as failed:
        run_analysis("two.beside", llama, compare=str(llama), data=str(rows))
    assert failed.value.exit_code == 3


def test_a_warning_is_in_the_object_and_in_what_is_shown_of_a_run(
    run_analysis: Run, temporary_plugins: TemporaryPlugins, llama: Path, data: Path
) -> None:
    temporary_plugins.write("two", BESIDE.replace("    import torch\n", "    import torch\n    context.warn('look out')\n", 1))
    run = run_analysis("two.beside", llama, compare=str(llama), data=str(data))
    words = [sys.executable, "-m", "modelscope_app.cli.main", "runs", "show", str(run.folder)]
    assert json.loads(subprocess.run([*words, "--json"], capture_output=True, text=True, check=True).stdout)["warnings"] == ["look out"]
    assert "warning  look out" in subprocess.run(words, capture_output=True, text=True, check=True).stdout

"""Models stay resident between jobs, as they were built: whatever a job leaves on one, the next job does not find."""

from __future__ import annotations

import shutil
import time
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from jobs.tenant import DEEDS
from models.tiny_models import CAUSAL, ENCODERS, UNDESCRIBED, batch_of, prompts, saved_model
from worker_process import WorkerProcess, events, install, log_of, wait_until

from modelscope_app.api import BadInput
from modelscope_app.checkpoints import open_checkpoint
from modelscope_app.jobs.worker.as_built import AsBuilt
from modelscope_app.jobs.worker.resident import ResidentModels
from modelscope_app.models import BuiltModel, build_model
from modelscope_app.runs.folder import RunFolder
from modelscope_app.testing import write_checkpoint

pytest_plugins = ["worker_process"]

Queued = Callable[..., RunFolder]

NOTICED = {
    "forward hook": "model.layers.0 has other hooks",
    "forward pre-hook": "the model has other hooks",
    "backward hook": "lm_head has other hooks",
    "backward pre-hook": "lm_head has other hooks",
    "state dict hook": "the model has other hooks",
    "state dict pre-hook": "the model has other hooks",
    "load hook": "the model has other hooks",
    "tensor hook": "lm_head.weight has a hook",
    "train": "model.layers.1 is in training mode",
    "requires_grad": "lm_head.weight asks for a gradient",
    "in place": "model.layers.1.mlp.up_proj.weight has other values",
    "data write": "model.layers.0.mlp.up_proj.weight has other values",
    "negated": "model.norm.weight has other values",
    "row swap": "model.embed_tokens.weight has other values",
    "buffer": "model.rotary_emb.inv_freq has other values",
    "other data": "model.layers.0.mlp.up_proj.weight is another tensor",
    "other module": "model.layers.0.mlp.up_proj is another module",
    "other parameter": "lm_head.weight is another tensor",
    "added module": "probe is a module that was added",
    "added parameter": "probe is a tensor that was added",
    "other method": "model.layers.0.mlp has other methods",
    "config": "its config is another",
}
FORGIVEN = ("nothing", "gradient")


@pytest.fixture(autouse=True)
def quiet_transformers() -> Iterator[None]:
    transformers.utils.logging.disable_progress_bar()
    yield
    transformers.utils.logging.enable_progress_bar()


@pytest.fixture
def llama(tmp_path: Path) -> Path:
    return saved_model(tmp_path / "llama", *CAUSAL["llama"])


@pytest.fixture
def other_llama(tmp_path: Path) -> Path:
    return saved_model(tmp_path / "other", *CAUSAL["llama"], seed=1)


def built(folder: Path, dtype: str = "auto") -> BuiltModel:
    return build_model(open_checkpoint(folder), "cpu", dtype)


def test_every_deed_is_expected_to_be_noticed_or_forgiven() -> None:
    assert set(DEEDS) == {*NOTICED, *FORGIVEN}


@pytest.mark.parametrize("dtype", ["auto", "float64"], ids=["mapped weights", "cast weights"])
@pytest.mark.parametrize("deed", DEEDS)
def test_what_is_left_on_a_model_is_noticed(llama: Path, deed: str, dtype: str) -> None:
    model = built(llama, dtype)
    as_built = AsBuilt(model)
    DEEDS[deed](model.module)
    assert as_built.difference() == NOTICED.get(deed)
    assert all(parameter.grad is None for parameter in model.module.parameters()) or deed in NOTICED


@pytest.mark.parametrize("deed", NOTICED)
def test_what_is_left_after_a_job_that_left_nothing_is_noticed_too(llama: Path, deed: str) -> None:
    model = built(llama)
    as_built = AsBuilt(model)
    assert as_built.difference() is None
    DEEDS[deed](model.module)
    assert as_built.difference() == NOTICED[deed]


@pytest.mark.parametrize("name", [*CAUSAL, *UNDESCRIBED, *ENCODERS])
def test_using_a_model_as_it_is_meant_to_be_used_changes_nothing(tmp_path: Path, name: str) -> None:
    model_type, config = {**CAUSAL, **UNDESCRIBED, **ENCODERS}[name]
    model = built(saved_model(tmp_path / name, model_type, config, "encoder" if name in ENCODERS else "causal-lm"))
    as_built = AsBuilt(model)
    for lengths in ((5, 9), (60,)):
        batch = batch_of(prompts(*lengths))
        model.body(batch)
        if name not in ENCODERS:
            model.logits(batch).sum()
            with torch.enable_grad():
                inputs = model.module.get_input_embeddings()(batch.input_ids).detach().requires_grad_(True)
                model.module(inputs_embeds=inputs).logits.sum().backward()
    if name in CAUSAL:
        kinds = [f"{kind}.1" for kind in model.sites.kinds]
        with model.sites.read(kinds), model.sites.write({"resid_post.0": lambda value: value * 2}):
            model.logits(batch_of(prompts(4)))
    assert as_built.difference() is None


def test_tied_weights_are_compared_and_noticed_when_untied(tmp_path: Path) -> None:
    model = built(saved_model(tmp_path / "tied", *CAUSAL["llama_biased"]))
    as_built = AsBuilt(model)
    assert model.module.lm_head.weight is model.module.model.embed_tokens.weight
    assert as_built.difference() is None
    model.module.lm_head.weight = torch.nn.Parameter(model.module.lm_head.weight.clone(), requires_grad=False)
    assert as_built.difference() == "lm_head.weight is another tensor"


def test_weights_that_were_changed_before_the_file_was_copied_are_noticed(llama: Path) -> None:
    """What is written in that moment may be lost or not; where it is there, it is not what the file says."""
    model = built(llama)
    as_built = AsBuilt(model)
    model.unsettled_module.model.norm.weight.data.fill_(3.0)
    difference = as_built.difference()
    is_lost = not bool((model.module.model.norm.weight == 3.0).all())
    assert difference == (None if is_lost else "model.norm.weight has other values")


@pytest.mark.parametrize("change", ["rewritten", "shorter", "gone"])
def test_a_file_that_is_no_longer_there_to_compare_with_is_a_sentence(llama: Path, change: str) -> None:
    model = built(llama)
    as_built = AsBuilt(model)
    model.settled()
    file = llama / "model.safetensors"
    content = file.read_bytes()
    file.unlink()
    if change != "gone":
        file.write_bytes(content if change == "rewritten" else content[:-100])
    with pytest.raises(BadInput, match=r"model\.safetensors"):
        as_built.difference()


def test_a_models_memory_is_given_back_when_it_is_dropped(llama: Path) -> None:
    said: list[list[dict[str, Any]]] = []
    models = ResidentModels(said.append)
    checkpoint = open_checkpoint(llama)
    models.begin({})
    model = models.model(checkpoint, "cpu", "auto", [])
    assert models.newly_built_bytes == model.memory_bytes
    reference = weakref.ref(model.module.lm_head.weight)
    del model
    assert models.end() == []
    models.begin({})
    assert models.model(checkpoint, "cpu", "auto", []).module.lm_head.weight is reference()
    assert models.newly_built_bytes == 0
    models.unload(None, 0.0)
    assert reference() is not None  # the job has it
    models.end()
    assert reference() is None
    assert [len(one) for one in said] == [1, 1, 0, 0]


def test_a_model_that_cannot_be_compared_is_for_one_job_only(llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from modelscope_app.jobs.worker import as_built

    def refuse(model: BuiltModel) -> None:
        raise NotImplementedError("a kind of tensor of its own")

    monkeypatch.setattr(as_built, "AsBuilt", refuse)
    models = ResidentModels(lambda resident: None)
    models.begin({})
    assert models.model(open_checkpoint(llama), "cpu", "auto", []).device.type == "cpu"
    (sentence,) = models.end()
    assert "cannot be compared" in sentence
    assert models.holdings("cpu", [], "auto") == []


# From here on in real workers.


def after(worker: WorkerProcess, run: RunFolder, **changes: Any) -> list[dict[str, Any]]:
    """What is resident once a run is done and checked."""
    assert worker.ended(run, **{"model_bytes": 1, **changes}).state == "done"
    return settled(worker)


def settled(worker: WorkerProcess) -> list[dict[str, Any]]:
    """What is resident when all that was asked for is done: what a run that uses no model finds."""
    return [said["models"] for said in worker.heard if said["say"] == "resident"][-1] if _answers(worker) else []


def _answers(worker: WorkerProcess) -> bool:
    worker.send(do="run", folder="/nowhere", device="cpu", analysis_bytes=0, model_bytes=0, limit_bytes=None, others_bytes=0)
    worker.hear_of("refused")
    return any(said["say"] == "resident" for said in worker.heard)


def test_the_second_job_gets_the_model_of_the_first(worker: WorkerProcess, queued_run: Queued, llama: Path) -> None:
    before = time.time()
    (first,) = after(worker, queued_run("tenant.model", llama))
    checkpoint = open_checkpoint(llama)
    assert first == {
        "path": str(llama),
        "fingerprint": checkpoint.fingerprint,
        "device": "cpu",
        "dtype": "float32",
        "memory_bytes": built(llama).memory_bytes,
        "since": first["since"],
        "last_used": first["last_used"],
    }
    assert before < first["since"] <= first["last_used"] < time.time()
    (second,) = after(worker, queued_run("tenant.model", llama))
    assert second["since"] == first["since"]
    assert second["last_used"] > first["last_used"]
    (third,) = after(worker, queued_run("tenant.model", llama, dtype="float32"))  # as it is stored
    assert third["since"] == first["since"]


def test_every_deed_costs_the_model_and_the_next_job_finds_a_new_one(worker: WorkerProcess, queued_run: Queued, llama: Path) -> None:
    clean = queued_run("tenant.model", llama)
    (before,) = after(worker, clean)
    noticed = {}
    for deed in DEEDS:
        run = queued_run("tenant.model", llama, deed=deed)
        left = after(worker, run)
        if not left:
            sentence = next(line for line in log_of(run).splitlines() if line.startswith("after the run: "))
            assert str(llama) in sentence
            assert sentence.removeprefix("after the run: ") in worker.log.read_text()
            noticed[deed] = sentence.partition("(")[2].partition(")")[0]
        next_run = queued_run("tenant.model", llama)
        (now,) = after(worker, next_run)
        assert (now["since"] > before["since"]) == (deed in noticed)
        assert next_run.facts == run.facts == clean.facts
        before = now
    assert noticed == NOTICED


def test_a_job_that_fails_or_is_cancelled_leaves_its_model_if_it_is_as_it_was(
    worker: WorkerProcess, queued_run: Queued, llama: Path
) -> None:
    (first,) = after(worker, queued_run("tenant.model", llama))
    failing = queued_run("tenant.model", llama, deed="no such deed")
    assert worker.ended(failing, model_bytes=1).state == "failed"
    cancelled = queued_run("tenant.model", llama, rows=10000, seconds=0.01)
    worker.run(cancelled, model_bytes=1)
    wait_until(lambda: any(event["kind"] == "progress" for event in events(cancelled)), "the first step")
    worker.cancel(cancelled)
    worker.hear_of("ended")
    assert cancelled.status == "cancelled"
    assert [model["since"] for model in settled(worker)] == [first["since"]]


def test_dtypes_and_checkpoints_have_models_of_their_own(worker: WorkerProcess, queued_run: Queued, llama: Path, other_llama: Path) -> None:
    after(worker, queued_run("tenant.model", llama))
    after(worker, queued_run("tenant.model", llama, dtype="float64"))
    found = after(worker, queued_run("tenant.model", llama, other_llama))
    assert [(Path(model["path"]).name, model["dtype"]) for model in found] == [
        ("llama", "float32"),
        ("llama", "float64"),
        ("other", "float32"),
    ]
    assert len({model["since"] for model in found}) == 3


def test_a_checkpoint_that_was_saved_again_is_another_model(
    worker: WorkerProcess, queued_run: Queued, llama: Path, other_llama: Path
) -> None:
    old_run = queued_run("tenant.model", llama)
    (old,) = after(worker, old_run)
    shutil.copy(other_llama / "model.safetensors", llama / "model.safetensors")
    new_run = queued_run("tenant.model", llama)
    (new,) = after(worker, new_run)
    assert new["fingerprint"] != old["fingerprint"]
    assert new_run.facts["sum"] != old_run.facts["sum"]


def test_a_job_that_names_a_checkpoint_twice_gets_two_models(worker: WorkerProcess, queued_run: Queued, llama: Path) -> None:
    run = queued_run("tenant.model", llama, llama)
    first = after(worker, run)
    assert run.facts["different"] == 2
    assert len(first) == 2
    again = queued_run("tenant.model", llama, llama, deed="in place")
    (left,) = after(worker, again)  # the one it did nothing to
    assert again.facts == run.facts
    assert left["since"] in {model["since"] for model in first}


def test_the_members_of_a_series_stay_resident(
    worker: WorkerProcess, queued_run: Queued, llama: Path, other_llama: Path, tmp_path: Path
) -> None:
    for step, member in enumerate((llama, other_llama)):
        shutil.copytree(member, tmp_path / "training" / f"step_{step}")
    first = after(worker, queued_run("tenant.series", tmp_path / "training"))
    second = after(worker, queued_run("tenant.series", tmp_path / "training"))
    assert len(first) == 2
    assert [model["since"] for model in second] == [model["since"] for model in first]
    shutil.copy(other_llama / "model.safetensors", tmp_path / "training" / "step_0" / "model.safetensors")
    third = after(worker, queued_run("tenant.series", tmp_path / "training"))
    assert [model["since"] for model in third if "step_1" in model["path"]] == [first[1]["since"]]
    assert [model["since"] > first[1]["since"] for model in third if "step_0" in model["path"]] == [True]


ARCHITECTURE = """
from pydantic import BaseModel
from modelscope_app.api import Architecture, hookimpl

MODELSCOPE_API = (1, 1)

@hookimpl
def modelscope_architectures():
    return [Architecture("doubler", build=f"{__name__}:build")]

def build(config):
    import torch
    return torch.nn.Sequential(torch.nn.Linear(config["width"], config["width"], bias=False))
"""


def test_models_that_plugins_build_stay_resident(worker_site: Path, start_worker: Any, queued_run: Queued, tmp_path: Path) -> None:
    install(worker_site, "doubling", ARCHITECTURE)
    folder = write_checkpoint(tmp_path / "doubler", {"0.weight": [[2.0, 0.0], [0.0, 2.0]]}, {"model_type": "doubler", "width": 2})
    worker = start_worker()
    found = []
    for _ in range(2):
        assert worker.ended(queued_run("tenant.model", folder), model_bytes=1).state == "failed"  # it reads no tokens
        found.append(settled(worker))
    assert len(found[0]) == 1
    assert found[0][0]["since"] == found[1][0]["since"]


def test_models_are_unloaded_when_they_are_told_to(worker: WorkerProcess, queued_run: Queued, llama: Path, other_llama: Path) -> None:
    after(worker, queued_run("tenant.model", llama))
    one, other = after(worker, queued_run("tenant.model", other_llama))
    worker.unload(None, idle_seconds=3600.0)
    worker.unload("full:no such fingerprint")
    assert settled(worker) == [one, other]
    worker.unload(one["fingerprint"])
    assert worker.resident() == [other]
    worker.unload()
    assert worker.resident() == []
    (again,) = after(worker, queued_run("tenant.model", llama))
    assert again["since"] > one["since"]


def test_unloading_spares_what_the_running_job_uses_until_it_has_ended(
    worker: WorkerProcess, queued_run: Queued, llama: Path, other_llama: Path
) -> None:
    (one,) = after(worker, queued_run("tenant.model", llama))
    run = queued_run("tenant.model", other_llama, rows=10000, seconds=0.01)
    worker.run(run, model_bytes=1)
    wait_until(lambda: any(event["kind"] == "progress" for event in events(run)), "the first step")
    worker.unload(None, idle_seconds=0.0)
    while [model["path"] for model in worker.resident()] != [str(other_llama)]:  # at once, not after the job
        assert run.status == "running"
    worker.cancel(run)
    worker.hear_of("ended")
    assert settled(worker) == []
    (again,) = after(worker, queued_run("tenant.model", llama))
    assert again["since"] > one["since"]


def test_nothing_is_kept_of_a_checkpoint_that_changes_while_its_job_runs(worker: WorkerProcess, queued_run: Queued, llama: Path) -> None:
    run = queued_run("tenant.model", llama, rows=10000, seconds=0.01)
    worker.run(run, model_bytes=1)
    wait_until(lambda: any(event["kind"] == "progress" for event in events(run)), "the first step")
    file = llama / "model.safetensors"
    content = file.read_bytes()
    file.write_bytes(content[:-1] + b"x")
    worker.cancel(run)
    worker.hear_of("ended")
    assert settled(worker) == []
    assert "changed since it was loaded" in log_of(run)

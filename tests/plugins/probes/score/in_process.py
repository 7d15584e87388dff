"""Tiny language models on disk, and a run of an analysis in this process: a real run folder, real stages, real models."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import torch
from modelscope_probes.probe_file import tokenizer_hash
from pydantic import BaseModel
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from modelscope_app.checkpoints import open_checkpoint, open_series
from modelscope_app.data import load_tokenizer
from modelscope_app.jobs.context import RunningContext
from modelscope_app.jobs.models import FreshModels
from modelscope_app.jobs.stages import Stages
from modelscope_app.plugin_host import PluginHost
from modelscope_app.runs.events import EventLog
from modelscope_app.runs.folder import RunFolder
from modelscope_app.runs.job import Job

LAYERS, WIDTH = 3, 16
SPECIAL = ("<pad>", "<unk>", "<bos>", "<end>", "<user>", "<assistant>")
WORDS = (
    *("are", "you", "doing", "harm", "good", "a", "the", "sort", "list", "in", "year", "2023", "2024"),
    *("code", "please", "yes", "no", "alarm", "done", "well", "tea", "?", ".", "Yes", "No"),
)
TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{{ '<' + message.role + '> ' + message.content + ' <end>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<assistant>' }}{% endif %}"
)


class Ran(NamedTuple):
    """A run that ended."""

    run: RunFolder
    warnings: list[str]
    progress: list[tuple[float, float | None, str]]

    def table(self, name: str) -> Any:
        return self.run.table(name)

    @property
    def facts(self) -> Mapping[str, Any]:
        return self.run.facts


def word_tokenizer() -> PreTrainedTokenizerFast:
    """One token a word, in the order of SPECIAL and WORDS."""
    tokenizer = Tokenizer(models.WordLevel({word: at for at, word in enumerate((*SPECIAL, *WORDS))}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        unk_token="<unk>",
        bos_token="<bos>",
        eos_token="<end>",
        additional_special_tokens=["<user>", "<assistant>"],
        chat_template=TEMPLATE,
    )


def saved_llama(folder: Path, seed: int = 0, width: int = WIDTH, layers: int = LAYERS, with_tokenizer: bool = True, **config: Any) -> Path:
    """A random model with its tokenizer, as save_pretrained writes them."""
    torch.manual_seed(seed)
    given = {"eos_token_id": None, "bos_token_id": 2, "pad_token_id": 0, **config}
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(SPECIAL) + len(WORDS),
            hidden_size=width,
            intermediate_size=2 * width,
            num_hidden_layers=layers,
            num_attention_heads=2,
            num_key_value_heads=2,
            max_position_embeddings=128,
            initializer_range=0.3,
            **given,
        )
    )
    model.save_pretrained(folder)
    if with_tokenizer:
        word_tokenizer().save_pretrained(folder)
    return folder


def saved_probe(folder: Path, checkpoint: Path, **changes: Any) -> Path:
    """A probe with random directions that belongs to a checkpoint; `changes` are of its card, or its tensors `direction` and `bias`."""
    opened = open_checkpoint(checkpoint)
    generator = torch.Generator().manual_seed(7)
    tensors = {"direction": torch.randn(LAYERS, WIDTH, generator=generator), "bias": torch.randn(LAYERS, generator=generator)}
    card = {
        "format": 1,
        "site": "resid_post",
        "layers": list(range(LAYERS)),
        "best_layer": 1,
        "pooling": "last",
        "template": "chat",
        "method": "by hand",
        "model": opened.fingerprint,
        "model_name": opened.name,
        "tokenizer": tokenizer_hash(load_tokenizer(opened).encode),
        "fitted_on": "nothing",
    }
    tensors.update({key: changes.pop(key) for key in ("direction", "bias") if key in changes})
    folder.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "probe.safetensors")
    (folder / "probe.json").write_text(json.dumps({**card, **changes}))
    return folder / "probe.safetensors"


def run_in_process(
    analysis: Callable[[Any, Any], None],
    params: BaseModel,
    folder: Path,
    checkpoints: Sequence[Path] = (),
    series: Path | None = None,
    check_cancelled: Callable[[], None] = lambda: None,
    watch: Callable[[RunFolder], None] = lambda run: None,
) -> Ran:
    """Run the analysis with its results in `folder`, on again where that holds stages; `watch` is called whenever progress is told."""
    job = Job("run", "probes.test", 1, {}, {}, (), (), "cpu", "auto", 0, "2026-01-01T00:00:00Z", "", "")
    run = RunFolder.open(folder) if (folder / "job.json").exists() else RunFolder.create(folder, job)
    opened = [open_series(series)] if series else []
    members = [member for one in opened for member in one.checkpoints] or [open_checkpoint(path) for path in checkpoints]
    warnings: list[str] = []
    progress: list[tuple[float, float | None, str]] = []

    def told(stage: str, done: float, total: float | None, unit: str) -> None:
        progress.append((done, total, unit))
        watch(run)

    stages = Stages(run.folder / "stages", 0, 60.0, check_cancelled, lambda name, resumed: None, told, warnings.append)
    with closing(EventLog(run.folder)) as events:
        context = RunningContext(
            *(run, members, opened, stages, events, PluginHost(disabled=()), FreshModels(), "cpu"),
            check_cancelled,
            told,
            warnings.append,
        )
        analysis(context, params)
        context.check_inputs()
    return Ran(RunFolder.open(folder), warnings, progress)


def written_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> str:
    """A jsonl file."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def residuals(folder: Path, ids: Sequence[int]) -> torch.Tensor:
    """(layer, token, hidden): the residual stream after each layer, of one text read alone, before the final norm."""
    model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    model.model.norm = torch.nn.Identity()
    with torch.no_grad():
        hidden = model(torch.tensor([ids]), output_hidden_states=True).hidden_states
    return torch.cat(hidden[1:])


def greedily(folder: Path, ids: Sequence[int], count: int) -> list[int]:
    """The next tokens, each from reading the whole text anew."""
    model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    text = list(ids)
    with torch.no_grad():
        for _ in range(count):
            text.append(int(model(torch.tensor([text])).logits[0, -1].argmax()))
    return text[len(ids) :]

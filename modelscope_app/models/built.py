"""A built model: what an analysis is handed as `context.model()`."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from functools import cached_property
from typing import Any, Literal

import torch
from torch import nn

from modelscope_app.api import BadInput, Checkpoint, FamilyAdapter, Prefix, TokenBatch
from modelscope_app.models.continuing import ReadPrefix, check_left_padded, greedy, keeps_a_cache, read_on
from modelscope_app.models.families import adapter_for
from modelscope_app.models.mapping import MappedFile
from modelscope_app.models.sites import ModelSites

ModelKind = Literal["causal-lm", "masked-lm", "encoder", "mlp", "other"]
"""A language model that predicts the next token; one that fills gaps; one without a head; the built-in classifier; a plugin's."""

_POSITION_TABLES = ("wpe", "position_embeddings", "embed_positions")
_LAYER_COUNT_KEYS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")


class BuiltModel:
    """A checkpoint as a torch module, in eval mode. Its parameters ask for no gradient; an analysis that needs some says so.

    Implements `modelscope_app.api.Model`.
    """

    def __init__(
        self,
        module: nn.Module,
        checkpoint: Checkpoint,
        kind: ModelKind,
        notes: Sequence[str] = (),
        files: Sequence[MappedFile] = (),
        adapter: FamilyAdapter | None = None,
    ) -> None:
        self.unsettled_module = module.eval().requires_grad_(False)
        """The torch module, at once, for whoever only reads: what is written to its weights may be lost until `settled` came back."""
        self.checkpoint = checkpoint
        self.kind = kind
        self.notes = tuple(notes)
        """What the user should know about how it was built, a sentence each."""
        self.files = tuple(files)
        """Files that memory of its weights was mapped from."""
        self._adapter = adapter

    @property
    def module(self) -> nn.Module:
        """The torch module, once its weights are its own. Raises BadInput as `settled` does."""
        self.settled()
        return self.unsettled_module

    @property
    def device(self) -> torch.device:
        """Where its parameters are."""
        return next(self.unsettled_module.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """The floating-point dtype most of its parameters have."""
        counts: dict[torch.dtype, int] = {}
        for parameter in self.unsettled_module.parameters():
            counts[parameter.dtype] = counts.get(parameter.dtype, 0) + parameter.numel()
        return max(counts, key=lambda dtype: counts[dtype])

    @property
    def memory_bytes(self) -> int:
        """Bytes of parameters and buffers on the device; tied tensors count once."""
        tensors = {id(tensor): tensor for tensor in (*self.unsettled_module.parameters(), *self.unsettled_module.buffers())}
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())

    def settled(self) -> None:
        """Wait until the weights share no memory with their files (see `mapping`), which they do for a moment after building.

        Raises BadInput where a file was rewritten in that moment, so that what was computed meanwhile cannot be trusted.
        """
        for file in self.files:
            file.settled()

    @cached_property
    def sites(self) -> ModelSites:
        """Its activations. Raises BadInput naming the architecture where no layers are found."""
        if self._adapter is not None:
            return ModelSites(self._adapter)
        config = getattr(self.unsettled_module, "config", None)
        if config is not None and hasattr(config, "get_text_config"):
            return ModelSites(
                adapter_for(self.unsettled_module, config.model_type, getattr(config.get_text_config(), "num_hidden_layers", None))
            )
        stored = self.checkpoint.config or {}
        counts = [stored[key] for key in _LAYER_COUNT_KEYS if isinstance(stored.get(key), int)]
        return ModelSites(adapter_for(self.unsettled_module, str(stored.get("model_type")), counts[0] if counts else None))

    def logits(self, batch: TokenBatch) -> torch.Tensor:
        """(batch, token, vocabulary): next-token logits, padded on either side. On padding they mean nothing.

        Raises BadInput where the model predicts no next token, and where a text is too long for it or a token id unknown to it.
        """
        if self.kind not in ("causal-lm", "other"):
            what = {"masked-lm": "is a masked language model", "encoder": "is an encoder", "mlp": "classifies features"}[self.kind]
            raise BadInput(f"{self.checkpoint.name} {what}: it has no next-token logits")
        output = self._output(self.unsettled_module, batch)
        return output if isinstance(output, torch.Tensor) else output.logits

    def body(self, batch: TokenBatch, after: Prefix | None = None) -> torch.Tensor:
        """(batch, token, hidden): the last hidden state after the final norm; the LM head is skipped.

        With `after`, rows go on from the prefix that `prefix` read, and are padded on the right. Raises BadInput where the model
        reads no tokens, and where a text is too long for it or a token id unknown to it.
        """
        base = self._body_module()
        if after is None:
            output = self._output(base, batch)
            return output if isinstance(output, torch.Tensor) else output.last_hidden_state
        if not isinstance(after, ReadPrefix):
            raise TypeError(f"after is of type {type(after).__name__}; it is what prefix() returns")
        whole = TokenBatch(
            batch.ids,
            torch.cat([after.input_ids, batch.input_ids], 1),
            torch.cat([after.attention_mask, batch.attention_mask], 1),
            torch.cat([torch.zeros_like(after.attention_mask, dtype=torch.bool), batch.completion_mask], 1),
        )
        if after.cache is None:
            return self.body(whole)[:, after.input_ids.shape[1] :]
        self._check(whole)
        mask = whole.attention_mask.to(self.device)
        hidden: torch.Tensor = read_on(base, batch.input_ids.to(self.device), mask, after.take_cache()).last_hidden_state
        return hidden

    def prefix(self, batch: TokenBatch, repeats: int = 1) -> ReadPrefix:
        """Read what several texts begin with, once: rows padded on the left, each to be continued by `repeats` rows in a row.

        Without a cache of the model's (a plugin's model, some families) the beginnings are read again with each continuation.
        Raises as `body`, and JobFailed for rows padded on the right.
        """
        check_left_padded(batch)
        base = self._body_module()
        cache = None
        if keeps_a_cache(base) and self._counts_positions_from_zero:
            self._check(batch)
            read = read_on(base, batch.input_ids.to(self.device), batch.attention_mask.to(self.device), None).past_key_values
            if hasattr(read, "batch_repeat_interleave"):
                read.batch_repeat_interleave(repeats)
                cache = read
        return ReadPrefix(batch, repeats, cache)

    def greedy(self, batch: TokenBatch, count: int) -> torch.Tensor:
        """(batch, count) int64 on the CPU: the most likely next tokens after rows padded on the left.

        -1 from an end token on, and where the logits are not finite. Raises as `logits`, and JobFailed for rows padded on the right.
        """
        if self.kind not in ("causal-lm", "other"):
            self.logits(batch)  # says why there are none
        return greedy(self.unsettled_module, batch, count, self.device, self.logits, self._check)

    def _body_module(self) -> nn.Module:
        base: nn.Module | None = getattr(self.unsettled_module, "base_model", None)
        if base is None:
            raise BadInput(
                f"{self.checkpoint.name}: a model of type {(self.checkpoint.config or {}).get('model_type')} has no body of its own"
            )
        return base

    def _output(self, module: nn.Module, batch: TokenBatch) -> Any:
        self._check(batch)
        accepted = inspect.signature(module.forward).parameters
        # Positions count real tokens, so that padding on the left changes nothing. Where nothing is padded, the model counts.
        positions = (batch.attention_mask.cumsum(-1) - 1).clamp(min=0)  # (batch, token)
        padded = bool((batch.attention_mask == 0).any())
        optional = {
            "attention_mask": batch.attention_mask,
            "position_ids": positions if padded and self._counts_positions_from_zero else None,
        }
        given = {name: value.to(self.device) for name, value in optional.items() if value is not None and name in accepted}
        if "use_cache" in accepted or (hasattr(module, "config") and "kwargs" in accepted):
            given["use_cache"] = False  # type: ignore[assignment]
        return module(batch.input_ids.to(self.device), **given)

    @cached_property
    def _position_table(self) -> nn.Embedding | None:
        tables = (part for name, part in self.unsettled_module.named_modules() if name.rpartition(".")[2] in _POSITION_TABLES)
        return next((table for table in tables if isinstance(table, nn.Embedding)), None)

    @property
    def _counts_positions_from_zero(self) -> bool:
        # RoBERTa and its kin number positions from the padding id on and find them in the token ids themselves.
        return self._position_table is None or self._position_table.padding_idx is None

    def _check(self, batch: TokenBatch) -> None:
        """Refuse what would index outside a table: on a GPU that ends the process."""
        rows = self._vocabulary_rows
        if rows is not None and batch.input_ids.numel():
            low, high = int(batch.input_ids.min()), int(batch.input_ids.max())
            if low < 0 or high >= rows:
                raise BadInput(f"token id {low if low < 0 else high} is outside the vocabulary of {self.checkpoint.name}, 0 to {rows - 1}")
        table = self._position_table
        if table is not None:
            longest = table.num_embeddings - (0 if table.padding_idx is None else table.padding_idx + 1)
            if batch.input_ids.shape[-1] > longest:
                raise BadInput(f"{self.checkpoint.name} reads at most {longest} tokens, and one text has {batch.input_ids.shape[-1]}")

    @cached_property
    def _vocabulary_rows(self) -> int | None:
        find = getattr(self.unsettled_module, "get_input_embeddings", None)
        embedding = find() if find is not None else None
        return embedding.num_embeddings if isinstance(embedding, nn.Embedding) else None

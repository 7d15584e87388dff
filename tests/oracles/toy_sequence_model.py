"""A language model small enough to be worked out densely: each token sees the mean of the embeddings up to its own.

Made of torch alone, so that an oracle and the tests can build the same one.
"""

from __future__ import annotations

import torch
from torch import nn


class ToySequenceModel(nn.Module):
    """Embedding, causal mean, three linear layers; the one in the middle has no bias."""

    def __init__(self, vocabulary: int = 11, width: int = 6) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        self.first = nn.Linear(width, 8)
        self.second = nn.Linear(8, 5, bias=False)
        self.head = nn.Linear(5, vocabulary)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """(sequence, token, vocabulary) logits of (sequence, token) ids."""
        counts = torch.arange(1, ids.shape[1] + 1, device=ids.device)[:, None]
        means = self.embedding(ids).cumsum(1) / counts  # (sequence, token, width)
        return self.head(torch.relu(self.second(torch.relu(self.first(means)))))


def next_token_loss(logits: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """Sum over sequences and tokens of -log p(token | tokens before it); the first token of a sequence is not predicted."""
    return nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten(), reduction="sum")

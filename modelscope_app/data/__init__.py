"""Examples from data files: rows, chat templates, tokens, batches. Imports neither torch, transformers nor polars until asked."""

from modelscope_app.data.batches import ItemBatches, TokenBatches, items_source, length_bucketed
from modelscope_app.data.examples import read_examples
from modelscope_app.data.features import read_labelled_features
from modelscope_app.data.files import READ_BY_SUFFIX, Rows, read_rows
from modelscope_app.data.limits import TokenLimits, token_limits
from modelscope_app.data.tokenizer import CheckpointTokenizer, MissingTokenizer, load_tokenizer

__all__ = [
    "READ_BY_SUFFIX",
    "CheckpointTokenizer",
    "ItemBatches",
    "MissingTokenizer",
    "Rows",
    "TokenBatches",
    "TokenLimits",
    "items_source",
    "length_bucketed",
    "load_tokenizer",
    "read_examples",
    "read_labelled_features",
    "read_rows",
    "token_limits",
]

"""Text and labels: readers -> corpus -> batches."""

from mt2st_fast.data.batches import BagBatches, TokenBatches, evaluation_batches
from mt2st_fast.data.corpus import MISSING, Corpus, Splits, TargetColumn, check_main, hide_labels
from mt2st_fast.data.label_model import complete_labels
from mt2st_fast.data.preparation import prepare
from mt2st_fast.data.readers import READERS, open_data, parse_spec
from mt2st_fast.data.sampler import Sampler
from mt2st_fast.data.stream import TokenStream
from mt2st_fast.data.subwords import SubwordTable, subword_rows
from mt2st_fast.data.tokens import Tokens
from mt2st_fast.data.vocabulary import Vocabulary
from mt2st_fast.data.word_batches import ContextBatches, analogy_batches, similarity_batches

__all__ = [
    "MISSING",
    "READERS",
    "BagBatches",
    "ContextBatches",
    "Corpus",
    "Sampler",
    "Splits",
    "SubwordTable",
    "TargetColumn",
    "TokenBatches",
    "TokenStream",
    "Tokens",
    "Vocabulary",
    "analogy_batches",
    "check_main",
    "complete_labels",
    "evaluation_batches",
    "hide_labels",
    "open_data",
    "parse_spec",
    "prepare",
    "similarity_batches",
    "subword_rows",
]

"""Hierarchical softmax: predict the turns of a word's path in a Huffman tree, instead of the word against negatives.

    loss = sum_k softplus(-s_k h y_k)   y_k of the path's k-th node, s_k = 1 to the left, -1 to the right

h is a word's input vector in skip-gram. In CBOW it is the mean over a window, and every word of the window gets the
whole gradient; or the sum over a window, and the gradient is shared among its words.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from .backends import load_numba
from .batch import WordSampler, check_options
from .training import NO_LOCKS, ContextOptions, TrainingInPlace
from .workspace import Rates, ShardRows, Stream, Tables, floats, integers, make_shard_rows


class TreePaths(NamedTuple):
    """The path of word v from the root: nodes[bounds[v]:bounds[v + 1]] and the signs of its turns."""

    bounds: np.ndarray  # int64 (V + 1,)
    nodes: np.ndarray  # int32, below V - 1
    signs: np.ndarray  # float32


class HierarchyWorkspace(NamedTuple):
    """Memory for P shards of N words; fields are described at Workspace.

    Only the used part of x and y is ever touched.
    """

    words: np.ndarray
    slots: np.ndarray
    low: np.ndarray
    high: np.ndarray
    touched: ShardRows  # of the input table
    nodes: ShardRows  # of the output table
    path_slots: np.ndarray  # (P, longest path)
    scores: np.ndarray  # (P, the same in whole vectors): those of the nodes of a path
    x: np.ndarray
    y: np.ndarray
    h: np.ndarray  # (P, 2, ld): the mean of a window, and its change


def tree_paths(counts: np.ndarray) -> TreePaths:
    """Build the Huffman tree of words with counts (V,): frequent words have short paths, a single word an empty one."""
    from .on_numba.hierarchy import huffman_parents, huffman_paths

    V = len(counts)
    order = np.argsort(counts, kind="stable")
    parents, right = np.empty(2 * V - 1, np.int64), np.zeros(2 * V - 1, np.bool_)
    huffman_parents(counts[order].astype(np.int64), parents, right)
    bounds = np.zeros(V + 1, np.int64)
    nodes, signs = np.empty(0, np.int32), np.empty(0, np.float32)
    huffman_paths(parents, right, order, bounds, nodes, signs, False)
    nodes, signs = np.empty(bounds[-1], np.int32), np.empty(bounds[-1], np.float32)
    huffman_paths(parents, right, order, bounds, nodes, signs, True)
    return TreePaths(bounds, nodes, signs)


class HierarchyTraining(TrainingInPlace):
    """Train input vectors (V, D) and node vectors (V, D) in place, as ContextTraining does with negatives.

    The options `negatives` and `shared` are not used. Raises what ContextTraining raises.
    """

    measured = 1.0

    def __init__(
        self,
        inputs: np.ndarray,
        outputs: np.ndarray,
        sampler: WordSampler,
        paths: TreePaths,
        options: ContextOptions,
        locks: np.ndarray = NO_LOCKS,
    ):
        check_options(options.mode, options.window, options.negatives, options.shared)
        self._kernels: Any = load_numba("hierarchy", "HierarchyTraining")
        self.inputs, self.outputs, self.sampler, self.options = inputs, outputs, sampler, options
        self.paths, self.locks = paths, locks
        V, D = inputs.shape
        self._workspace = _make_workspace(
            V, D, options.shards, options.shard_words, int(np.diff(paths.bounds).max())
        )

    def run(self, text: Stream, rounds: tuple[int, int], rates: Rates) -> tuple[float, int]:
        """Return the loss sum and the pairs of all words."""
        o = self.options
        steps, tables = o.steps(0.0), Tables(self.inputs, self.outputs, self.locks)
        found, falling = np.zeros((o.shards, 2)), np.array(rates)
        for some in self._calls(rounds):
            self._kernels.train_hierarchy(
                text, self.sampler.keep, self.paths, steps, falling, some, tables, self._workspace, found
            )
        return float(found[:, 0].sum()), int(found[:, 1].sum())


def _make_workspace(V: int, D: int, P: int, N: int, longest: int) -> HierarchyWorkspace:
    from ..machine.simd import WIDTH

    ld = -(-D // WIDTH) * WIDTH
    n_inputs = min(N, V)
    return HierarchyWorkspace(
        words=integers(P, N),
        slots=integers(P, N),
        low=integers(P, N),
        high=integers(P, N),
        touched=make_shard_rows(V, P, n_inputs),
        nodes=make_shard_rows(V, P, V),
        path_slots=integers(P, max(1, longest)),
        scores=floats(P, -(-max(1, longest) // WIDTH) * WIDTH),
        x=floats(P, n_inputs, ld),
        y=floats(P, V, ld),
        h=floats(P, 2, ld),
    )

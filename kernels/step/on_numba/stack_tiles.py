"""From inputs to the gradients of all layers' outputs: packed weights, then forward and backward over tiles of rows.

A tile stays in cache through all layers, the heads' logits and losses, and back down to the first layer that is
trained. Sums over all rows are left to dense_updates.py.
"""

from __future__ import annotations

import numba
import numpy as np

from ...heads.on_numba.stages import ZERO, multiply_panels, pack_feature_panel, pack_for_logits, round_up
from ...heads.on_numba.tile import pack_heads
from ...machine.gemm import BLOCK_ROWS, PANEL
from ...machine.jit import helper, pointer_to_float32
from ...machine.simd import FLOAT_BYTES, WIDTH
from .activations import activate, deactivate, undo_standardise
from .batch_norms import measure
from .dense_tiles import copy_from, head_tile
from .dropout import words_of
from .embedding import load_rows, store_vector_gradients

# --- round 1: packed weights --------------------------------------------------------------------------------


@helper
def prepare(p, n_pieces, packs, reach, heads, columns, for_logits, for_features, dense):
    """Pack the weights of piece p of the packs; the last piece packs the heads' rows as well."""
    for i in range(p * len(packs) // n_pieces, (p + 1) * len(packs) // n_pieces):
        _pack(packs[i], reach, dense)
    if p == n_pieces - 1:
        pack_heads(dense.weights[heads["index"]], dense.H, heads, columns, for_logits, for_features)


@helper
def _pack(pack, reach, dense):
    """Pack panels of a layer's weight, the way back only if needed, and its bias."""
    layer = dense.layers[pack["layer"]]
    H, F = layer["rows"], layer["columns"]
    weight = numba.carray(pointer_to_float32(layer["weight"]), (H, F))
    if pack["backward"] == 0:
        packed = numba.carray(pointer_to_float32(layer["forward"]), (-(-H // PANEL), F * PANEL))
        for panel in range(pack["first"], pack["last"]):
            pack_for_logits(weight, panel * PANEL, min(PANEL, H - panel * PANEL), packed[panel])
        if pack["first"] == 0:
            copy_from(layer["bias"], numba.carray(pointer_to_float32(layer["padded_bias"]), (H,)))
    elif pack["layer"] > len(dense.layers) - reach:
        packed = numba.carray(pointer_to_float32(layer["backward"]), (-(-F // PANEL), H * PANEL))
        for panel in range(pack["first"], pack["last"]):
            pack_feature_panel(weight, 0, H, panel, packed[panel])


# --- round 2: tiles -----------------------------------------------------------------------------------------


@helper
def _tile_of(address, ld, first):
    return address + FLOAT_BYTES * first * ld


@helper
def run_tile(
    tile, tile_pass, N, tile_rows, embedding, table_pieces, inputs, norms, batch_norms, options, drops, reach,
    for_logits, for_features, head_bias, heads, columns, column_weights, targets, scale, dense,
):  # fmt: skip
    """Process the rows of a tile: outputs of all layers, losses, and gradients of the outputs of `reach` layers, or of
    all layers and of the table before them; or what of it belongs to a pass, a record of TILE_PASS.

    table_pieces, norms, batch_norms, options: None without a table, a norm of that kind, or an unusual activation.
    drops (layers + 1,): of inputs, then of every layer.
    """
    layers = dense.layers
    L, first = len(layers), tile * tile_rows
    rows = min(tile_rows, N - first)
    # Products are of whole blocks: what lies beyond the rows is never read.
    whole = round_up(rows, BLOCK_ROWS)
    F = embedding[0]["F"]
    widest = F
    for n in range(L):
        widest = max(widest, layers[n]["rows"])
    factors, words = np.zeros(round_up(widest, WIDTH), np.float32), np.empty(words_of(widest), np.uint64)
    if tile_pass["begins"]:
        load_rows(embedding, table_pieces, inputs, drops[0], first, rows, factors, words[: words_of(F)])
    for n in range(tile_pass["up"], tile_pass["up_end"]):
        layer = layers[n]
        ld, ldx, H, F_n = layer["ld"], layer["ld_inputs"], layer["rows"], layer["columns"]
        if layer["weight"] != 0 and (tile_pass["begins"] or n > tile_pass["up"]):
            multiply_panels(
                _tile_of(layer["inputs"], ldx, first), ldx, whole, F_n, layer["forward"], F_n * PANEL, H,
                _tile_of(layer["outputs"], ld, first), ld,
            )  # fmt: skip
        if batch_norms is not None and tile_pass["measures"] and n + 1 == tile_pass["up_end"]:
            measure(layer, batch_norms[n], tile, first, rows)
            return
        for h in range(round_up(H, WIDTH)):
            factors[h] = ZERO
        activate(
            n, layer, norms, batch_norms, options, drops[n + 1], first, rows, factors, words[: words_of(H)]
        )
    if tile_pass["turns"]:
        d_features = layers[L - 1]["d_outputs"] if L else embedding[0]["d_x"]
        head_tile(
            tile, first, rows, N, for_logits, for_features, head_bias, heads, columns, column_weights, targets, scale,
            _tile_of(d_features, dense.ld, first) if reach > 0 else 0, dense,
        )  # fmt: skip
    for n in range(tile_pass["down"], tile_pass["down_end"], -1):
        layer = layers[n]
        ld, ldx, H, F_n = layer["ld"], layer["ld_inputs"], layer["rows"], layer["columns"]
        if batch_norms is not None and tile_pass["turns"] == 0 and n == tile_pass["down"]:
            undo_standardise(layer, batch_norms[n], tile, first, rows)
        else:
            deactivate(n, layer, norms, batch_norms, drops[n + 1], tile, first, rows)
            if batch_norms is not None and tile_pass["pauses"] and n - 1 == tile_pass["down_end"]:
                return
        if n > L - reach and layer["weight"] != 0:
            d_inputs = layers[n - 1]["d_outputs"] if n else embedding[0]["d_x"]
            multiply_panels(
                _tile_of(layer["d_outputs"], ld, first), ld, whole, H, layer["backward"], H * PANEL, F_n,
                _tile_of(d_inputs, ldx, first), ldx,
            )  # fmt: skip
    if table_pieces is not None and reach > L and tile_pass["ends"]:
        store_vector_gradients(embedding, drops[0], first, rows, factors, words[: words_of(F)])

"""The words of a block of text as numbers, in two passes over pieces of it.

scan       in parallel: every piece numbers its words by itself, in its own table
take_in    the pieces' words enter the common table in the order of the pieces, so that words are numbered by first
           appearance whatever the pieces are; then, in parallel, the pieces' numbers are replaced by common ones

A piece's table is like the common one (layout.py), except that its letters are the text itself.
"""

from __future__ import annotations

from ...machine.jit import entry, helper
from ...machine.simd import prefetch
from ...machine.team import Kernel, in_parallel
from ..layout import (
    BEGIN,
    CODE,
    COUNT,
    END,
    HEAD,
    IN_WORD,
    LENGTH,
    LINE_FEED,
    N_COLUMNS,
    N_LETTERS,
    N_NUMBERS,
    N_WORDS,
    NOT_UTF8,
    RETURN,
    WHERE,
)
from .characters import (
    BYTES_AT_ONCE,
    FIRST_OF_MANY,
    are_same,
    character,
    eight_bytes,
    end_of_word,
    first_bytes,
    four_bytes,
    hash_of,
)

FIRST_SLOTS = 4096
SLOT_BYTES, NUMBER_BYTES, ROW_BYTES = 4, 8, 8 * N_COLUMNS
SLOTS_AHEAD, ROWS_AHEAD = 16, 8  # words whose slot, and then whose row, is prefetched
LINE_FEED_BYTE = ord("\n")
MARK = (0xEF, 0xBB, 0xBF)  # U+FEFF


# --- tables ----------------------------------------------------------------------------------------------


@helper
def _find(slots, n_slots, words, letters, word, code, head, length):
    """Find a word of `length` bytes at address `word`: (slot, row), or for a new word (the slot where it belongs, -1).

    slots, words and letters are addresses, too: passing them as arrays would take a third of the whole pass.
    """
    mask = n_slots - 1
    slot = code & mask
    while True:
        row = four_bytes(slots + SLOT_BYTES * slot) - 1
        if row < 0:
            return slot, row
        at = words + ROW_BYTES * row
        if (
            eight_bytes(at + NUMBER_BYTES * HEAD) == head
            and eight_bytes(at + NUMBER_BYTES * LENGTH) == length
        ):
            there = letters + eight_bytes(at + NUMBER_BYTES * WHERE)
            if length <= BYTES_AT_ONCE or are_same(there, word, length):
                return slot, row
        slot = (slot + 1) & mask


@entry
def place_all(slots, n_slots, words, n_words):
    """Clear a table and insert all words, which must be distinct."""
    for slot in range(n_slots):
        slots[slot] = 0
    for row in range(n_words):
        slot = words[row, CODE] & (n_slots - 1)
        while slots[slot] != 0:
            slot = (slot + 1) & (n_slots - 1)
        slots[slot] = row + 1


# --- scan ------------------------------------------------------------------------------------------------


@helper
def _begin_of_piece(text, n, kinds, at):
    """Return the first position from `at` on that follows white space; 0 for 0, n if there is none."""
    if at == 0:
        return 0
    while at < n and (text[at - 1] >= FIRST_OF_MANY or kinds[text[at - 1]] == IN_WORD):
        at += 1
    return at


@helper
def _behind_returns(text, i, n, kinds):
    """Return the position after the returns at i, at most n, where there is a blank."""
    while i < n and kinds[text[i]] == RETURN:
        i += 1
    return i


@helper
def _is_mark_of_line(text, i, kinds, begins_line):
    """Whether there is a byte order mark at i with nothing but such marks before it on its line."""
    if text[i + 1] != MARK[1] or text[i + 2] != MARK[2]:
        return False
    while i >= 3 and text[i - 3] == MARK[0] and text[i - 2] == MARK[1] and text[i - 1] == MARK[2]:
        i -= 3
    if i == 0:
        return begins_line
    byte = text[i - 1]
    return byte < FIRST_OF_MANY and (kinds[byte] == LINE_FEED or kinds[byte] == RETURN)


@helper
def _scan_piece(piece, text, n, begins_line, piece_bytes, kinds, scratch):
    """Number the words of one piece; its tally holds its counts, or where it is not UTF-8."""
    begin = _begin_of_piece(text, n, kinds, min(n, piece * piece_bytes))
    end = _begin_of_piece(text, n, kinds, min(n, (piece + 1) * piece_bytes))
    tallies, numbers = scratch.tallies, scratch.numbers[begin:end]
    words, slots = scratch.words[begin // 2 + piece :], scratch.slots[2 * (begin + piece) :]
    n_slots = 1
    while n_slots < min(FIRST_SLOTS, end - begin + 1):
        n_slots *= 2
    place_all(slots, n_slots, words, 0)
    address = text.ctypes.data
    n_numbers = n_words = n_letters = 0
    not_utf8 = -1
    i = begin
    while i < end:
        byte = text[i]
        if byte >= FIRST_OF_MANY:
            size = character(text, i, end)
            if size < 0:
                i -= size
                continue
            if byte == MARK[0] and _is_mark_of_line(text, i, kinds, begins_line):
                i += len(MARK)
                continue
        elif kinds[byte] == RETURN:
            after = _behind_returns(text, i, n, kinds)
            # Returns before a line feed belong to its line end.
            if text[after] != LINE_FEED_BYTE:
                for _ in range(min(after, end) - i):
                    numbers[n_numbers] = END
                    n_numbers += 1
            i = after
            continue
        elif kinds[byte] != IN_WORD:
            if kinds[byte] == LINE_FEED:
                numbers[n_numbers] = END
                n_numbers += 1
            i += 1
            continue
        after = end_of_word(text, i, end, kinds)
        if after < 0:
            not_utf8 = -1 - after
            break
        length = after - i
        head = first_bytes(address + i, length)
        code = hash_of(address + i, length)
        slot, row = _find(
            slots.ctypes.data, n_slots, words.ctypes.data, address, address + i, code, head, length
        )
        if row < 0:
            row = n_words
            words[row, HEAD], words[row, WHERE] = head, i
            words[row, LENGTH], words[row, COUNT], words[row, CODE] = length, 0, code
            n_words += 1
            n_letters += length + 1
            slots[slot] = n_words
            if 2 * n_words > n_slots:
                n_slots *= 2
                place_all(slots, n_slots, words, n_words)
        words[row, COUNT] += 1
        numbers[n_numbers] = row
        n_numbers += 1
        i = after
    tallies[piece, BEGIN], tallies[piece, N_NUMBERS], tallies[piece, NOT_UTF8] = begin, n_numbers, not_utf8
    tallies[piece, N_WORDS], tallies[piece, N_LETTERS] = n_words, n_letters


def _scan(team, text, n, begins_line, piece_bytes, kinds, scratch):
    """Fill the scratch memory with the words of text[:n]."""
    in_parallel(team, len(scratch.tallies), _scan_piece, (text, n, begins_line, piece_bytes, kinds, scratch))


# --- take in ---------------------------------------------------------------------------------------------


@helper
def _common_numbers(piece, scratch, starts, numbers):
    """Replace a piece's numbers by common ones, at their position in numbers."""
    begin, at = scratch.tallies[piece, BEGIN], starts[piece]
    own, common = scratch.numbers[begin:], scratch.common[begin // 2 + piece :]
    for i in range(scratch.tallies[piece, N_NUMBERS]):
        row = own[i]
        numbers[at + i] = common[row] if row != END else END


def _take_in(team, text, scratch, starts, table, n_words, numbers):
    """Write the common numbers of all pieces to numbers, piece p's from starts[p] on; return the number of words.

    The table of n_words must have room for all words of the pieces, and slots for twice as many.
    """
    slots, words, letters = table
    n_slots, slots_at, words_at, letters_at = (
        len(slots),
        slots.ctypes.data,
        words.ctypes.data,
        letters.ctypes.data,
    )
    n_letters = words[n_words - 1, WHERE] + words[n_words - 1, LENGTH] + 1 if n_words else 0
    for piece in range(len(scratch.tallies)):
        first = scratch.tallies[piece, BEGIN] // 2 + piece
        last = first + scratch.tallies[piece, N_WORDS]
        for i in range(first, last):
            if i + SLOTS_AHEAD < last:
                prefetch(slots_at + SLOT_BYTES * (scratch.words[i + SLOTS_AHEAD, CODE] & (n_slots - 1)))
                ahead = four_bytes(
                    slots_at + SLOT_BYTES * (scratch.words[i + ROWS_AHEAD, CODE] & (n_slots - 1))
                )
                prefetch(words_at + ROW_BYTES * ahead)
            head, length, code = scratch.words[i, HEAD], scratch.words[i, LENGTH], scratch.words[i, CODE]
            begin = scratch.words[i, WHERE]
            word = text.ctypes.data + begin
            slot, row = _find(slots_at, n_slots, words_at, letters_at, word, code, head, length)
            if row < 0:
                row = n_words
                words[row, HEAD], words[row, WHERE] = head, n_letters
                words[row, LENGTH], words[row, COUNT], words[row, CODE] = length, 0, code
                for k in range(length):
                    letters[n_letters + k] = text[begin + k]
                letters[n_letters + length] = LINE_FEED_BYTE
                n_letters += length + 1
                n_words += 1
                slots[slot] = n_words
            words[row, COUNT] += scratch.words[i, COUNT]
            scratch.common[i] = row
    in_parallel(team, len(scratch.tallies), _common_numbers, (scratch, starts, numbers))
    return n_words


scan, take_in = Kernel(_scan), Kernel(_take_in)

"""UTF-8 bytes: eight at a time if they are plain, else one character after the other.

Text is uint8 with PADDING blanks past its end, so that eight bytes may be read wherever a word begins.
"""

from __future__ import annotations

import sys

import numpy as np
from llvmlite import ir
from numba.core import types

from ...machine.intrinsics import intrinsic_of
from ...machine.jit import helper
from ..layout import IN_WORD

# In each of eight bytes: 0x21, the first that is neither white space nor a control character; and the highest bit.
_PLAIN, _HIGH = 0x2121212121212121, -0x7F7F7F7F7F7F7F80
BITS, BYTES_AT_ONCE = 8, 8
_I32, _I64 = ir.IntType(32), ir.IntType(64)
FIRST_OF_MANY = 0x80  # the first byte that is not a whole character
# Of the hash of words: the golden ratio in 64 bits, and a factor of splitmix64.
_MULTIPLY_1, _MULTIPLY_2 = -0x61C8864680B583EB, -0x40A7B892E31B1A47
_EXTRA = 32  # shift for the upper half of a product, in bits


@intrinsic_of(types.int64, types.int64)
def eight_bytes(builder, address):  # type: ignore[no-untyped-def]
    """Load the eight bytes at an address of any alignment as a number, the first byte lowest."""
    value = builder.load(builder.inttoptr(address, _I64.as_pointer()), align=1)
    return value if sys.byteorder == "little" else builder.bswap(value)


@intrinsic_of(types.int64, types.int64)
def four_bytes(builder, address):  # type: ignore[no-untyped-def]
    """Load the int32 at an aligned address."""
    return builder.sext(builder.load(builder.inttoptr(address, _I32.as_pointer()), align=4), _I64)


@intrinsic_of(types.int64, types.int64)
def _zeros_below(builder, value):  # type: ignore[no-untyped-def]
    """Number of trailing zero bits of a nonzero number."""
    return builder.cttz(value, ir.Constant(ir.IntType(1), 1))


@helper
def first_bytes(address, length):
    """Return the first eight bytes of a word as a number, zero past its end."""
    value = eight_bytes(address)
    return value if length >= BYTES_AT_ONCE else value & ((np.int64(1) << (BITS * length)) - 1)


@helper
def hash_of(address, length):
    """64-bit hash of a word's bytes."""
    value = length * _MULTIPLY_2
    for i in range(0, length, BYTES_AT_ONCE):
        value = (value ^ first_bytes(address + i, length - i)) * _MULTIPLY_1
        value = (value ^ (value >> _EXTRA)) * _MULTIPLY_2
    return value ^ (value >> _EXTRA)


@helper
def are_same(one, other, length):
    """Whether two words of the same length have the same bytes."""
    for i in range(0, length, BYTES_AT_ONCE):
        if first_bytes(one + i, length - i) != first_bytes(other + i, length - i):
            return False
    return True


@helper
def end_of_word(text, i, end, kinds):
    """Return where the word at i ends, or -1 - p if the character at p is not UTF-8."""
    address = text.ctypes.data
    while True:
        # Find bytes that are white space, a control character, or part of a multi-byte character.
        value = eight_bytes(address + i)
        special = (((value - _PLAIN) & ~value) | value) & _HIGH
        if special == 0:
            i += BYTES_AT_ONCE
            continue
        i += _zeros_below(special) // BITS
        if i >= end:
            return end
        if text[i] < FIRST_OF_MANY:
            if kinds[text[i]] != IN_WORD:
                return i
            i += 1
            continue
        size = character(text, i, end)
        if size < 0:
            return i
        if size == 0:
            return -1 - i
        i += size


@helper
def character(text, i, end):
    """Return the size in bytes of the character at i, which begins above 127: negated for white space, 0 if not UTF-8.

    White space is as in Python's str.split; UTF-8 is as in table 3-7 of the Unicode Standard.
    """
    lead = np.int64(text[i])
    size = 2 if lead < 0xE0 else 3 if lead < 0xF0 else 4
    if lead < 0xC2 or lead > 0xF4 or i + size > end:
        return 0
    lowest, highest = 0x80, 0xBF
    if lead == 0xE0:
        lowest = 0xA0
    elif lead == 0xED:
        highest = 0x9F
    elif lead == 0xF0:
        lowest = 0x90
    elif lead == 0xF4:
        highest = 0x8F
    if text[i + 1] < lowest or text[i + 1] > highest:
        return 0
    for k in range(i + 2, i + size):
        if text[k] & 0xC0 != 0x80:
            return 0
    return -size if _is_blank(text, i, lead) else size


@helper
def _is_blank(text, i, lead):
    """Whether a UTF-8 character above 127 is white space."""
    if lead == 0xC2:  # U+0085, U+00A0
        return text[i + 1] == 0x85 or text[i + 1] == 0xA0
    if lead < 0xE1 or lead > 0xE3:
        return False
    code = (lead & 0x0F) << 12 | np.int64(text[i + 1] & 0x3F) << 6 | np.int64(text[i + 2] & 0x3F)
    return (
        0x2000 <= code <= 0x200A
        or 0x2028 <= code <= 0x2029
        or code == 0x1680
        or code == 0x202F
        or code == 0x205F
        or code == 0x3000
    )

"""Tuples that kernels read from memory: what stays the same for many calls is handed over once.

    memory = Held(Memory(...))  # a NamedTuple whose annotations say what its arrays are
    read_memory = reader(Memory)  # in a kernel: memory = read_memory(address)

A call from Python takes apart each of its arguments, also those within tuples, and looks up their types: for the fifty
arrays of a step that is work for one thread, while the others wait. The address of a `Held` is a single number.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Annotated, Any, Generic, TypeAlias, TypeVar, get_args, get_type_hints

import numba
import numpy as np
from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic
from numba.np.arrayobj import populate_array

# Arrays in C order, by dtype and number of axes. Those of records are annotated where their dtypes are.
Floats1: TypeAlias = Annotated[np.ndarray, np.float32, 1]
Floats2: TypeAlias = Annotated[np.ndarray, np.float32, 2]
Floats3: TypeAlias = Annotated[np.ndarray, np.float32, 3]
Doubles1: TypeAlias = Annotated[np.ndarray, np.float64, 1]
Doubles2: TypeAlias = Annotated[np.ndarray, np.float64, 2]
Ints1: TypeAlias = Annotated[np.ndarray, np.int64, 1]
Ints2: TypeAlias = Annotated[np.ndarray, np.int64, 2]
Ints3: TypeAlias = Annotated[np.ndarray, np.int64, 3]
ShortInts1: TypeAlias = Annotated[np.ndarray, np.int32, 1]
ShortInts2: TypeAlias = Annotated[np.ndarray, np.int32, 2]
Bytes1: TypeAlias = Annotated[np.ndarray, np.uint8, 1]

Tuple = TypeVar("Tuple", bound=tuple)

_I64 = ir.IntType(64)


class Held(Generic[Tuple]):
    """A NamedTuple of arrays, integers and such tuples, which it keeps alive.

    Raises TypeError for an array that is not what its annotation says: kernels would read it as that.
    """

    def __init__(self, value: Tuple) -> None:
        self.value = value
        self._words = np.array(_words_of(value), np.int64)
        self.address: int = self._words.ctypes.data


def _words_of(value: Any) -> list[int]:
    """Return address and shape of an array, an integer itself, and those of all fields of a tuple."""
    words: list[int] = []
    hints = _hints(type(value))  # type: ignore[arg-type]
    for (name, hint), field in zip(hints.items(), value, strict=True):
        if not hasattr(hint, "__metadata__"):
            words += [field] if hint is int else _words_of(field)
            continue
        _, dtype, n_axes = get_args(hint)
        if field.dtype != dtype or field.ndim != n_axes or not field.flags.c_contiguous:
            raise TypeError(f"{name} is {field.dtype} {field.shape}, not {n_axes} axes of {dtype} in C order")
        words += [field.ctypes.data, *field.shape]
    return words


@lru_cache
def _hints(of: type) -> dict[str, Any]:
    return get_type_hints(of, include_extras=True)


def reader(of: type[tuple]) -> Any:
    """Return a function for kernels that returns such a tuple, given the address of a `Held` one."""

    @intrinsic
    def read(typing_context, address):  # type: ignore[no-untyped-def]
        kind = _type_of(of)

        def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
            return _Words(context, builder, args[0]).read(kind)

        return kind(types.int64), codegen

    return read


def _type_of(hint: Any) -> Any:
    """Return Numba's type of what is annotated so: the one that it gives to such an argument."""
    if hint is int:
        return types.int64
    if hasattr(hint, "__metadata__"):
        _, dtype, n_axes = get_args(hint)
        return types.Array(numba.from_dtype(np.dtype(dtype)), n_axes, "C")
    return types.BaseTuple.from_types([_type_of(field) for field in _hints(hint).values()], hint)


class _Words:
    """Code that reads words one after another."""

    def __init__(self, context: Any, builder: Any, address: Any) -> None:
        self._context, self._builder, self._next = context, builder, 0
        self._first = builder.inttoptr(address, _I64.as_pointer())

    def read(self, kind: Any) -> Any:
        """Return the value of this type whose words come next."""
        context, builder = self._context, self._builder
        if isinstance(kind, types.BaseTuple):
            return context.make_tuple(builder, kind, [self.read(field) for field in kind])  # type: ignore[attr-defined]
        if not isinstance(kind, types.Array):
            return self._word()
        array, data, shape = context.make_array(kind)(context, builder), self._word(), []
        for _ in range(kind.ndim):
            shape.append(self._word())
        itemsize = _I64(context.get_abi_sizeof(context.get_data_type(kind.dtype)))
        strides = [itemsize]
        for n in reversed(shape[1:]):
            strides.insert(0, builder.mul(n, strides[0]))
        # Without a count of references: whoever holds the tuple holds the array.
        populate_array(
            array, data=builder.inttoptr(data, array.data.type), shape=shape, strides=strides, itemsize=itemsize,
            meminfo=None,
        )  # fmt: skip
        return array._getvalue()

    def _word(self) -> Any:
        at = self._builder.gep(self._first, [_I64(self._next)])
        self._next += 1
        return self._builder.load(at)

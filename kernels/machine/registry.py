"""Choice of the backend for an op: each backend says what it supports, and every choice carries its reason.

An op is a package (`heads`, `bags`, ...); its backends are the folders `on_<name>` in it. Such a folder has a
`BACKEND` in its `__init__`, which must not import anything slow: kernels are loaded when they are chosen.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import pkgutil
from dataclasses import dataclass
from functools import cached_property, lru_cache
from types import ModuleType

import torch

BACKEND_VARIABLE = "MT2ST_BACKEND"
NO_NUMBA = "NUMBA_DISABLE_JIT"  # Numba's own switch: what it decorates then stays Python
REFERENCE = "reference"  # plain torch: supports every device and dtype

KERNEL_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class Choice:
    """What was chosen, and why."""

    name: str
    reason: str


@dataclass(frozen=True)
class Backend:
    """What a backend of an op supports.

    package: what must be installed.
    devices: the device types that it runs on.
    dtypes: of the tensors that it takes.
    interpreted_by: an environment variable that lets it run on any device if it is "1".
    stopped_by: an environment variable that keeps its compiler from compiling if it is a number other than 0.
    """

    name: str
    package: str
    devices: tuple[str, ...]
    dtypes: tuple[torch.dtype, ...]
    interpreted_by: str | None = None
    stopped_by: str | None = None

    def obstacle(self, device_type: str, dtype: torch.dtype) -> str | None:
        """Why it cannot handle these tensors, or None."""
        interpreted = self.interpreted_by is not None and os.environ.get(self.interpreted_by) == "1"
        if device_type not in self.devices and not interpreted:
            return f"it runs on {', '.join(self.devices)}, but the tensors are on {device_type}"
        if dtype not in self.dtypes:
            return f"it has no kernel for {dtype}"
        if importlib.util.find_spec(self.package) is None:
            return f"the package {self.package} is not installed"
        if self.stopped_by is not None and is_set(self.stopped_by):
            return f"{self.stopped_by} is set, and its kernels run only compiled"
        return None


def is_set(variable: str) -> bool:
    """Whether an environment variable is a number other than 0, which is how Numba reads its own."""
    try:
        return int(os.environ.get(variable, "0")) != 0
    except ValueError:
        return False


class Op:
    """An op and its backends. Creating one registers it in `OPS`."""

    def __init__(self, name: str, package: str) -> None:
        self.name, self._package = name, package
        OPS[name] = self

    @cached_property
    def backends(self) -> dict[str, Backend]:
        """The backends in the op's folders, by name; REFERENCE is not among them."""
        path = importlib.import_module(self._package).__path__
        folders = [info.name for info in pkgutil.iter_modules(path) if info.name.startswith("on_")]
        found = [importlib.import_module(f"{self._package}.{folder}").BACKEND for folder in sorted(folders)]
        return {backend.name: backend for backend in found}

    @property
    def backend_names(self) -> tuple[str, ...]:
        """The names that may be requested besides "auto"."""
        return (REFERENCE, *self.backends)

    @property
    def has_reference(self) -> bool:
        """Whether the op has an oracle of its own; an op that only joins other ops relies on theirs."""
        return importlib.util.find_spec(f"{self._package}.{REFERENCE}") is not None

    def choose(self, device_type: str, dtype: torch.dtype, requested: str = "auto") -> Choice:
        """Choose the backend for tensors of this device type and dtype.

        `requested` takes precedence over the environment variable MT2ST_BACKEND, which takes precedence over "auto".
        Only "auto" falls back. Raises ValueError for an unknown name, RuntimeError for a requested backend that cannot
        run here.
        """
        requested, asked_by = asked_for(requested)
        return _choose(self, device_type, dtype, requested, asked_by)

    def load(self, backend: str, part: str) -> ModuleType:
        """Load a module of a backend, or for REFERENCE the op's own. Slow to import, so loaded once."""
        return _load(f"{self._package}.{REFERENCE if backend == REFERENCE else f'on_{backend}.{part}'}")


OPS: dict[str, Op] = {}


def asked_for(requested: str) -> tuple[str, str]:
    """Return the requested backend (or "auto"), and what requested it; "backend=" precedes the environment variable."""
    if requested != "auto":
        return requested, "backend="
    return os.environ.get(BACKEND_VARIABLE, "auto") or "auto", f"{BACKEND_VARIABLE}="


@lru_cache(maxsize=256)
def _choose(op: Op, device_type: str, dtype: torch.dtype, requested: str, asked_by: str) -> Choice:
    if requested not in ("auto", *op.backend_names):
        raise ValueError(f"{asked_by}{requested} is unknown; available: auto, {', '.join(op.backend_names)}")
    if requested == REFERENCE:
        return Choice(REFERENCE, f"requested by {asked_by}{REFERENCE}")
    if requested != "auto":
        obstacle = op.backends[requested].obstacle(device_type, dtype)
        if obstacle:
            raise RuntimeError(f"{asked_by}{requested} cannot be honoured: {obstacle}")
        return Choice(requested, f"requested by {asked_by}{requested}")
    at_home = [backend for backend in op.backends.values() if device_type in backend.devices]
    obstacles = {backend.name: backend.obstacle(device_type, dtype) for backend in at_home}
    able = [name for name, obstacle in obstacles.items() if obstacle is None]
    if able:
        return Choice(able[0], f"tensors are on {device_type}")
    why = "; ".join(f"{name} cannot run: {obstacle}" for name, obstacle in obstacles.items())
    return Choice(REFERENCE, why or f"no kernels of {op.name} run on {device_type}")


@lru_cache
def _load(module: str) -> ModuleType:
    # torch.compile asks first for shapes alone: tensors that a module makes for later calls must be real even so.
    with torch._C._DisableTorchDispatch():
        return importlib.import_module(module)


def choose_backend(
    device: torch.device, dtype: torch.dtype, requested: str = "auto", op: str = "heads"
) -> Choice:
    """Choose the backend of an op for tensors of this device and dtype, with the reason.

    Raises as `Op.choose` does.
    """
    return OPS[op].choose(device.type, dtype, requested)

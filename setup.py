"""The packages: what pyproject.toml cannot find by itself, as kernels/ is imported as mt2st_fast.kernels."""

from setuptools import find_packages, setup

KERNELS = "mt2st_fast.kernels"

setup(
    packages=[
        *find_packages(include=["mt2st_fast", "mt2st_fast.*"]),
        KERNELS,
        *(f"{KERNELS}.{name}" for name in find_packages("kernels")),
    ]
)

"""Folders of small files, one for each way of splitting and labelling text."""

import gzip

import pytest

from tests.data.readers.opened import CONLLU, TABLE


@pytest.fixture
def write(tmp_path):
    """Write files (name -> text) below tmp_path and return that folder; names in .gz are compressed."""

    def write_files(**texts):
        for name, text in texts.items():
            path = tmp_path / name
            data = text.encode() if isinstance(text, str) else text
            path.write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
        return tmp_path

    return write_files


@pytest.fixture
def conllu_folder(write):
    return write(**{f"x-{part}.conllu": CONLLU for part in ("train", "dev", "test")})


@pytest.fixture
def table_folder(write):
    return write(**{f"{part}.csv": TABLE for part in ("train", "dev", "test")})

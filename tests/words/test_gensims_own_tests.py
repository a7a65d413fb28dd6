"""gensim's own tests of Word2Vec, run on ours: python -m pytest -m long tests/words/test_gensims_own_tests.py"""

from __future__ import annotations

import unittest
from types import SimpleNamespace

import pytest

from mt2st_fast import Word2Vec

pytestmark = pytest.mark.long

OLD_FILES = "pickles of older gensims: reading one runs code"
# What gensim does otherwise on purpose, or what we do not have; each is named, none is skipped in silence.
DIFFERENT: dict[str, str] = {}


def gensims_case():
    pytest.importorskip("testfixtures")
    pytest.importorskip("gensim")
    return __import__("gensim.test.test_word2vec", fromlist=["TestWord2VecModel"])


@pytest.mark.filterwarnings("ignore")
def test_gensims_own_tests_pass_but_for_those_that_are_named(monkeypatch):
    theirs = gensims_case()
    ours = SimpleNamespace(**vars(theirs.word2vec)) if False else theirs.word2vec
    monkeypatch.setattr(ours, "Word2Vec", Word2Vec)
    result = unittest.TestResult()
    suite = unittest.defaultTestLoader.loadTestsFromTestCase(theirs.TestWord2VecModel)
    suite.run(result)
    lines = {
        test.id().rpartition(".")[2]: text.strip().splitlines()[-1]
        for test, text in result.errors + result.failures
    }
    print(result.testsRun, len(lines), len(result.skipped))
    for name in sorted(lines):
        print(name, "->", lines[name])
    assert set(lines) == set(DIFFERENT)

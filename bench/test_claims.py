"""The programs behind single tables of docs/claims.md run on tiny inputs."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench import claims, reviews
from mt2st_fast.cli import main


def test_reviews_are_drawn_trained_on_and_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(reviews, "N_TRAIN", 60)
    monkeypatch.setattr(reviews, "N_TEST", 20)
    for part in reviews.PARTS:
        (tmp_path / part).mkdir(parents=True)
        for i in range(30):
            (tmp_path / part / f"{i}.txt").write_text(f"A {part[-3:]}, {part[-3:]} film,<br />number {i}.")
    reviews.main(tmp_path, draws=2, epoch=50)
    *of_draws, last = capsys.readouterr().out.splitlines()
    assert len(of_draws) == 2
    assert last.startswith("median 1.000 in ")


def test_a_folder_without_reviews_is_named(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=f"{tmp_path}: has 0 reviews"):
        reviews.main(tmp_path)


def sentence(number: int, n_words: int = 4) -> str:
    genre = ("mail", "web")[number % 2]
    rows = [
        f"{i + 1}\tw{(number + i) % 9}\t_\t{'NV'[i % 2]}\t{'nv'[i % 2]}\t_\t0\troot\t_\t_"
        for i in range(n_words)
    ]
    return "\n".join([f"# newdoc id = {genre}-{number}", *rows, "", ""])


@pytest.mark.parametrize("task", ["genre", "upos"])
def test_a_transformer_is_trained_by_every_strategy(
    task: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("transformers")
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    from bench import transformer

    words = Tokenizer(models.WordLevel({"[PAD]": 0} | {f"w{i}": i + 1 for i in range(9)}, "[PAD]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=words, pad_token="[PAD]", unk_token="[PAD]").save_pretrained(
        tmp_path / "model"
    )
    size = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    BertModel(BertConfig(vocab_size=10, **size), add_pooling_layer=False).save_pretrained(tmp_path / "model")
    for part in ("train", "dev"):
        (tmp_path / f"x-{part}.conllu").write_text("".join(map(sentence, range(60))))

    transformer.main(
        tmp_path / "model",
        tmp_path,
        task,
        label_fraction=0.5,
        steps=20,
        batch=4,
        seeds=1,
        lr=1e-3,
        switch_at=0.5,
    )
    printed = capsys.readouterr().out
    assert f"{task}, 30 labelled sentences, 20 steps, seeds: 1; medians" in printed
    for name in ("stl", "mtl", "switch"):
        assert f"seed 0, {name}: " in printed


def test_a_comparison_becomes_the_record_that_tables_are_made_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The record is made of what `compare` writes today."""
    treebank, out = tmp_path / "small.conllu", tmp_path / "out"
    treebank.write_text("".join(map(sentence, range(60))), encoding="utf-8")
    asked = ["--main", "upos", "--aux", "xpos", "--strategies", "stl,mtl,switch", "--label-fraction", "0.1"]
    asked += ["--seeds", "2", "--epochs", "1", "--dim", "4", "--hidden", "4", "--out", str(out)]
    with pytest.raises(SystemExit) as ended:
        main(["compare", "--data", f"conllu:{treebank}", *asked])
    assert not ended.value.code
    monkeypatch.setattr(claims, "CLAIMS", tmp_path / "claims")
    assert claims.keep("small", out).name == "small.json"
    rows = claims.of_strategies("small")
    assert [row.split("|")[1].strip() for row in rows[2:]] == ["stl", "mtl", "switch"]
    assert claims.read("small")["n_seeds"] == 2

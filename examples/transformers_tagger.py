"""Hugging Face transformers: tags and a genre over one encoder, where the genre retires after 60 % of the steps.

Runs in seconds on data made on the spot:  python examples/transformers_tagger.py
"""

from __future__ import annotations

import random
import tempfile

from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast, TrainingArguments, set_seed

from mt2st_fast import Classification, Switch
from mt2st_fast.integrations.transformers import (
    DataCollatorForMultiTask,
    MultiTaskModel,
    MultiTaskTrainer,
    PhaseCallback,
)

WORDS, TAGS = 40, 4
TASKS = {"tag": Classification(TAGS), "genre": Classification(2, pooling="first")}


def small_tokenizer():
    """Yours is AutoTokenizer.from_pretrained(...)."""
    words = Tokenizer(models.WordLevel({"[PAD]": 0} | {f"w{i}": i for i in range(1, WORDS)}, "[PAD]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token="[PAD]", unk_token="[PAD]")


def made_up(n, tokenizer):
    """Sentences whose first word says the genre; every third has no tags."""
    draw = random.Random(0)
    rows = []
    for i in range(n):
        ids = [draw.randrange(1, WORDS) for _ in range(draw.randint(3, 9))]
        labels = (
            {"genre": ids[0] % 2} if i % 3 == 0 else {"tag": [w % TAGS for w in ids], "genre": ids[0] % 2}
        )
        rows.append({**tokenizer(" ".join(f"w{i}" for i in ids)), "labels": labels})
    return rows


def small_encoder():
    """Yours is AutoModel.from_pretrained(...)."""
    config = BertConfig(
        vocab_size=WORDS, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64
    )
    return BertModel(config, add_pooling_layer=False)


def right_tags(evaluation):
    tags, logits = evaluation.label_ids["tag"], evaluation.predictions["tag"]
    return {"right": float((logits.argmax(-1) == tags)[tags >= 0].mean())}


def main(steps=60, folder=None, **more):
    set_seed(0)
    tokenizer = small_tokenizer()
    rows = made_up(256, tokenizer)
    model = MultiTaskModel.from_encoder(small_encoder(), TASKS, main="tag")
    arguments = TrainingArguments(
        folder or tempfile.mkdtemp(), max_steps=steps, learning_rate=5e-3, gradient_accumulation_steps=2,
        report_to=[], use_cpu=True, disable_tqdm=True, **more,
    )  # fmt: skip
    trainer = MultiTaskTrainer(
        model, arguments, train_dataset=rows, eval_dataset=rows[:60], compute_metrics=right_tags,
        data_collator=DataCollatorForMultiTask(tokenizer, TASKS), callbacks=[PhaseCallback(Switch(at=0.6))],
    )  # fmt: skip
    trainer.train()
    return trainer


if __name__ == "__main__":
    trained = main()
    print("active at the end:", trained.model.heads.active, "tags right:", trained.evaluate()["eval_right"])

"""Hugging Face transformers, by its own Trainer: needs the extra `transformers`, and is skipped without it."""

from __future__ import annotations

import copy
import random

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mt2st_fast import Classification, InputError, MultiTaskHeads, Regression, Switch
from tests.integrations.examples import load

transformers = pytest.importorskip("transformers")
pytest.importorskip("accelerate")

from mt2st_fast.integrations.transformers import (  # noqa: E402
    DataCollatorForMultiTask,
    MultiTaskConfig,
    MultiTaskModel,
    MultiTaskTrainer,
    PhaseCallback,
)

pytestmark = pytest.mark.filterwarnings("default")  # other people's code warns of what is to come there

EXAMPLE = load("transformers_tagger")
TASKS = {
    "tag": Classification(4, label_smoothing=0.1),
    "genre": Classification(2, pooling="first"),
    "length": Regression(pooling="mean"),
}
SWITCH, STEPS = 4, 7


def small_model(tasks=TASKS, **options):
    transformers.set_seed(0)
    config = transformers.BertConfig(
        vocab_size=EXAMPLE.WORDS, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, **options,
    )  # fmt: skip
    return MultiTaskModel.from_encoder(transformers.BertModel(config, add_pooling_layer=False), tasks, "tag")


def made_up(n, seed=0):
    """Rows of different lengths whose labels are missing here and there, for some altogether."""
    draw, tokenizer = random.Random(seed), EXAMPLE.small_tokenizer()
    rows = []
    for _ in range(n):
        ids = [draw.randrange(1, EXAMPLE.WORDS) for _ in range(draw.randint(2, 7))]
        labels = {
            "tag": [w % 4 if draw.random() < 0.5 else -100 for w in ids],
            "genre": ids[0] % 2,
            "length": len(ids) / 7,
        }
        kept = {name: label for name, label in labels.items() if draw.random() < 0.6}
        rows.append({**tokenizer(" ".join(f"w{i}" for i in ids)), "labels": kept})
    return rows


COLLATE = DataCollatorForMultiTask(EXAMPLE.small_tokenizer(), TASKS)


DEFAULTS = {
    "max_steps": STEPS,
    "learning_rate": 0.01,
    "per_device_train_batch_size": 4,
    "save_strategy": "no",
}


def train(model, folder, rows, *, schedule=None, resume=None, collate=COLLATE, **options):
    arguments = transformers.TrainingArguments(
        str(folder), report_to=[], use_cpu=True, disable_tqdm=True, remove_unused_columns=False, logging_steps=1,
        **DEFAULTS | options,
    )  # fmt: skip
    trainer = MultiTaskTrainer(
        model, arguments, train_dataset=rows, data_collator=collate,
        callbacks=[] if schedule is None else [PhaseCallback(schedule)],
    )  # fmt: skip
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def weights(model):
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def test_the_example_runs_and_learns(tmp_path):
    trainer = EXAMPLE.main(steps=25, folder=str(tmp_path), save_strategy="no")
    assert trainer.model.heads.active == ("tag",)
    measured = trainer.evaluate()
    assert measured["eval_right"] > 0.5  # a quarter is right by chance
    assert measured["eval_loss"] > 0


@pytest.mark.parametrize("missing_everywhere", [False, True])
def test_accumulating_is_one_large_batch_whatever_labels_are_missing(tmp_path, missing_everywhere):
    rows = made_up(16)
    if missing_everywhere:
        rows = [row | {"labels": {n: v for n, v in row["labels"].items() if n != "genre"}} for row in rows]

    def update(parts):
        model = small_model()
        options = {
            "optim": "sgd",
            "learning_rate": 0.5,
            "lr_scheduler_type": "constant",
            "max_grad_norm": 0.0,
        }
        train(
            model, tmp_path, rows, max_steps=1, per_device_train_batch_size=16 // parts,
            gradient_accumulation_steps=parts, **options,
        )  # fmt: skip
        return weights(model)

    whole, start = update(1), weights(small_model())
    assert max((whole[n] - start[n]).abs().max() for n in whole) > 1e-3
    for parts in (2, 4, 8):
        split = update(parts)
        assert max((split[n] - whole[n]).abs().max().item() for n in whole) < 1e-6, parts


def by_hand(model, batches, lr):
    """A loop without anything of ours: linear layers and torch's losses."""
    encoder = model.encoder
    layers = {n: copy.deepcopy(model.heads.linear(n)) for n in TASKS}
    parameters = [*encoder.parameters(), *(p for layer in layers.values() for p in layer.parameters())]
    optimizer = torch.optim.SGD(parameters, lr=lr)
    losses = []
    for batch in batches:
        mask, labels = batch["attention_mask"], batch["labels"]
        features = encoder(input_ids=batch["input_ids"], attention_mask=mask).last_hidden_state
        mean = (features * mask.unsqueeze(2)).sum(1) / mask.sum(1, keepdim=True)
        tag = layers["tag"](features).flatten(0, 1), labels["tag"].flatten()
        genre = layers["genre"](features[:, 0]), labels["genre"]
        known = ~labels["length"].isnan()
        parts = [
            F.cross_entropy(*tag, label_smoothing=0.1, reduction="sum") / (tag[1] >= 0).sum().clamp(min=1),
            F.cross_entropy(*genre, reduction="sum") / (genre[1] >= 0).sum().clamp(min=1),
            (((layers["length"](mean) - labels["length"])[known]) ** 2).sum() / known.sum().clamp(min=1),
        ]
        loss = sum(parts)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses, weights(nn.ModuleDict({"encoder": encoder, "linears": nn.ModuleDict(layers)}))


def test_losses_are_those_of_a_loop_written_by_hand(tmp_path):
    rows = made_up(4 * SWITCH)
    batches = [COLLATE(rows[i : i + 4]) for i in range(0, len(rows), 4)]
    expected, ends = by_hand(small_model(), batches, lr=0.1)
    trainer = train(
        small_model(), tmp_path, rows, schedule=Switch(at_step=SWITCH), max_steps=SWITCH, optim="sgd",
        learning_rate=0.1, lr_scheduler_type="constant", max_grad_norm=0.0, train_sampling_strategy="sequential",
    )  # fmt: skip
    logged = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert [float(loss) for loss in logged] == pytest.approx(expected, abs=1e-4)  # as rounded as the log is
    for name, own in weights(trainer.model).items():
        torch.testing.assert_close(own, ends[name.removeprefix("heads.")], rtol=0, atol=1e-5)


@pytest.mark.parametrize("options", [{}, {"gradient_checkpointing": True}, {"bf16": True}])
def test_what_has_retired_has_no_gradient_no_state_and_no_forward_pass(tmp_path, options):
    model = small_model()
    trainer = train(model, tmp_path, made_up(24), schedule=Switch(at_step=SWITCH), **options)
    assert model.heads.active == ("tag",)
    retired = [p for name in ("genre", "length") for p in model.heads.linear(name).parameters()]
    state = trainer.optimizer.state
    assert not any(p.requires_grad or p.grad is not None or p in state for p in retired)
    assert all(p in state for p in model.heads.linear("tag").parameters())
    model.eval()
    batch = COLLATE(made_up(3))
    out = model(**batch)
    assert list(out.logits) == ["tag"]
    assert out.losses.shape == (1,)


def test_resumed_before_at_and_after_the_switch_it_goes_on_bit_for_bit(tmp_path):
    rows = made_up(40)
    run = {"schedule": Switch(at_step=SWITCH), "save_strategy": "steps", "save_steps": 1}
    end = train(small_model(), tmp_path, rows, **run)
    expected = weights(end.model)
    for step in (SWITCH - 1, SWITCH, SWITCH + 2):
        resumed = train(
            small_model(), tmp_path / str(step), rows, resume=str(tmp_path / f"checkpoint-{step}"), **run
        )
        assert all(torch.equal(own, expected[name]) for name, own in weights(resumed.model).items()), step
        assert resumed.model.heads.active == ("tag",)
        assert len(resumed.optimizer.state) == len(end.optimizer.state)


@pytest.mark.parametrize("kind", [MultiTaskTrainer, transformers.Trainer])
@pytest.mark.parametrize("as_columns", [False, True])
def test_columns_of_the_encoder_are_not_removed(tmp_path, kind, as_columns):
    rows = [
        {
            **row,
            "labels": {"genre": k % 2},
            "token_type_ids": [place % 2 for place in range(len(row["input_ids"]))],
        }
        for k, row in enumerate(made_up(12))
    ]
    if as_columns:
        rows = pytest.importorskip("datasets").Dataset.from_list(rows)

    def losses(removed):
        arguments = transformers.TrainingArguments(
            str(tmp_path), report_to=[], use_cpu=True, disable_tqdm=True, remove_unused_columns=removed,
            logging_steps=1, train_sampling_strategy="sequential", **DEFAULTS | {"max_steps": 3},
        )  # fmt: skip
        trainer = kind(small_model(), arguments, train_dataset=rows, data_collator=COLLATE)
        trainer.train()
        return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]

    assert losses(True) == losses(False)


def test_columns_of_any_encoder_are_kept(tmp_path):
    arguments = transformers.TrainingArguments(str(tmp_path), report_to=[], use_cpu=True)
    trainer = MultiTaskTrainer(small_model(), arguments, train_dataset=made_up(4), data_collator=COLLATE)
    trainer.get_train_dataloader()
    assert {"position_ids", "inputs_embeds", "token_type_ids", "labels"} <= set(trainer._signature_columns)


def test_a_second_run_begins_with_all_tasks(tmp_path):
    """By the same Trainer, whose optimizer has all parameters: labels of all tasks are counted from the start."""
    rows, options = made_up(32), {"gradient_accumulation_steps": 2, "max_steps": 4}
    trainer = train(small_model(), tmp_path, rows, schedule=Switch(at_step=2), **options)
    assert trainer.model.heads.active == ("tag",)
    counted = []
    original = trainer.get_batch_samples

    def counting(*arguments):
        batches, counts = original(*arguments)
        counted.append(sorted(counts))
        return batches, counts

    trainer.get_batch_samples = counting
    trainer.train()
    assert counted[0] == sorted(TASKS)
    assert counted[3] == ["tag"]


@pytest.mark.parametrize("prune", [True, False])
def test_a_task_that_comes_back_must_be_in_the_optimizer(tmp_path, prune):
    model = small_model()
    model.heads.set_active(["tag"])
    arguments = transformers.TrainingArguments(
        str(tmp_path), report_to=[], use_cpu=True, disable_tqdm=True, remove_unused_columns=False, **DEFAULTS
    )
    trainer = MultiTaskTrainer(
        model, arguments, train_dataset=made_up(8), data_collator=COLLATE,
        callbacks=[PhaseCallback(Switch(at_step=2), prune=prune)],
    )  # fmt: skip
    with pytest.raises(
        InputError, match=r"genre, length had retired .* call heads.set_active\(heads.names\) before"
    ):
        trainer.train()
    model.heads.set_active(model.heads.names)
    before = weights(model)
    trainer = train(model, tmp_path, made_up(8), schedule=Switch(at_step=2))
    assert not torch.equal(weights(model)["heads.linears.genre.weight"], before["heads.linears.genre.weight"])


def test_a_model_is_kept_with_its_tasks_and_which_of_them_are_active(tmp_path):
    model = small_model()
    model.heads.set_active(["tag", "length"])
    model.save_pretrained(tmp_path)
    model.eval()
    batch = COLLATE(made_up(5))
    again = MultiTaskModel.from_pretrained(tmp_path).eval()
    assert again.heads.active == ("tag", "length")
    assert again.heads.tasks == model.heads.tasks
    assert all(torch.equal(own, weights(again)[name]) for name, own in weights(model).items())
    assert torch.equal(again(**batch).loss, model(**batch).loss)
    assert type(transformers.AutoModel.from_pretrained(tmp_path)) is MultiTaskModel
    low = MultiTaskModel.from_pretrained(tmp_path, dtype=torch.bfloat16).eval()
    assert low.heads.active == ("tag", "length")
    assert low(**batch).loss.item() == pytest.approx(model(**batch).loss.item(), rel=0.05)


def test_an_encoder_that_is_loaded_stays_as_it_was():
    transformers.set_seed(1)
    config = transformers.BertConfig(
        vocab_size=20, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8
    )
    encoder = transformers.BertModel(config)
    before = weights(encoder)
    model = MultiTaskModel.from_encoder(encoder, TASKS, "tag")
    assert model.encoder is encoder
    assert all(torch.equal(own, before[name]) for name, own in weights(encoder).items())


def test_adapters_on_heads_and_encoder_are_trained():
    peft = pytest.importorskip("peft")
    model = small_model()
    adapted = peft.get_peft_model(model, peft.LoraConfig(target_modules=["linears.tag", "query"], r=2))
    adapted(**COLLATE(made_up(6))).loss.backward()
    trained = {name: p.grad for name, p in adapted.named_parameters() if p.requires_grad}
    assert len(trained) == 4
    assert all(grad is not None for grad in trained.values())
    assert all(grad.abs().max() > 0 for name, grad in trained.items() if "lora_B" in name)
    kept = peft.get_peft_model(
        small_model(), peft.LoraConfig(target_modules=["query"], modules_to_save=["heads"])
    )
    callback = PhaseCallback(Switch(at_step=0))
    state, arguments = (
        transformers.TrainerState(max_steps=2),
        transformers.TrainingArguments("unused", use_cpu=True),
    )
    callback.on_train_begin(arguments, state, None, model=kept)
    callback.on_step_begin(arguments, state, None, model=kept)
    kept(**COLLATE(made_up(6))).loss.backward()
    heads = kept.base_model.model.heads.modules_to_save["default"]
    assert heads.active == ("tag",)
    assert heads.linear("tag").weight.grad is not None
    assert heads.linear("genre").weight.grad is None


class Counting:
    """A schedule with a memory."""

    def task_weights(self, moment, main, auxiliary):
        return {main: 1.0}

    def state_dict(self):
        return {}

    def load_state_dict(self, state):
        pass


def test_what_cannot_be_done_is_refused_by_name():
    with pytest.raises(InputError, match="Counting has state"):
        PhaseCallback(Counting())
    with pytest.raises(InputError, match=r"needs encoder, tasks and main; MultiTaskModel\.from_encoder"):
        MultiTaskModel(MultiTaskConfig())
    with pytest.raises(InputError, match="one number does not tell tasks apart"):
        small_model()(**COLLATE(made_up(2)), num_items_in_batch=torch.tensor(8))
    state, arguments = (
        transformers.TrainerState(max_steps=2),
        transformers.TrainingArguments("unused", use_cpu=True),
    )
    with pytest.raises(InputError, match="Linear has none"):
        PhaseCallback(Switch()).on_train_begin(arguments, state, None, model=nn.Linear(2, 2))
    assert isinstance(small_model().heads, MultiTaskHeads)


def kept(model, folder, **options):
    """The model from its folder."""
    model.save_pretrained(folder)
    again, told = MultiTaskModel.from_pretrained(folder, output_loading_info=True, **options)
    assert not told["missing_keys"]
    assert not told["unexpected_keys"]
    return again


def assert_same(model, other):
    assert weights(model).keys() == weights(other).keys()
    assert all(torch.equal(own, weights(other)[name]) for name, own in weights(model).items())


@pytest.mark.parametrize("owner", [lambda model: model, lambda model: model.encoder])
def test_more_words_are_kept(tmp_path, owner):
    model = small_model()
    owner(model).resize_token_embeddings(EXAMPLE.WORDS + 10)
    again = kept(model, tmp_path)
    assert_same(model, again)
    assert again.config.encoder.vocab_size == EXAMPLE.WORDS + 10
    assert again.config.encoder is again.encoder.config


SIZES = {
    "bert": {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8},
    "t5": {"d_model": 8, "d_kv": 4, "d_ff": 8, "num_layers": 1, "num_heads": 2},
}


def bert(**arguments):
    return transformers.BertModel(
        transformers.BertConfig(vocab_size=EXAMPLE.WORDS, **SIZES["bert"]), **arguments
    )


@pytest.mark.parametrize(
    ("encoder", "making"),
    [
        (lambda: bert(add_pooling_layer=False), ("BertModel", {"add_pooling_layer": False})),
        (bert, ("BertModel", {})),
        (
            lambda: transformers.T5EncoderModel(
                transformers.T5Config(vocab_size=EXAMPLE.WORDS, **SIZES["t5"])
            ),
            ("T5EncoderModel", {}),
        ),
    ],
)
def test_a_loaded_model_has_the_layers_that_were_kept(tmp_path, encoder, making):
    transformers.set_seed(0)
    model = MultiTaskModel.from_encoder(encoder(), TASKS, "tag")
    again = kept(model, tmp_path)
    assert_same(model, again)
    assert type(again.encoder) is type(model.encoder)
    assert tuple(again.config.making) == making
    batch = COLLATE(made_up(3))
    assert torch.equal(model.eval()(**batch).loss, again.eval()(**batch).loss)


def test_a_run_goes_on_from_a_loaded_model(tmp_path):
    rows = made_up(40)
    run = {"schedule": Switch(at_step=SWITCH), "save_strategy": "steps", "save_steps": 2}
    expected = train(small_model(), tmp_path, rows, **run).model
    folder = str(tmp_path / "checkpoint-2")
    loaded = MultiTaskModel.from_pretrained(folder)
    assert_same(expected, train(loaded, tmp_path / "again", rows, resume=folder, **run).model)


class OwnBert(transformers.BertModel):
    """A class that transformers does not have."""

    def __init__(self, config):
        super().__init__(config)
        self.more = nn.Linear(2, 2)


def test_an_encoder_that_transformers_does_not_have_is_trained_but_not_made(tmp_path, caplog):
    encoder = OwnBert(transformers.BertConfig(vocab_size=EXAMPLE.WORDS, **SIZES["bert"]))
    model = MultiTaskModel.from_encoder(encoder, TASKS, "tag")
    for _ in range(2):
        model.save_pretrained(tmp_path)
    assert caplog.text.count("to load it, create it") == 1
    with pytest.raises(
        InputError, match=r"is a .*\.OwnBert, which transformers cannot create from its config"
    ):
        MultiTaskModel.from_pretrained(tmp_path)
    again = MultiTaskModel(MultiTaskConfig.from_pretrained(tmp_path), copy.deepcopy(encoder))
    again.load_state_dict(model.state_dict())
    assert_same(model, again)


def test_attention_is_the_encoder_s(tmp_path, caplog):
    model = small_model()
    assert kept(model, tmp_path).encoder.config._attn_implementation == "sdpa"
    eager = kept(model, tmp_path, attn_implementation="eager")
    assert eager.encoder.config._attn_implementation == "eager"
    eager.set_attn_implementation("sdpa")
    assert eager.encoder.config._attn_implementation == "sdpa"
    encoder = bert()
    encoder.set_attn_implementation("eager")
    MultiTaskModel.from_encoder(encoder, TASKS, "tag")
    assert encoder.config._attn_implementation == "eager"
    batch = COLLATE(made_up(3))
    for attention in ("eager", "sdpa"):
        again = kept(model, tmp_path, attn_implementation=attention).eval()
        torch.testing.assert_close(again(**batch).loss, model.eval()(**batch).loss)


def test_tuples_in_place_of_records():
    model, batch = small_model().eval(), COLLATE(made_up(3))
    out = model(**batch)
    for loss, losses, logits in (model(**batch, return_dict=False), out.to_tuple()):
        assert torch.equal(loss, out.loss)
        assert torch.equal(losses, out.losses)
        assert logits.keys() == out.logits.keys()
    model.config.return_dict = model.encoder.config.return_dict = False
    assert torch.equal(model(**batch)[0], out.loss)
    assert torch.equal(model(**batch, return_dict=True).loss, out.loss)


@pytest.mark.parametrize("trainer", [MultiTaskTrainer, transformers.Trainer])
def test_smoothing_of_all_labels_is_refused(tmp_path, trainer):
    arguments = transformers.TrainingArguments(
        str(tmp_path), label_smoothing_factor=0.1, report_to=[], use_cpu=True, remove_unused_columns=False
    )
    with pytest.raises(InputError, match=r"as in Classification\(4, label_smoothing=0\.1\)"):
        trainer(
            small_model(), arguments, train_dataset=made_up(4), data_collator=COLLATE,
            callbacks=[PhaseCallback(Switch())],
        ).train()  # fmt: skip


def test_an_encoder_without_a_type_is_refused():
    with pytest.raises(InputError, match="needs its model_type, such as 'bert'"):
        MultiTaskConfig(encoder={"hidden_size": 8})

"""AdaptiveSwitch: what it decides on given evidence, and that it finds unrelated tasks in real runs."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

from mt2st_fast import AdaptiveSwitch, Callback, Classification, InputError, MultiTaskHeads, Trainer
from mt2st_fast.training.schedules import Moment
from mt2st_fast.training.schedules.shown import HeldOut, TaskGradient
from tests.training.small_runs import Stop

ALIGNED = (0.3, 0.25, 0.35)
UNRELATED = (0.004, -0.003, 0.001)


def show(schedule, metrics, cosines=None, *, first=0, main="a", learnt=0.0, rate_left=None):
    """An evaluation every 10 steps; cosines: {task: one for each evaluation, repeated}; learnt: of every task."""
    tasks = cosines or {"b": ALIGNED}
    for i, metric in enumerate(metrics, first):
        gradients = {main: TaskGradient(1.0, 1.0)} | {
            name: TaskGradient(1.0, values[i % len(values)], learnt=learnt) for name, values in tasks.items()
        }
        seen = {main: metric} | dict.fromkeys(tasks, 0.5)
        schedule.observe_held_out(HeldOut(10 * (i + 1), main, seen, gradients, rate_left=rate_left))


def weights(schedule, *tasks):
    return schedule.task_weights(Moment(50, 10, 100), "a", tasks or ("b",))


RISING = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7]


def test_an_aligned_task_trains_for_as_long_as_the_main_task_gets_better():
    schedule = AdaptiveSwitch(weights=0.5)
    show(schedule, RISING)
    assert weights(schedule) == {"a": 1.0, "b": 0.5}
    assert not schedule.evidence


def test_a_task_that_is_not_aligned_rests_and_then_retires_with_its_reason():
    schedule = AdaptiveSwitch()
    show(schedule, RISING[:3], {"b": ALIGNED, "c": UNRELATED})
    assert weights(schedule, "b", "c") == {"a": 1.0, "b": 1.0, "c": 0.0}
    show(schedule, RISING[3:6], {"b": ALIGNED, "c": UNRELATED}, first=3)
    assert weights(schedule, "b", "c") == {"a": 1.0, "b": 1.0}
    assert list(schedule.reasons) == ["c"]
    assert "not aligned" in schedule.reasons["c"]
    assert schedule.reasons["c"].endswith("at step 30")
    assert [line.split(";")[0].split(",")[0] for line in schedule.evidence] == [
        "step 30: c rests",
        "step 60: c retires",
    ]


def test_a_task_that_is_learnt_stays_without_alignment():
    """It may shape the encoder below the features."""
    schedule = AdaptiveSwitch()
    show(schedule, RISING, {"b": UNRELATED}, learnt=0.9)
    assert weights(schedule) == {"a": 1.0, "b": 1.0}
    assert not schedule.evidence


def test_what_nobody_knows_the_learning_of_is_judged_by_its_alignment():
    schedule = AdaptiveSwitch()
    show(schedule, RISING[:3], {"b": UNRELATED}, learnt=None)
    assert weights(schedule) == {"a": 1.0, "b": 0.0}
    assert "learnt" not in schedule.evidence[0]


def test_a_look_that_is_no_number_decides_nothing():
    schedule = AdaptiveSwitch()
    show(schedule, RISING[:5], {"b": (float("nan"), 0.001, float("inf"))}, learnt=float("nan"))
    assert weights(schedule) == {"a": 1.0, "b": 1.0}


def test_a_task_that_pulls_against_the_main_task_rests_though_it_is_learnt():
    schedule = AdaptiveSwitch()
    show(schedule, RISING[:3], {"b": (-0.02, -0.03, -0.025)}, learnt=0.9)
    assert not schedule.evidence  # by so little that what it teaches may be worth more
    schedule = AdaptiveSwitch()
    show(schedule, RISING[:3], {"b": (-0.1, -0.12, -0.11)}, learnt=0.9)
    assert weights(schedule) == {"a": 1.0, "b": 0.0}
    assert schedule.evidence == [
        "step 30: b rests, as its gradient pulls against the main task's (cosine -0.110, standard error 0.006)"
    ]


def test_a_noisy_task_whose_mean_alignment_could_be_nothing_rests():
    schedule = AdaptiveSwitch()
    show(schedule, RISING[:3], {"b": (0.2, -0.15, 0.05)})
    assert weights(schedule) == {"a": 1.0, "b": 0.0}


STILL = [0.1, 0.3, 0.5, 0.6, 0.7, 0.8, 0.8, 0.81, 0.79, 0.8, 0.81, 0.79, 0.8, 0.81, 0.8, 0.8, 0.8, 0.8]


def test_all_rest_at_the_main_tasks_plateau():
    schedule = AdaptiveSwitch(margin=0.01)
    show(schedule, STILL[:14])
    assert weights(schedule)["b"] == 1.0  # two windows of 6 evaluations: 0.70 and 0.80 in the mean
    show(schedule, STILL[14:], first=14)
    assert weights(schedule)["b"] == 0.0
    show(schedule, [0.81, 0.80, 0.82], first=len(STILL))
    assert weights(schedule) == {"a": 1.0}
    assert "has not risen by 0.01 in 6 evaluations (to 0.8000 in the mean)" in schedule.reasons["b"]


def test_a_plateau_counts_from_where_half_of_a_falling_rate_is_gone():
    schedule = AdaptiveSwitch(margin=0.01)
    show(schedule, STILL, rate_left=0.51)
    assert not schedule.evidence
    show(schedule, STILL[-1:], first=len(STILL), rate_left=0.5)
    assert weights(schedule)["b"] == 0.0


def test_one_good_evaluation_among_noisy_ones_is_no_plateau():
    """Of a metric that rises slowly an early best is not passed for a while."""
    schedule = AdaptiveSwitch()
    show(schedule, [0.80, 0.88, 0.81, 0.82, 0.83, 0.82, 0.84, 0.85, 0.84, 0.86, 0.87, 0.86, 0.87, 0.88])
    assert weights(schedule)["b"] == 1.0
    assert not schedule.evidence


def test_a_task_that_no_row_is_measured_by_rests_at_the_plateau_too():
    schedule = AdaptiveSwitch(margin=0.01)
    assert weights(schedule, "words") == {"a": 1.0, "words": 1.0}
    for step, metric in enumerate(STILL, 1):
        schedule.observe_held_out(HeldOut(10 * step, "a", {"a": metric}))
    assert weights(schedule, "words") == {"a": 1.0, "words": 0.0}
    for step, metric in enumerate([0.81, 0.80, 0.82], len(STILL) + 1):
        schedule.observe_held_out(HeldOut(10 * step, "a", {"a": metric}))
    assert weights(schedule, "words") == {"a": 1.0}
    assert "has not risen" in schedule.reasons["words"]


def test_a_task_comes_back_once_where_the_main_task_fell_without_it():
    schedule = AdaptiveSwitch()
    show(schedule, [0.8] * 12)
    assert weights(schedule)["b"] == 0.0
    show(schedule, [0.7, 0.75, 0.74], first=12)
    assert weights(schedule)["b"] == 1.0
    assert schedule.evidence[-1] == (
        "step 150: b is back, as the main task reached 0.7500 without it, after 0.8000"
    )
    show(schedule, [0.7] * 11, first=15)
    assert weights(schedule)["b"] == 1.0  # a plateau is judged anew
    show(schedule, [0.7, 0.6, 0.6, 0.6, 0.6, 0.6], first=26)
    assert weights(schedule) == {"a": 1.0}  # worse again, but it has been back
    assert "b" in schedule.reasons


def show_fresh(schedule, freshness, *, epochs_each=0.5, metrics=RISING):
    for i, (fresh, metric) in enumerate(zip(freshness, metrics, strict=False)):
        gradients = {"a": TaskGradient(1.0, 1.0), "b": TaskGradient(1.0, ALIGNED[i % 3])}
        seen = {"a": metric, "b": 0.5}
        schedule.observe_held_out(HeldOut(10 * (i + 1), "a", seen, gradients, fresh, epochs_each * (i + 1)))


def test_all_rest_where_the_main_tasks_own_labels_stay_fresh_from_the_second_epoch_on():
    schedule = AdaptiveSwitch()
    show_fresh(schedule, [0.9, 0.9, 0.8])
    assert weights(schedule)["b"] == 1.0  # two evaluations of these count: an epoch had gone by
    schedule = AdaptiveSwitch()
    show_fresh(schedule, [0.9, 0.9, 0.8, 0.85])
    assert weights(schedule)["b"] == 0.0
    assert schedule.evidence == [
        "step 40: b rests, as the main task's own labels still teach it (freshness 0.85)"
    ]


def test_auxiliary_tasks_stay_where_the_main_task_knows_its_rows_by_heart():
    schedule = AdaptiveSwitch()
    show_fresh(schedule, [1.0, 1.0, 0.6, 0.3, 0.2, 0.1, 0.05])
    assert weights(schedule)["b"] == 1.0


def test_a_metric_that_is_no_number_decides_nothing():
    schedule = AdaptiveSwitch()
    show(schedule, [float("nan")] * 20)
    assert weights(schedule)["b"] == 1.0


def test_tasks_without_gradients_on_the_features_are_let_go_by_the_plateau_alone():
    schedule = AdaptiveSwitch()
    for i in range(16):
        schedule.observe_held_out(HeldOut(i, "a", {"a": 0.9, "words": 0.1}, None))
    assert weights(schedule, "words") == {"a": 1.0}


def show_told(schedule, metrics, *, every=0.0625, self_training=True, labelled_by=("b",), first=1):
    for i, metric in enumerate(metrics, first):
        gradients = {"a": TaskGradient(1.0, 1.0), "b": TaskGradient(1.0, 0.3), "c": TaskGradient(1.0, 0.3)}
        seen = {"a": metric, "b": 0.5, "c": 0.5}
        place = {"share_done": every * i, "self_training": self_training, "labelled_by": labelled_by}
        schedule.observe_held_out(HeldOut(10 * i, "a", seen, gradients, **place))


SLOWING = [0.5, 0.6, 0.7, 0.8, 0.84, 0.86, 0.87]


def test_all_retire_once_the_error_falls_slowly_where_rows_are_labelled_by_their_labels():
    schedule = AdaptiveSwitch()
    show_told(schedule, SLOWING)  # to a mean error of 0.135, from 0.18
    assert weights(schedule, "b", "c") == {"a": 1.0, "b": 1.0, "c": 1.0}
    schedule = AdaptiveSwitch()
    show_told(schedule, [*SLOWING, 0.88])
    assert weights(schedule, "b", "c") == {"a": 1.0}
    reason = "the labels of b tell the main task's, and its error only fell from 0.1500 to 0.1250 at step 80"
    assert schedule.reasons == {"b": reason, "c": reason}
    assert schedule.evidence == [f"b retires, as {reason}", f"c retires, as {reason}"]


@pytest.mark.parametrize("every", [0.0625, 0.025, 0.125])
def test_two_stretches_of_the_run_are_compared_however_often_it_is_evaluated(every):
    schedule = AdaptiveSwitch()
    n = round(0.25 / every)
    show_told(schedule, [0.9] * (n - 1), every=every)
    assert weights(schedule)["b"] == 1.0
    schedule = AdaptiveSwitch()
    show_told(schedule, [0.9] * n, every=every)
    assert weights(schedule) == {"a": 1.0}


def test_a_run_that_goes_on_for_longer_has_its_stretches_in_its_new_length():
    metrics = [*SLOWING, *[0.88] * 10]
    longer, straight = AdaptiveSwitch(), AdaptiveSwitch()
    show_told(longer, metrics[:4])  # to a quarter of the run, which is then an eighth of it
    show_told(longer, metrics[4:], every=0.03125, first=5)
    show_told(straight, metrics, every=0.03125)
    assert longer.reasons == straight.reasons
    assert straight.reasons["b"].endswith(" at step 120")


def test_without_such_labels_tasks_stay_as_the_error_falls_slowly():
    schedule = AdaptiveSwitch()
    show_told(schedule, [*SLOWING, 0.88, 0.88], labelled_by=())
    assert weights(schedule)["b"] == 1.0


def test_all_retire_in_time_for_rows_that_the_model_labels_alone():
    rising = [0.01 * i for i in range(1, 21)]
    schedule = AdaptiveSwitch()
    show_told(schedule, rising[:11], every=0.05, labelled_by=())
    assert weights(schedule)["b"] == 1.0
    show_told(schedule, rising[11:12], every=0.05, labelled_by=(), first=12)
    assert weights(schedule) == {"a": 1.0}
    assert schedule.reasons["b"] == "self-training needs the last 40 % of the run at step 120"
    without = AdaptiveSwitch()
    show_told(without, rising, self_training=False, labelled_by=())
    assert weights(without)["b"] == 1.0


def test_its_state_is_json_and_goes_on():
    metrics = [*[0.8] * 12, 0.7, 0.75]
    through, stopped = AdaptiveSwitch(), AdaptiveSwitch()
    show(through, metrics)
    show(stopped, metrics)
    resumed = AdaptiveSwitch()
    resumed.load_state_dict(json.loads(json.dumps(stopped.state_dict())))
    for schedule in (through, resumed):
        show(schedule, [0.74, 0.7], first=len(metrics))
    assert resumed == through
    assert weights(resumed) == weights(through)


def test_the_state_of_another_version_is_refused_in_a_line():
    state = AdaptiveSwitch().state_dict()
    del state["_steps"]
    with pytest.raises(InputError, match=r"of another version, .*; start a new run without resume"):
        AdaptiveSwitch().load_state_dict(state)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"patience": 1}, "patience must be a whole number of at least 2, not 1"),
        ({"margin": -0.1}, "margin"),
        ({"weights": float("nan")}, "weights"),
    ],
)
def test_nonsense_is_refused(options, message):
    with pytest.raises(InputError, match=message):
        AdaptiveSwitch(**options)


def test_weights_of_a_task_that_is_not_there_are_refused():
    with pytest.raises(ValueError, match="weights names z, which is not an auxiliary task; available: b"):
        weights(AdaptiveSwitch(weights={"z": 1.0}))


# --- in a run ----------------------------------------------------------------------------------------------


def related_and_permuted(rows=2048):
    """Batches of a main task, one that shares its inputs' structure, and one with the labels of other rows."""
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(rows, 12, generator=draw)
    hidden = x @ torch.randn(12, 6, generator=draw)
    main, near = hidden.argmax(1), hidden[:, :4].argmax(1)
    targets = {"main": main, "near": near, "permuted": main[torch.randperm(rows, generator=draw)]}
    return [(x[i : i + 64], {name: t[i : i + 64] for name, t in targets.items()}) for i in range(0, rows, 64)]


def trainer_of(**options):
    torch.manual_seed(1)
    tasks = {"main": Classification(6), "near": Classification(4), "permuted": Classification(6)}
    encoder = nn.Sequential(nn.Linear(12, 32), nn.ReLU())
    heads = MultiTaskHeads(32, tasks, "main")
    schedule = AdaptiveSwitch()
    return Trainer(encoder, heads, schedule=schedule, device="cpu", lr=0.01, log_every=5, **options)


def fit(trainer, epochs=12, **options):
    batches = related_and_permuted()
    return trainer.fit(batches[8:], val=batches[:8], epochs=epochs, evaluate_every=8, **options)


def test_a_permuted_task_retires_first_and_the_history_says_why():
    trainer = trainer_of()
    history = fit(trainer)
    first = history.phases[1]
    assert set(history.phases[0].active) == {"main", "near", "permuted"}
    assert first.active == ("main", "near")
    assert "not aligned" in first.reasons["permuted"]
    assert history.phases[-1].active == ("main",)
    assert trainer.schedule.evidence[0].split(",")[0].endswith("permuted rests")


def test_a_resumed_run_decides_the_same(tmp_path):
    path = tmp_path / "last.safetensors"
    through = trainer_of()
    expected = fit(through)
    rests = expected.phases[1].first_step - 4  # permuted has weight 0, and has not retired
    fit(trainer_of(callbacks=[Stop(rests)]), checkpoint=path)
    resumed = trainer_of()
    assert fit(resumed, checkpoint=path, resume=True).phases == expected.phases
    assert resumed.schedule.evidence == through.schedule.evidence
    for name, tensor in through.heads.state_dict().items():
        assert torch.equal(resumed.heads.state_dict()[name], tensor), name


def test_a_task_that_rests_gets_no_gradient():
    class Watch(Callback):
        gradients = ()

        def on_step(self, trainer):
            weights = trainer.schedule.task_weights(Moment(1, 1, 2), "main", ["near", "permuted"])
            if self.rested:  # in the step that has just been taken
                gradient = trainer.heads.linear("permuted").weight.grad
                self.gradients = (*self.gradients, gradient is not None and bool(gradient.any()))
            self.rested = weights.get("permuted") == 0.0

        rested = False

    watch = Watch()
    fit(trainer_of(callbacks=[watch]), epochs=4)
    assert len(watch.gradients) > 5
    assert not any(watch.gradients)


def test_a_second_run_begins_with_all_tasks():
    trainer = trainer_of()
    fit(trainer)
    assert trainer.schedule.reasons
    again = fit(trainer, epochs=1)
    assert set(again.phases[0].active) == {"main", "near", "permuted"}
    assert not trainer.schedule.reasons


def test_it_needs_held_out_batches():
    with pytest.raises(
        ValueError, match=r"AdaptiveSwitch decides based on held-out batches; pass fit\(val=...\)"
    ):
        trainer_of().fit(related_and_permuted(128), epochs=1)


def test_no_gradients_are_wanted_once_all_tasks_have_retired():
    schedule = AdaptiveSwitch()
    assert schedule.wants_held_out_gradients
    schedule.task_weights(Moment(0, 100, 1000), "main", ("a", "b"))
    schedule.reasons["a"] = "it was enough"
    assert schedule.wants_held_out_gradients
    schedule.reasons["b"] = "it was enough"
    assert not schedule.wants_held_out_gradients

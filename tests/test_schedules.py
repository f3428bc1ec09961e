"""Schedules and other settings: values at points by hand, and frozen dataclasses that go through JSON and come back."""

import json
from dataclasses import dataclass, replace

import pytest
import torch
from inputs import in_one_line
from test_objectives import KINDS

from companion import plain
from companion.objectives import RTB, Annealed, Network, Reinforce, Scalar, StateTable, Table, TrustPCL
from companion.samplers import EveryPath, Exploration, Fading, UniformMixture
from companion.training import Exponential, Linear, Schedule


@pytest.mark.parametrize(
    ("decay", "points"),
    [
        (None, {0: 1.0, 9: 1.0}),
        (Linear(6), {0: 1.0, 5: 1.0, 6: 1.0, 7: 0.75, 9: 0.25}),
        (Linear(), {0: 1.0, 1: 0.9, 9: 0.1}),
        (Exponential(1e-3), {0: 1.0, 5: 10**-1.5, 9: 10**-2.7}),
        (Exponential(0.25, since=8), {0: 1.0, 7: 1.0, 8: 1.0, 9: 0.5}),
    ],
    ids=in_one_line,
)
def test_rates_at_points_worked_out_by_hand(decay, points):
    schedule = Schedule(iterations=10, decay=decay)
    assert {i: schedule.rate_at(i) for i in points} == pytest.approx(points, rel=1e-12, abs=0)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Schedule(iterations=0), "iterations is 0"),
        (lambda: Schedule(iterations=2.0), "iterations is 2.0"),
        (lambda: Schedule(batch=True), "batch is True"),
        (lambda: Schedule(rate=0), "rate is 0"),
        (lambda: Schedule(rate=float("nan")), "rate is nan"),
        (lambda: Schedule(learned_rate=-0.1), "learned_rate is -0.1"),
        (lambda: Schedule(learned_rate=torch.tensor(0.1)), "learned_rate is tensor"),
        (lambda: Schedule(decay=0.5), "decay is 0.5"),
        (lambda: Schedule(decay=Linear(5000)), "decay begins at 5000, iterations is 5000"),
        (lambda: Linear(-1), "since is -1"),
        (lambda: Linear("5"), "since is '5'"),
        (lambda: Linear(1.5), "since is 1.5"),
        (lambda: Linear().at(10, 10), "iteration is 10 of 10"),
        (lambda: Exponential(0.5).at(-1, 10), "iteration is -1 of 10"),
        (lambda: Schedule(iterations=10).rate_at(10), "iteration is 10 of 10"),
        (lambda: Schedule(iterations=10).rate_at(2.5), "iteration is 2.5 of 10"),
        (lambda: Linear(3).at(4.5, 10), "iteration is 4.5 of 10"),
        (lambda: Schedule(iterations=2.5), "iterations is 2.5"),
        (lambda: Schedule(batch=3.0), "batch is 3.0"),
        (lambda: Fading(0.5, 3, 10).at(4.5), "iteration is 4.5"),
        (lambda: Fading(0.5, 3, 10).at(-1), "iteration is -1"),
        (lambda: UniformMixture(Linear(3)), r"epsilon is Linear\(since=3\)"),
        (lambda: UniformMixture(Fading(2.0, 3, 10)), "epsilon is 2.0"),
        (lambda: Exploration(torch.tensor(0.5)), "noise is tensor"),
        (lambda: Exponential(0.0), "to is 0.0"),
        (lambda: Exponential(1.5), "to is 1.5"),
        (lambda: Exponential(0.5, since=-1), "since is -1"),
    ],
)
def test_bad_schedules_are_refused(make, words):
    """Before the first path is drawn; the message names what is at fault."""
    with pytest.raises(ValueError, match=f"{words}.*expected"):
        make()


VALUES = [
    *KINDS,
    RTB(2.0, Table(3, start=-1.0)),
    TrustPCL(0.3, 0.1, 0.9, StateTable(10), 2),
    Reinforce(0.5, Scalar(0.2), "tempered"),
    Reinforce(baseline=0.5, clip=5.0),
    Annealed(RTB(), over=500),
    Schedule(decay=Linear(3)),
    Schedule(iterations=10, decay=Exponential(1e-3)),
    Exploration(Fading(0.5, 500, 4500), 0.5, 300),
    UniformMixture(0.25),
    EveryPath(),
]


@pytest.mark.parametrize("value", VALUES, ids=in_one_line)
def test_a_value_goes_through_json_and_comes_back(value):
    stored = json.loads(json.dumps(plain.to_plain(value)))
    assert stored["type"] == type(value).__name__ and plain.from_plain(stored) == value


@dataclass(frozen=True)
class Typed:
    """A class with a field of the name under which a class is stored."""

    type: str = "hello"


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: plain.from_plain({"type": "Nothing"}), "'Nothing' is not storable; expected one of .*RTB"),
        (lambda: plain.from_plain({"beta": 1.0}), "None is not storable"),
        (lambda: plain.from_plain({"type": "RTB", "clip": 1.0}), "RTB has no clip; expected its own fields"),
        (lambda: plain.from_plain({"type": "RTB", "beta": -1.0}), "beta is -1.0"),
        (lambda: plain.to_plain(RTB(log_z=Network(torch.nn.Linear(1, 1)))), "Network has no plain form; expected"),
        (lambda: plain.to_plain(torch.zeros(1)), "Tensor has no plain form; expected"),
        (lambda: plain.from_plain({"type": ["RTB"]}), "is not storable"),
        (lambda: plain.from_plain({"type": "Table"}), "Table lacks conditions; expected"),
        (lambda: plain.storable(Typed), "Typed has a field 'type'"),
        (lambda: plain.storable(None), "None is no frozen dataclass"),
        (lambda: plain.storable(int), "int is no frozen dataclass; expected"),
        (lambda: plain.storable(dataclass(type("Loose", (), {}))), "Loose is no frozen dataclass; expected"),
        (
            lambda: plain.storable(dataclass(frozen=True)(type("RTB", (), {}))),
            "RTB is the name of companion",
        ),
    ],
)
def test_what_cannot_be_stored_or_read_back_is_refused(call, words):
    with pytest.raises(ValueError, match=words):
        call()


def test_settings_that_differ_are_described_differently():
    """By any field, nested or not. Two modules of one class are alike here: weights are no settings."""
    texts = [plain.describe(value) for value in VALUES]
    texts += [plain.describe(value) for value in (RTB(2.5), RTB(2.5, Scalar(0.1)), replace(VALUES[-3], replayed=0.1))]
    assert len(set(texts)) == len(texts)
    one, other = (plain.describe(Network(torch.nn.Linear(1, 1))) for _ in range(2))
    assert one == other and "0x" not in one
    assert "0x" not in plain.describe(object())


def test_a_method_is_described_by_what_it_is_bound_to_and_an_object_by_its_class():
    schedule = Linear(since=3)
    assert plain.describe(schedule.at) == f"{plain.describe(schedule)}.at"
    assert plain.describe(torch.nn.Tanh()) == "torch.nn.modules.activation.Tanh"
    assert plain.describe(torch.nn.Tanh) == "torch.nn.modules.activation.Tanh"

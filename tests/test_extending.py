"""What a reader adds in a file of their own trains, goes on from a checkpoint, and goes through JSON."""

import json

import pytest
import torch
from inputs import generator, in_one_line
from toys.coin import Coin, Fairer
from toys.forward_kl import WeightedLikelihood
from trainables import Watched, assert_equal, tabular, train, weights_of

from companion import plain
from companion.objectives import RTB, Reinforce, VarGrad

TOYS = {
    "objective": (tabular, WeightedLikelihood(beta=2.0), None),
    "sampler": (Coin, VarGrad(), Fairer()),
    "both": (Coin, WeightedLikelihood(), Fairer(0.3)),
    "sampler, learned log Z": (Coin, RTB(), None),
    "sampler, weights": (Coin, Reinforce(weights="tempered"), Fairer()),
}


@pytest.mark.parametrize("name", TOYS)
def test_a_toy_resumes_to_the_same_numbers(tmp_path, name):
    """Interrupted after eight of twelve steps, with a checkpoint every three."""
    make, objective, behaviour = TOYS[name]
    whole, parts, last = make(), Watched(make(), 8, RuntimeError("interrupted")), Watched(make())
    run = {"behaviour": behaviour, "iterations": 12}
    expected = train(whole, objective, generator(1), **run)
    options = {"checkpoint": tmp_path / "run.npz", "checkpoint_every": 3}
    with pytest.raises(RuntimeError, match="interrupted"):
        train(parts, objective, generator(1), options=options, **run)
    history = train(last, objective, generator(1), options=options, **run)
    assert_equal(weights_of(whole), weights_of(last))
    assert history.steps["loss"].tolist() == expected.steps["loss"].tolist()


def test_settings_made_of_toys_go_through_json_and_train_alike():
    make, *settings = TOYS["both"]
    again = plain.from_plain(json.loads(json.dumps(plain.to_plain(settings))))
    assert list(again) == settings
    one, other = make(), make()
    for sampler, (objective, behaviour) in ((one, settings), (other, again)):
        train(sampler, objective, generator(3), behaviour=behaviour)
    assert_equal(weights_of(one), weights_of(other))


@pytest.mark.parametrize("objective", [VarGrad(), WeightedLikelihood()], ids=in_one_line)
def test_a_toy_sampler_is_trained_to_its_optimum_by_any_objective(objective):
    """Where tails pay nothing p* is the fair coin; from a bent one both come back to it."""
    sampler = Coin(worth=0.0)
    sampler.logit.data.fill_(1.0)
    train(sampler, objective, iterations=400, batch=200, rate=0.02)
    assert abs(sampler.logit.item()) < 0.1


def test_a_checkpoint_of_other_toys_is_refused(tmp_path):
    options = {"checkpoint": tmp_path / "run.npz"}
    train(Coin(), WeightedLikelihood(), options=options)
    for changes in ({"objective": WeightedLikelihood(beta=2.0)}, {"behaviour": Fairer(0.1)}):
        with pytest.raises(ValueError, match="checkpoint of another run"):
            train(Coin(), **({"objective": WeightedLikelihood()} | changes), options=options)
    assert torch.get_default_dtype() == torch.float32

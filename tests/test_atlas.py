"""The atlas: each closed form of a row against the loss that the row is about, and the joins between its tables.

Losses are those of :mod:`companion.family`, of RTB and Trust-PCL, or stand here as their formula. Their expected
gradient is summed over every text, pair or group of texts, and vanishes at the row's law; a descent ends there.
"""

import inspect
import math
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from inputs import generator, tensor

from book import atlas, options
from companion import family, mdp
from companion.claims import registry
from experiments.leaf_losses import LOSSES

ROOT = Path(__file__).resolve().parents[1]
LEAVES = {leaf["id"]: leaf for leaf in atlas.read(ROOT)}
ROWS = [(leaf["id"], row) for leaf in LEAVES.values() for row in leaf["row"]]
TRAINERS = atlas.trainers(ROOT)
DEFAULTS = {name: library["defaults"] for name, library in options.read(ROOT)[1].items()}
ALPHA, BETA, N = atlas.ALPHA, atlas.BETA, atlas.GROUP
BENCH = atlas.testbed()
#: A gradient that vanishes, and one that does not; elsewhere they are of order .1. A trained law against a closed form.
ZERO, SOME, TRAINED = 1e-10, 1e-4, 1e-6
#: Groups that are looked at together; 3060 is a multiple of it.
CHUNK = 102


def quantile_of(bench):
    return tensor([float(bench.log_ref.exp()[bench.reward <= r].sum()) for r in bench.reward]).clamp(max=1.0)


def warm_value(bench):
    """alpha times log Z at twice alpha, in units of reward: what A*-PO stores at beta1 = 1."""
    return tensor(math.log(float((bench.log_ref.exp() * bench.reward.exp()).sum())))


def groups_of(bench, size, log_law):
    """Every group of texts, and how likely it is; in no order, but for pairs."""
    if size <= 2:
        return mdp.enumerate_batches(log_law, size)[0], mdp.enumerate_batches(log_law, size)[1].exp()
    return atlas.others(bench, size, log_law)


def through(bench, log_law):
    """How likely a text of this law passes through each edge: logits of its policy, exponentiated."""
    taken = torch.zeros(len(bench.problem.source), dtype=torch.float64)
    for edges, chance in zip(bench.paths.edges.tolist(), log_law.exp().tolist(), strict=True):
        taken[[edge for edge in edges if edge >= 0]] += chance
    return taken


def per_token(bench, logits):
    return bench.paths.per_step(mdp.log_softmax(bench.problem, logits))


def expected_gradient(leaf, log_law, texts="own", *, bench=BENCH, begun=None, learned=0.0):
    """The gradient in the logits, and in what is learned beside them, in the mean over all groups of texts."""
    size, loss = LOSSES[leaf]
    logits = through(bench, log_law).log().requires_grad_()
    log_pi = per_token(bench, logits)
    reference = bench.paths.per_step(bench.problem.log_ref)
    started = reference if begun is None else per_token(bench, through(bench, begun).log())
    drawn = log_law if texts == "own" else started.sum(dim=1)
    old = log_pi.detach() if texts == "own" else started
    index, chance = groups_of(bench, size, drawn)
    mean = ((old - reference).sum(dim=1) @ drawn.exp()) / (bench.steps.double() @ drawn.exp())
    total, of_learned = torch.zeros_like(log_pi), 0.0
    for some, weight in zip(index.split(CHUNK), chance.split(CHUNK), strict=True):
        rows = some.reshape(-1)
        b = SimpleNamespace(
            x=log_pi.detach()[rows].requires_grad_(),
            learned=torch.full((len(rows),), learned, dtype=torch.float64, requires_grad=True),
            old=old[rows],
            begun=started[rows],
            ref=reference[rows],
            reward=bench.reward[rows],
            rewards=bench.paths.per_step(bench.problem.rewards)[rows],
            quantile=quantile_of(bench)[rows],
            warm=warm_value(bench),
            longest=int(bench.steps.max()),
            steps=bench.steps[rows],
            group=torch.arange(len(some)).repeat_interleave(size),
            pairs=torch.arange(len(rows)).reshape(-1, 2) if size == 2 else None,
            mean_per_token=mean,
        )
        by_row, by_learned = torch.autograd.grad(loss(b), [b.x, b.learned], materialize_grads=True)
        shares = (len(some) * weight).repeat_interleave(size)
        total = total.index_add(0, rows, shares[:, None] * by_row)
        of_learned += float(shares @ by_learned)
    (gradient,) = torch.autograd.grad(log_pi, logits, total)
    return gradient, of_learned


def gap(leaf, log_law, texts="own", **given):
    """The largest entry of the expected gradient at a law, with what is learned at its best for that law."""
    log_law = log_law.clamp(min=-60.0)
    slopes = [expected_gradient(leaf, log_law, texts, learned=z, **given)[1] for z in (0.0, 1.0)]
    best = slopes[0] / (slopes[0] - slopes[1]) if slopes[0] != slopes[1] else 0.0
    gradient, rest = expected_gradient(leaf, log_law, texts, learned=best, **given)
    assert abs(rest) < ZERO
    return float(gradient.abs().max())


def begun_by(leaf, row, law):
    """The policy that began the round at whose end this law is, if the row is about rounds."""
    if row["texts"] != "rounds":
        return None
    stays = leaf in ("rloo", "grpo-kl-in-reward")  # of a round that began at p* all advantages are zero
    settled = leaf in ("rebel-kl", "filtered")
    begun = law if stays else atlas.law_of(row["law"] if settled else "target", BENCH)
    return begun.clamp(min=-60.0)


SEVERAL = [(leaf, row) for leaf, row in ROWS if "law" in row and "on" not in row]
NOTHING = [(leaf, row) for leaf, row in ROWS if row["is"] == "none" and row["texts"] == "own"]


def named(value):
    return value if isinstance(value, str) else value["texts"]


@pytest.mark.parametrize(("leaf", "row"), SEVERAL, ids=named)
def test_the_expected_gradient_vanishes_at_each_law_and_elsewhere_does_not(leaf, row):
    law, star = atlas.law_of(row["law"], BENCH), atlas.law_of("target", BENCH)
    assert abs(float(law.logsumexp(dim=0))) < 1e-12
    assert gap(leaf, law, row["texts"], begun=begun_by(leaf, row, law)) < ZERO
    elsewhere = star if row["law"] != "target" else (0.9 * star.exp() + 0.1 / 15).log()
    assert gap(leaf, elsewhere, row["texts"], begun=begun_by(leaf, row, elsewhere)) > SOME


@pytest.mark.parametrize(("leaf", "row"), NOTHING, ids=named)
def test_where_nothing_is_reached_the_gradient_vanishes_nowhere_that_was_tried(leaf, row):
    tried = [BENCH.log_ref, atlas.law_of("target", BENCH), *map(random_law, range(2))]
    assert min(gap(leaf, law) for law in tried) > SOME


def random_law(seed):
    return BENCH.paths.log_prob(mdp.random_policy(BENCH.problem, generator(seed)))


# Descents.


@pytest.mark.parametrize("leaf", ["rtb", "trust-pcl", "dro", "a-star-po", "qrpo-log", "qrpo", "length-normalised"])
@pytest.mark.parametrize("seed", range(2))
def test_on_fixed_texts_a_descent_from_anywhere_ends_there(leaf, seed):
    (row,) = [row for row in LEAVES[leaf]["row"] if row["texts"] == "fixed"]
    ref = BENCH.paths.per_step(BENCH.problem.log_ref)
    start = 2 * torch.randn(len(BENCH.problem.source), generator=generator(seed), dtype=torch.float64)
    logits, learned = start.requires_grad_(), torch.zeros((), dtype=torch.float64, requires_grad=True)

    def mean_loss():
        log_pi = per_token(BENCH, logits)
        parts = []
        for i in range(len(ref)):
            rewards = BENCH.paths.per_step(BENCH.problem.rewards)
            only = {"x": log_pi, "ref": ref, "reward": BENCH.reward, "steps": BENCH.steps, "rewards": rewards}
            one = {name: value[i : i + 1] for name, value in (only | {"quantile": quantile_of(BENCH)}).items()}
            parts.append(LOSSES[leaf][1](SimpleNamespace(**one, learned=learned.expand(1), warm=warm_value(BENCH))))
        return BENCH.log_ref.exp() @ torch.stack(parts)

    descend(mean_loss, [logits, learned])
    assert apart(per_token(BENCH, logits.detach()).sum(dim=1), atlas.law_of(row["law"], BENCH)) < TRAINED


def descend(value, free):
    """L-BFGS on a function of these tensors, to where it no longer moves."""
    optimiser = torch.optim.LBFGS(
        free,
        max_iter=2000,
        tolerance_grad=1e-12,
        tolerance_change=1e-18,
        history_size=30,
        line_search_fn="strong_wolfe",
    )

    def closure():
        optimiser.zero_grad()
        result = value()
        result.backward()
        return result

    optimiser.step(closure)


def apart(log_law, other):
    return float((log_law.exp() - other.exp()).abs().max())


@pytest.mark.parametrize(
    ("leaf", "rate", "steps"),
    [("grpo-kl", 8.0, 10), ("grpo-k3", 2.0, 80), ("rloo", 2.0, 10), ("kl-outside-mean", 2.0, 10)],
)
def test_on_own_texts_steps_of_the_natural_gradient_end_there(leaf, rate, steps):
    """Each entry over the chance of its edge, which leaves a step at each state as if it were reached for certain."""
    law = random_law(5)
    for _ in range(steps):
        taken = through(BENCH, law)
        step = expected_gradient(leaf, law)[0] / taken
        law = per_token(BENCH, taken.log() - (rate * step).clamp(-2, 2)).sum(dim=1)
    (row,) = [row for row in LEAVES[leaf]["row"] if row["texts"] == "own"]
    assert apart(law, atlas.law_of(row["law"], BENCH)) < TRAINED


def test_rebel_with_the_kl_of_the_old_policy_in_its_reward_goes_to_the_target_round_by_round():
    law, star, eta = BENCH.log_ref, atlas.law_of("target", BENCH), 0.7
    for k in range(60):
        ended = (law + eta * (BENCH.reward - ALPHA * (law - BENCH.log_ref))).log_softmax(dim=0)
        if k < 2:
            assert gap("rebel-kl", ended, "rounds", begun=law) < ZERO < SOME < gap("rebel-kl", law, "rounds", begun=law)
        law = ended
    assert apart(law, star) < TRAINED


# One token.

ONE = atlas.one_token()


def in_one_group(law, pole):
    """The slope in the logit of success, of all texts as one group, with a deviation of the population."""
    p, q = float(law[0].exp()), atlas.SUCCESS
    advantage = (1 - p) / math.sqrt(p * (1 - p)), -p / math.sqrt(p * (1 - p))
    logits = law.clone().requires_grad_()
    log_pi = logits.log_softmax(dim=0)
    pull = [1 - r / x if pole else math.log(x / r) for x, r in ((p, q), (1 - p, 1 - q))]
    loss = sum(x.detach().exp() * (ALPHA * k - a) * x for x, k, a in zip(log_pi, pull, advantage, strict=True))
    return float(torch.autograd.grad(loss, logits)[0][0])


def test_of_one_token_groups_end_where_the_row_says_and_all_texts_at_once_in_full_success():
    rows = {row["law"]: row for _, row in ROWS if row.get("on") == "one token"}
    law = {name: atlas.law_of(name, ONE) for name in rows}
    assert gap("grpo-std-kl", law["standardised_group"], bench=ONE) < ZERO
    assert gap("grpo-std-kl", atlas.law_of("target", ONE), bench=ONE) > SOME
    assert abs(in_one_group(law["standardised_k3"], pole=True)) < ZERO
    assert abs(in_one_group(atlas.law_of("target", ONE), pole=True)) > SOME
    assert law["standardised"].exp().tolist() == [1.0, 0.0]
    for p in torch.linspace(-20, 20, 401, dtype=torch.float64).sigmoid():  # the logit rises everywhere
        assert in_one_group(torch.stack([p, 1 - p]).log(), pole=False) < 0
    by_hand = atlas.SUCCESS * math.exp(BETA) / (atlas.SUCCESS * math.exp(BETA) + 1 - atlas.SUCCESS)
    assert float(atlas.law_of("target", ONE)[0].exp()) == pytest.approx(by_hand, rel=1e-14)


# What the page says of a row, and what the row has.


def test_what_is_said_to_be_the_target_is_and_what_is_not_is_not():
    for leaf, row in ROWS:
        if "law" in row:
            kl, distance = atlas.distances(row)
            assert (distance < 1e-9) == (kl < 1e-9) == (row["law"] == "target"), leaf
            assert row["is"] != "yes" or distance < 1e-9, leaf
            assert row["is"] != "no" or distance > 5e-3, leaf
        else:
            assert row["is"] in ("no", "none") and row["reason"], leaf


def test_no_number_on_the_page_is_about_to_round_the_other_way():
    shown = [x * 1000 % 1 for _, row in ROWS if "law" in row for x in atlas.distances(row)]
    star = atlas.law_of("target", BENCH).exp()
    shown += (1000 * torch.cat([star, BENCH.log_ref.exp()]) % 1).tolist()
    assert min(abs(x - 0.5) for x in shown) > 1e-6


def test_distances_are_those_of_two_laws_by_hand():
    row = {"law": "filtered"}
    law, star = (atlas.law_of(name, BENCH).exp().tolist() for name in ("filtered", "target"))
    kl = math.fsum(p * math.log(p / q) for p, q in zip(law, star, strict=True) if p)
    tv = math.fsum(max(p - q, 0) for p, q in zip(law, star, strict=True))
    assert atlas.distances(row) == pytest.approx((kl, tv), rel=1e-12)
    kept = [p if r >= 0 else 0 for p, r in zip(BENCH.log_ref.exp().tolist(), BENCH.reward.tolist(), strict=True)]
    assert law == pytest.approx([p / sum(kept) for p in kept], rel=1e-12)


def test_the_texts_are_all_of_up_to_three_letters_with_their_ends():
    words = ["", *(a + b + c for a in "ab" for b in ("", "a", "b") for c in ("", "a", "b") if b or not c)]
    assert sorted(BENCH.names) == sorted(words) and len(words) == 15
    assert BENCH.steps.tolist() == [len(name) + 1 for name in BENCH.names]


# The joins.


def test_every_loss_of_the_family_and_every_shipped_option_has_a_leaf():
    losses = {name for name, value in vars(family).items() if name.endswith("_loss") and inspect.isfunction(value)}
    sources = {leaf["source"] for leaf in LEAVES.values() if "source" in leaf}
    beside = {"rtb.loss", "rtb.vargrad_loss", "trust_pcl.loss"}
    assert sources == {f"family.{name}" for name in losses} | beside
    rows = options.read(ROOT)[0]
    assert [row for row in rows if row.get("leaf") not in LEAVES] == []
    for row in rows:
        where, _ = options.setting(row, {"version": "1", "defaults": DEFAULTS[row["library"]]})
        assert where.split()[0] in " ".join(atlas.shipped(ROOT, LEAVES[row["leaf"]]))


def test_every_leaf_is_trained_by_name_and_no_closed_form_is_idle():
    assert len({leaf["id"] for leaf in atlas.read(ROOT)}) == len(atlas.read(ROOT)) == len(LOSSES)
    assert set(LOSSES) == set(LEAVES)
    assert {row["law"] for _, row in ROWS if "law" in row} == set(atlas.LAWS)
    for leaf, row in ROWS:
        assert row["texts"] in atlas.TEXTS and set(row["claims"]) <= set(registry()), leaf
        assert ("law" in row) == ("unique" in row) == ("stable" in row) == ("point" in row), leaf


@pytest.mark.parametrize(("page", "write"), [("atlas", atlas.render), ("your-trainer", atlas.decisions)])
def test_the_pages_are_fresh(page, write):
    assert (ROOT / f"book/{page}.md").read_text() == write(ROOT), "stale: run python -m book.atlas"


# The page of decisions.


def test_the_page_of_decisions_is_short():
    words = [word for word in (ROOT / "book/your-trainer.md").read_text().split() if re.search(r"\w", word)]
    assert len(words) <= 750


@pytest.mark.parametrize("row", TRAINERS, ids=lambda row: row["leaf"])
def test_every_option_of_a_decision_exists_and_differs_from_what_is_shipped(row):
    defaults = DEFAULTS.get(row["library"])
    assert (defaults is None) == ("run" in row)
    for chosen in (row.get("set", {}), row.get("change", {})):
        for of, values in chosen.items():
            for name, value in values.items():
                assert name in defaults[of] and defaults[of][name] != value
    for named_only in (row.get("shipped", {}), row.get("undo", {})):
        assert all(name in defaults[of] for of, names in named_only.items() for name in names)
    assert all(name in row["set"].get(of, {}) for of, names in row.get("undo", {}).items() for name in names)


def test_every_line_to_change_leads_to_the_target_and_none_is_asked_for_where_it_is_reached():
    for row in TRAINERS:
        reached = LEAVES[row["leaf"]]["row"][0]["is"] == "yes"
        assert ("then" in row) != (reached and "word" not in row)
        assert "change" not in row or "then" in row
        assert "then" not in row or LEAVES[row["then"]]["row"][0]["is"] == "yes"


def test_what_a_trainer_runs_is_the_leaf_that_the_table_of_options_gives_it():
    """Up to the KL's weight, verl's estimator that all its rows about a KL share, and how tokens are averaged."""
    weights = dict.fromkeys(("kl_loss_coef", "kl_coef", "algo.kl.init_coef"), "α")  # shipped above zero
    left_out = {"adv_estimator": "grpo", "loss_agg_mode": "seq-mean-token-sum"} | weights

    def told(row):
        options_ = {
            (of, name, value)
            for of, chosen in row["set"].items()
            for name, value in chosen.items()
            if left_out.get(name) != value
        }
        return row["library"], options_ or set(row["set"])

    rows = options.read(ROOT)[0]
    same = [(row, trainer) for row in rows for trainer in TRAINERS if "set" in trainer and told(row) == told(trainer)]
    assert [row["leaf"] for row, _ in same] == [trainer["leaf"] for _, trainer in same]
    assert len(same) >= 14


def test_every_answer_leads_to_a_row():
    page, atlas_page = ((ROOT / f"book/{name}.md").read_text() for name in ("your-trainer", "atlas"))
    led_to = re.findall(r"<(atlas-[\w-]+)>", page)
    assert len(led_to) >= 2 * len(TRAINERS) - 10
    assert set(led_to) <= set(re.findall(r"\{#(atlas-[\w-]+)\}", atlas_page))

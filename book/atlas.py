"""Writes the atlas, what each loss converges to, and the page of decisions, from ``book/atlas.toml``.

``python -m book.atlas`` writes ``book/atlas.md`` and ``book/your-trainer.md``; a test compares them with what would be
written. The numbers are closed forms of :mod:`companion.fixed_points` on one small problem, :func:`testbed`; the
libraries that ship a loss come from the table of options, by the name of the loss, and from docstrings.
"""

import importlib
import inspect
import math
import re
import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from itertools import combinations_with_replacement, groupby
from pathlib import Path
from typing import Any

import torch
from scipy import optimize, special
from torch import Tensor

from book import at_scale, options
from companion import fixed_points, mdp

ALPHA, BETA = 0.5, 2.0
#: Texts of one prompt, and what TRL and verl add to their deviation.
GROUP, EPSILON = 4, 1e-4
LETTERS, LONGEST = "ab", 3
#: Chance of success, for one token.
SUCCESS = 0.3
#: The least reward that filtered fine-tuning keeps.
KEPT = 0.0


_INTRODUCTION = r"""---
html_theme.sidebar_secondary.remove: true
---

# The atlas: what your loss converges to

You train on a loss until its gradient is zero on average. Which distribution over texts is that? This page says it
for every loss of {doc}`/notebooks/18-one-residual-many-names`, in closed form where there is one.

**The setting.** Finitely many texts $y$ of $\lvert y \rvert \ge 1$ tokens, the end counted; a policy with free
logits; expectations without noise. $R$ is the reward, $p_{\mathrm{ref}}$ the reference, $\alpha = 1/\beta$ the
weight of the KL, $p^* \propto p_{\mathrm{ref}}\, e^{\beta R}$ the target, $n$ the size of a group. Only points
inside count: a policy that is certain of everything has no gradient either.

**The texts** a loss is trained on are the policy's *own*, new at every update; *fixed*, from a law $b$ that gives
every text a chance; or *stale, in rounds*: drawn once from the policy that began the round, which is the reference
of the loss too, and each round is trained to its end. A row says *for a reference that you fix* where the code takes
that policy for it: then, with one update for each batch, nothing but the reward pulls. $w = p_{\mathrm{ref}}/b$, and
$W_0$ is Lambert's function; $\lambda$ follows from the sum. $Q^\pi(s, a)$ is the mean reward after token $a$ in state
$s$, under the policy itself, without KL.

**The numbers** are of the fifteen texts below, with $\alpha = 0.5$, $n = 4$, $b = p_{\mathrm{ref}}$:
$\mathrm{KL}(p, p^*)$ of the fixed point $p$ in nats, and the total variation (TV) between the two. Rows that say
*one token* have two outcomes, of which the reference takes the better with probability $q = 0.3$. Tests train each
row with the loss itself, written without the closed form. A fixed point other than $p^*$ is no fault: it may be
what you want. *No target* says that nothing but the reward pulls. {doc}`your-trainer` starts from what you run
instead.
"""

_SCRIPT = """
```{raw} html
<script src="../_static/atlas.js"></script>
```
"""

_AT_SCALE = r"""
## On a network

Each row with a closed form on own texts, or on the reference's, once more as training: a network, noisy batches, five
seeds. The prior writes names, a name that ends with *e* is granted, and the reward between a granted name and another
is four times the KL's weight (1.25 times in GRPO over a deviation, twice where the log-ratio is a mean over own
texts). Groups have four names, in GRPO and RLOO eight, and the whole batch of 256 in DRO per token and in the rows of
VarGrad and of the mean reward that are also in {doc}`/notebooks/19-what-your-loss-converges-to`. KLs are exact, in
nats, with the 95 % interval of the mean over seeds; *wish* is the mass on granted names, *due* what the target has.
*Borne out* asks for what was fixed before the runs: a KL to $p^*$ below 0.15 where that is the target, else one to
the target below 0.3, and below half of that to $p^*$ if the two are more than 0.1 apart; and a mass within 0.05. Left
out are rows in rounds, which are rows on fixed texts, repeated; and the flipped sign on fixed texts, which has no
solution on $W_0$ for rewards as negative as these.

What misses? On own texts, the two that keep a wrong number for $\log Z$, the mean reward and the flipped sign: its
error times the score is noise, and for the mean reward larger batches cure it ({ref}`F1 <ledger-f1>`). On fixed
texts, the two with a mean log-ratio, whose $\log Z$ begins at zero, above its value (FlowRL also weighs a text by its
whole ratio); and, less far, prime-rl's square, IPO with means, and weighted likelihood. Only the first of these
reasons was tested.
"""

_QUESTION = r"""# I have this trainer: what do I get?

Find what you run: to which law of texts it converges, and which line to change for the target of this book, $p^*
\propto p_{\mathrm{ref}}\, e^{\beta R}$, $\beta = 1/\alpha$. Each answer leads to its row of {doc}`atlas`. All is about
free logits without noise, near which a network ends; and one update for each batch of the policy's own texts, or
fixed pairs. (verl makes more, unless `ppo_mini_batch_size` is the whole batch.) α is the KL's weight: of the order of
the reward's differences, or the target is nearly the best text. $\ell$ is the log-ratio of a text; options that are
not named are as they come.
"""

_OWN_LOOP = r"""
## A loop of your own

These lines give $p^*$ on texts from anywhere ({ref}`VarGrad <atlas-vargrad>`):

```python
from companion import rtb

loss = rtb.vargrad_loss(log_pi, log_ref, reward, beta=1 / alpha, group=prompt, steps=lengths)
loss.backward()
optimiser.step()
```

`log_pi` and `log_ref` are `[texts, tokens]`, zero after a text's end; `prompt` numbers the prompts.

## Why this line

In the reward, each token pays the whole text's KL: {O1}. In the loss, it does not pay what it does to the KL of
later tokens: {F3}. Outside of a mean that contains the text, the KL weighs more, by $n/(n - 1)$: {F6}. A deviation
of the reward alone makes $\alpha \sigma_R$ the temperature: {F5}. A deviation of the reward with its KL moves
nothing.
"""


@dataclass(frozen=True, eq=False)
class Bench:
    """A tabular problem: all texts with what the closed forms need of them, ``[texts]``."""

    names: list[str]
    problem: mdp.Problem
    paths: mdp.Paths
    log_ref: Tensor
    reward: Tensor
    steps: Tensor

    @property
    def given(self) -> tuple[Tensor, Tensor]:
        """The reference and the rewards."""
        return self.log_ref, self.reward

    def mean(self, values: Tensor, log_law: Tensor | None = None) -> float:
        """The mean under a law, the reference by default."""
        return float((self.log_ref if log_law is None else log_law).exp() @ values)


@cache
def testbed() -> Bench:
    """Return all texts of up to three letters, each with its end: 15, of one to four tokens.

    Reference and rewards come from a fixed generator, to one decimal.
    """
    prefixes = [""]
    for prefix in prefixes:
        prefixes += [prefix + letter for letter in LETTERS] if len(prefix) < LONGEST else []
    number = {prefix: i for i, prefix in enumerate(prefixes)}
    edges = [(number[prefix[:-1]], i) for prefix, i in number.items() if prefix]
    ends = [(i, len(prefixes) + i) for i in number.values()]
    problem = mdp.from_edges(edges + ends)
    draws = torch.Generator().manual_seed(38)
    logits, reward = (torch.randn(n, generator=draws).double().mul(10).round() / 10 for n in (len(edges + ends), 15))
    problem = problem.with_reference(mdp.log_softmax(problem, logits)).with_log_reward(reward)
    return _bench(problem, lambda end: prefixes[end - len(prefixes)])


@cache
def one_token() -> Bench:
    """Return a success and a failure, of one token each, with rewards 1 and 0."""
    problem = mdp.from_edges([(0, 1), (0, 2)]).with_rewards(torch.tensor([1.0, 0.0], dtype=torch.float64))
    problem = problem.with_reference(torch.tensor([SUCCESS, 1 - SUCCESS], dtype=torch.float64).log())
    return _bench(problem, {1: "success", 2: "failure"}.__getitem__)


def _bench(problem: mdp.Problem, name: Callable[[int], str]) -> Bench:
    paths = mdp.enumerate_paths(problem)
    log_ref, reward = (paths.per_step(x).sum(dim=1) for x in (problem.log_ref, problem.rewards))
    names = [name(end) for end in paths.ends.tolist()]
    return Bench(names, problem, paths, log_ref, reward, (paths.edges >= 0).sum(dim=1))


# The closed forms, by the name that a row has for its `law`. Fixed texts are those of the reference.

FACTOR = 1 - 1 / GROUP


def _stand_in(
    bench: Bench,
    c: Tensor | float,
    *,
    beta: float = BETA,
    reward: Tensor | None = None,
    steps: Tensor | None = None,
) -> Tensor:
    reward = bench.reward if reward is None else reward
    return fixed_points.stand_in(bench.log_ref, reward, c, beta=beta, log_behaviour=bench.log_ref, steps=steps)


def _quantile(bench: Bench) -> Tensor:
    """How likely the reference's text has a reward no larger than this one's."""
    return ((bench.reward <= bench.reward[:, None]).double() @ bench.log_ref.exp()).clamp(max=1)


def _preferred(bench: Bench) -> Tensor:
    """How likely a text is preferred to one of the reference's, as Bradley and Terry have it."""
    return (bench.reward[:, None] - bench.reward).sigmoid() @ bench.log_ref.exp()


def others(bench: Bench, size: int, log_law: Tensor) -> tuple[Tensor, Tensor]:
    """Return each set of ``size`` texts, ``[sets, size]``, in no order, and how likely it is drawn."""
    index = torch.tensor(list(combinations_with_replacement(range(len(bench.names)), size)))
    counts = torch.nn.functional.one_hot(index, len(bench.names)).sum(dim=1)
    orders = math.lgamma(size + 1) - torch.lgamma(counts.double() + 1).sum(dim=1)
    return index, (orders + log_law[index].sum(dim=1)).exp()


def _given_text(bench: Bench, statistic: Callable[[Tensor], Tensor]) -> Tensor:
    """The mean of a statistic of a group's rewards, of which a text's own is the first: ``[texts]``."""
    index, chance = others(bench, GROUP - 1, bench.log_ref)
    rest = bench.reward[index]
    return torch.stack([chance @ statistic(torch.cat([r.expand(len(rest), 1), rest], dim=1)) for r in bench.reward])


def _log_mean_exp(rewards: Tensor) -> Tensor:
    return (BETA * rewards).logsumexp(dim=1) - math.log(rewards.shape[1])


def _others_log_mean_exp(bench: Bench, log_law: Tensor) -> float:
    index, chance = others(bench, GROUP - 1, log_law)
    return float(chance @ _log_mean_exp(bench.reward[index]))


def _self_consistent(bench: Bench, centre: Callable[[Tensor], float]) -> Tensor:
    """OpenKimi's point on own texts: the centre is that of the point itself."""

    def law(c: float) -> Tensor:
        return fixed_points.residual_over_length(*bench.given, c, bench.steps, beta=BETA)

    lowest, highest = BETA * float(bench.reward.min()), BETA * float(bench.reward.max())
    return law(optimize.brentq(lambda c: centre(law(c)) - c, lowest, highest, xtol=1e-14))


def _later_tokens(bench: Bench) -> Tensor:
    """Each token is paid the mean log-ratio of a token, which is that of the point itself."""

    def law(kappa: float) -> Tensor:
        return fixed_points.target(bench.log_ref, FACTOR * BETA * bench.reward + kappa * bench.steps.double(), beta=1)

    def excess(kappa: float) -> float:
        at = law(kappa)
        return bench.mean(at - bench.log_ref, at) / bench.mean(bench.steps.double(), at) - kappa

    return law(optimize.brentq(excess, 0.0, 5.0, xtol=1e-14))


def by_state(bench: Bench, here: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """Return the law whose policy at each state is ``here(log_ref, Q)``, Q the plain one of the reference."""
    problem, policy = bench.problem, torch.zeros_like(bench.problem.log_ref)
    gains = problem.rewards + mdp.evaluate(problem, problem.log_ref, kl_weight=0)[problem.target]
    for state in (problem.out_degree > 1).nonzero().squeeze(1).tolist():
        edges = problem.source == state
        policy[edges] = here(problem.log_ref[edges], gains[edges])
    return bench.paths.log_prob(policy)


def _dro_here(log_ref: Tensor, tilt: Tensor) -> Tensor:
    return fixed_points.stand_in(log_ref, tilt, 0.0, beta=BETA, log_behaviour=log_ref)


def _product_log(log_ref: Tensor, tilt: Tensor) -> Tensor:
    """``log u = -W_0((kappa - tilt) / 2 alpha)``, kappa from normalisation."""

    def law(kappa: float) -> Tensor:
        return log_ref - torch.from_numpy(special.lambertw((kappa - tilt).numpy() * BETA / 2).real)

    least = float(tilt.max()) - 2 * ALPHA / math.e + 1e-9  # just after W_0 begins
    return law(optimize.brentq(lambda k: float(law(k).logsumexp(dim=0)), least, least + 100, xtol=1e-14))


def _scaled(bench: Bench) -> mdp.Problem:
    return bench.problem.with_rewards(FACTOR * bench.problem.rewards)


def _of_success(ends: dict[str, list[float]]) -> Tensor:
    """The law of the lowest stable chance of success."""
    p = ends["stable"][0]
    return torch.tensor([p, 1 - p], dtype=torch.float64).log()


def _flowrl(bench: Bench) -> Tensor:
    def advantage(rewards: Tensor) -> Tensor:
        return (rewards[:, 0] - rewards.mean(dim=1)) / (rewards.std(dim=1) + 1e-6)

    return fixed_points.length_normalised(bench.log_ref, _given_text(bench, advantage), bench.steps, beta=BETA)


LAWS: dict[str, Callable[[Bench], Tensor]] = {
    "target": lambda b: fixed_points.target(*b.given, beta=BETA),
    "second_round": lambda b: fixed_points.target(*b.given, beta=2 * BETA),
    "warmer": lambda b: _stand_in(b, 2 * float((b.log_ref + b.reward).logsumexp(dim=0))),
    "mean_own": lambda b: fixed_points.target(*b.given, beta=fixed_points.inclusive_mean(BETA, size=GROUP)),
    "mean_fixed": lambda b: _stand_in(b, FACTOR * BETA * b.mean(b.reward), beta=FACTOR * BETA),
    "log_mean_exp_fixed": lambda b: _stand_in(b, _given_text(b, _log_mean_exp)),
    "others_own": lambda b: _self_consistent(b, lambda law: BETA * b.mean(b.reward, law)),
    "others_fixed": lambda b: _stand_in(b, BETA * b.mean(b.reward), steps=b.steps),
    "others_log_mean_exp_own": lambda b: _self_consistent(b, lambda law: _others_log_mean_exp(b, law)),
    "others_log_mean_exp_fixed": lambda b: _stand_in(b, _others_log_mean_exp(b, b.log_ref), steps=b.steps),
    "quantile_log_own": lambda b: fixed_points.target(b.log_ref, _quantile(b).log(), beta=BETA),
    "quantile_log_fixed": lambda b: _stand_in(b, math.log(ALPHA / (1 + ALPHA)), reward=_quantile(b).log()),
    "quantile_own": lambda b: fixed_points.target(b.log_ref, _quantile(b), beta=BETA),
    "quantile_fixed": lambda b: _stand_in(b, math.log(ALPHA) + BETA, reward=_quantile(b)),
    "flipped": lambda b: fixed_points.flipped_mean(
        *b.given, beta=BETA, log_behaviour=b.log_ref, attached=True, size=GROUP
    ),
    "lengths": lambda b: fixed_points.length_normalised(*b.given, b.steps, beta=BETA),
    "flowrl": _flowrl,
    "preferred": lambda b: fixed_points.target(b.log_ref, _preferred(b), beta=BETA),
    "preferred_lengths": lambda b: fixed_points.length_normalised(b.log_ref, _preferred(b), b.steps, beta=BETA),
    "per_token": lambda b: fixed_points.per_step_kl(_scaled(b), kl_weight=ALPHA, estimator="k2"),
    "per_token_fixed": lambda b: by_state(b, lambda ref, q: _dro_here(ref, FACTOR * (q - b.mean(b.reward)))),
    "product_log": lambda b: by_state(b, lambda ref, q: _product_log(ref, FACTOR * q)),
    "tilt_by_state": lambda b: by_state(b, lambda ref, q: fixed_points.target(ref, FACTOR * q, beta=BETA)),
    "pole": lambda b: fixed_points.per_step_kl(_scaled(b), kl_weight=ALPHA, estimator="k3"),
    "standardised_group": lambda b: _of_success(
        fixed_points.standardised_success(
            SUCCESS, kl_weight=ALPHA, estimator="reverse", group=GROUP, correction=1, epsilon=EPSILON
        )
    ),
    "standardised": lambda b: _of_success(
        fixed_points.standardised_success(SUCCESS, kl_weight=ALPHA, estimator="reverse")
    ),
    "standardised_k3": lambda b: _of_success(
        fixed_points.standardised_success(SUCCESS, kl_weight=ALPHA, estimator="k3")
    ),
    "later_tokens": _later_tokens,
    "filtered": lambda b: fixed_points.target(b.log_ref, (b.reward >= KEPT).double().log(), beta=BETA),
}


def bench_of(row: dict[str, Any]) -> Bench:
    """Return the problem that a row's numbers are about."""
    return one_token() if row.get("on") == "one token" else testbed()


@cache
def law_of(name: str, bench: Bench) -> Tensor:
    """Return a closed form on a problem: log-probabilities of all texts."""
    return LAWS[name](bench)


def distances(row: dict[str, Any]) -> tuple[float, float]:
    """Return KL(p, p*) in nats, and the total variation, of a row's fixed point."""
    bench = bench_of(row)
    law, star = law_of(row["law"], bench), law_of("target", bench)
    kept = law > -math.inf  # 0 log 0 = 0
    kl = (law.exp() * (law - star))[kept].sum()
    return max(float(kl), 0.0), 0.5 * float((law.exp() - star.exp()).abs().sum())


# The table.

#: Kinds of texts, as a row names them and as the page does.
TEXTS = {"own": "own", "fixed": "fixed", "rounds": "stale, in rounds"}
#: A source that names code, not a paper.
_CODE = re.compile(r" at [0-9a-f]{7}|^[\w-]+ \d+\.\d+\.\d+")


def read(root: Path) -> list[dict[str, Any]]:
    """Return the leaves of the atlas."""
    leaves: list[dict[str, Any]] = tomllib.loads((root / "book/atlas.toml").read_text())["leaf"]
    return leaves


def shipped(root: Path, leaf: dict[str, Any]) -> list[str]:
    """Return where a loss is shipped: libraries with their options, then the code that its docstring names."""
    rows, libraries = options.read(root)
    found = [options.setting(row, libraries[row["library"]]) for row in rows if row["leaf"] == leaf["id"]]
    read_there = [source for source in _sources(leaf) if source.split(" ")[0] not in libraries]
    return [": ".join(setting) for setting in found] + list(leaf.get("code", [])) + read_there


def _sources(leaf: dict[str, Any]) -> list[str]:
    """The code that the docstring of a leaf's loss names."""
    if "source" not in leaf:
        return []
    module, name = leaf["source"].split(".")
    text = inspect.getdoc(getattr(importlib.import_module(f"companion.{module}"), name)) or ""
    (stated,) = re.findall(r"Source: (.*?)[.;]?(?:$| (?:Derived in c|C|c)hapter)", " ".join(text.split()))
    return [part.replace("``", "`") for part in re.split(r"; |, and ", stated) if _CODE.search(part)]


def link(claim: str) -> str:
    """Return a link to a claim's entry in the ledger, which leads to its statement and to its checks."""
    return f"{{ref}}`{claim} <ledger-{claim.lower()}>`"


def lines(root: Path) -> list[list[str]]:
    """Return the cells of each row of the table."""
    table = []
    for leaf in read(root):
        where = "; ".join(shipped(root, leaf)) or "–"
        for number, row in enumerate(leaf["row"]):
            name = f"[{leaf['name']}]{{#atlas-{leaf['id']}}}" if number == 0 else leaf["name"]
            table.append([name, *_cells(row), where])
    return table


def _cells(row: dict[str, Any]) -> list[str]:
    claims = ", ".join(link(claim) for claim in row["claims"])
    if "law" not in row:
        point = f"{'nothing' if row['is'] == 'none' else 'no closed form'}: {row['reason']}"
        return [TEXTS[row["texts"]], f"{point}. {claims}", "no target" if row["is"] == "none" else "no", "–", "–", "–"]
    numbers = [f"{x:.3f}" if x > 1e-9 else "0" for x in distances(row)]
    kind = f"{row['unique']}; {row['stable']}"
    return [TEXTS[row["texts"]], f"{row['point']}. {claims}", row["is"], *numbers, kind]


HEAD = ["loss", "texts", "converges to", "is it $p^*$?", "KL to $p^*$", "TV to $p^*$", "unique; stable", "shipped in"]


def render(root: Path) -> str:
    """Return the page of the atlas, as MyST Markdown."""
    table = [HEAD, ["---"] * len(HEAD), *lines(root)]
    rows = "\n".join("| " + " | ".join(cells) + " |" for cells in table)
    page = _INTRODUCTION + f"\n::::{{div}} atlas\n\n{rows}\n\n::::\n\n" + _problem()
    return page + _network(root) + _SCRIPT


def _problem() -> str:
    bench = testbed()
    star = law_of("target", bench).exp()
    rows = [
        f"| {name or '(empty)'} | {n} | {p:.3f} | {r:.1f} | {q:.3f} |"
        for name, n, p, r, q in zip(
            bench.names,
            bench.steps.tolist(),
            bench.log_ref.exp().tolist(),
            bench.reward.tolist(),
            star.tolist(),
            strict=True,
        )
    ]
    head = "| text | $\\lvert y \\rvert$ | $p_{\\mathrm{ref}}$ | $R$ | $p^*$ |\n|---|---|---|---|---|\n"
    return "## The fifteen texts\n\n" + head + "\n".join(rows) + "\n"


def _network(root: Path) -> str:
    titles = {leaf["id"]: leaf["name"] for leaf in read(root)}
    rows = at_scale.table(root, titles, TEXTS)
    missed = sum(cells[-1] == "no" for cells in rows)
    counts = f"{len(rows) - 2} rows, of which {missed} miss what was fixed.\n\n"
    return _AT_SCALE + counts + "\n".join("| " + " | ".join(cells) + " |" for cells in rows) + "\n"


# The page of decisions.


def trainers(root: Path) -> list[dict[str, Any]]:
    """Return the rows of the page of decisions."""
    rows: list[dict[str, Any]] = tomllib.loads((root / "book/atlas.toml").read_text())["trainer"]
    return rows


def decisions(root: Path) -> str:
    """Return the page of decisions, as MyST Markdown."""
    leaves = {leaf["id"]: leaf for leaf in read(root)}
    parts = [_QUESTION]
    for library, rows in groupby(trainers(root), key=lambda row: row["library"] if "set" in row else ""):
        parts.append(f"## {_versions(root).get(library, 'Others')}\n")
        parts.append("::::{div} decisions\n\n| you run | it converges to | change | then to |\n|---|---|---|---|")
        parts += ["| " + " | ".join(_decision(root, row, leaves)) + " |" for row in rows]
        parts.append("\n::::\n")
    return "\n".join(parts) + _with_links(_OWN_LOOP)


def _versions(root: Path) -> dict[str, str]:
    return {name: f"{name} {library['version']}" for name, library in options.read(root)[1].items()}


def _decision(root: Path, row: dict[str, Any], leaves: dict[str, dict[str, Any]]) -> list[str]:
    """The cells of a row: what is run and what it is, what to change and what it is then."""
    claim = _with_links(row.get("also", ""))
    run = f"{row['library']}, {row['run']}" if "run" in row else _options(root, row, row["set"], row.get("shipped", {}))
    change = [row["note"]] if "note" in row else []
    change += [_options(root, row, row["change"])] if "change" in row else []
    change += [f"leave out {_names(root, row['undo'])}"] if "undo" in row else []
    then = _answer(leaves[row["then"]], title=row.get("as")) if "then" in row else "–"
    return [
        run + (f"; {claim}" if claim else ""),
        _answer(leaves[row["leaf"]], row.get("word")),
        "; ".join(change) or "nothing",
        then,
    ]


def _with_links(text: str) -> str:
    return re.sub(r"\{([A-Z]\d)\}", lambda match: link(match[1]), text)


def _answer(leaf: dict[str, Any], word: str | None = None, title: str | None = None) -> str:
    """What a loss converges to, in a word, with a link to its row."""
    known = [row for row in leaf["row"] if "law" in row]
    row = leaf["row"][0] if leaf["row"][0]["is"] == "none" else known[0]
    word = word or {"yes": "$p^*$", "none": "no target"}.get(row["is"], "another law")
    return f"{word}: {{ref}}`{title or leaf['short']} <atlas-{leaf['id']}>`"


def _options(root: Path, row: dict[str, Any], chosen: dict[str, Any], shown: dict[str, Any] | None = None) -> str:
    rows, libraries = options.read(root)
    given = {"library": row["library"], "set": chosen, "shipped": shown or {}, "prefix": rows[0]["prefix"]}
    where, parts = options.setting(given, libraries[row["library"]])
    return ", ".join(re.findall(r"`\w+Config`", where) + [parts])


def _names(root: Path, undone: dict[str, list[str]]) -> str:
    prefix = options.read(root)[0][0]["prefix"]
    return ", ".join(f"`{prefix.get(of, '')}{name}`" for of, names in undone.items() for name in names)


def main() -> None:
    """Write both pages."""
    root = Path(__file__).resolve().parents[1]
    (root / "book/atlas.md").write_text(render(root))
    (root / "book/your-trainer.md").write_text(decisions(root))


if __name__ == "__main__":
    main()

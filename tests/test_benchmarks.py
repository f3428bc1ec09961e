"""The benchmark: what it counts, that everything in it runs, and that the page says what the record holds.

No test looks at how long anything takes.
"""

import copy
import math
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from inputs import generator, in_one_line

from benchmarks import bound, growth, page, parts, record, run, step
from benchmarks.worker import Size, parser, peak_memory, serve
from companion import records
from companion.objectives import RTB
from companion.records import Run
from companion.training import fine_tune

ROOT = Path(__file__).parents[1]
SMALL = Size(steps=5, batch=8, width=4)
STEP = (sys.executable, "benchmarks.step", "--size", "5", "8", "4")


def made_run(**times: list[float]) -> Run:
    """Return the recorded run on one thread with other times of some programs' steps."""
    measures = copy.deepcopy(record.load()[1].measures)
    for program, seconds in times.items():
        measures[program]["blocks"]["step"] = seconds
    return replace(record.load()[1], measures=measures)


# What is counted.


def test_the_operations_of_a_step_are_those_counted_by_hand():
    # 2 times and 6 states. Over times: 8 to 4, and 4 to 4. Over states: 2 to 4, twice 4 to 4, and 4 to 2.
    forward = 2 * (2 * 8 * 4 + 2 * 4 * 4 + 6 * 2 * 4 + 6 * 4 * 4 + 6 * 4 * 4 + 6 * 4 * 2)
    assert forward == 768
    # Backward: the same again for the weights; and for the inputs, but not those of the layer 2 to 4.
    backward = forward + forward - 2 * 6 * 2 * 4
    size = Size(steps=2, batch=3, width=4)
    assert bound.flops(size) == {"policy": forward, "prior": forward, "backward": backward}
    # One layer over 2 times, three over 6 states, 4 numbers each.
    assert bound.activations(size) == 2 * 4 + 3 * 6 * 4


def test_torchgfn_has_time_at_every_state_and_one_more_pass():
    forward = 2 * 6 * (8 * 4 + 4 * 4 + 2 * 4 + 4 * 4 + 4 * 4 + 4 * 2)
    backward = 2 * forward - 2 * 6 * 2 * 4
    found = bound.torchgfn_flops(Size(steps=2, batch=3, width=4))
    assert found == {"sampling": forward, "policy": forward, "prior": forward, "backward": backward}


def test_the_layers_counted_are_those_of_the_network():
    network = step.sampler(SMALL).policy
    linear = [module for module in network.modules() if isinstance(module, torch.nn.Linear)]
    shapes = [(module.in_features, module.out_features) for module in linear]
    assert [(layer.inputs, layer.outputs) for layer in bound.layers(SMALL)] == shapes
    gelus = [module for module in network.modules() if isinstance(module, torch.nn.GELU)]
    assert bound.activations(Size(steps=1, batch=1, width=1)) == len(gelus)


def test_the_least_time_is_work_over_speed_pass_by_pass():
    size = Size(steps=2, batch=3, width=4)
    speeds = {"flops/s, one step": 2.0, "flops/s, blocks": 4.0}
    speeds |= {"gelu s, one step": 1.0, "gelu s, blocks": 0.5, "gelu backward s, blocks": 3.0}
    assert bound.least_seconds(size, speeds) == {
        "policy": 768 / 2 + 80,
        "prior": 768 / 4 + 40,
        "backward": 1440 / 4 + 240,
    }


def test_growth_varies_one_setting_at_a_time_around_the_published_ones():
    for name in growth.SERIES:
        others = {other for other in ("steps", "batch", "width") if other != name}
        assert Size() in growth.along(name)
        assert all(getattr(size, other) == getattr(Size(), other) for size in growth.along(name) for other in others)
    assert len(set(map(growth.name_of, growth.sizes()))) == len(growth.sizes())


def test_the_last_value_of_a_series_is_twice_the_one_before():
    assert all(values[-1] == 2 * values[-2] for values in growth.SERIES.values())


# That it runs.


def test_two_steps_change_every_weight_of_the_policy_and_none_of_the_prior():
    trained = step.sampler(SMALL)
    policy, prior = ([p.clone() for p in drift.parameters()] for drift in (trained.policy, trained.reference))
    history = fine_tune(trained, RTB(), schedule=step.schedule(SMALL, 2), generator=generator(1))
    assert history.diverged_at is None and len(history.steps["loss"]) == 2
    assert all(not torch.equal(a, b) for a, b in zip(policy, trained.policy.parameters(), strict=True))
    assert all(torch.equal(a, b) for a, b in zip(prior, trained.reference.parameters(), strict=True))


def test_the_published_settings_are_those_of_the_step():
    chosen = step.schedule(Size(), 5)
    assert (chosen.batch, chosen.rate, chosen.learned_rate, chosen.decay) == (500, 1e-3, 1e-1, None)
    assert step.BEHAVIOUR.noise == 0.5
    process = step.sampler(Size()).process
    assert (process.steps, process.variance, process.dim) == (100, 5.0, 2)


def test_the_parts_are_those_of_a_step_of_the_training_loop():
    cut, trained = parts.Parts(SMALL, "cpu"), step.sampler(SMALL)
    found = cut.step()
    given = {"behaviour": step.BEHAVIOUR, "generator": generator(1)}
    fine_tune(trained, RTB(), schedule=step.schedule(SMALL, 1), **given)
    assert set(found) == set(parts.PARTS) and all(seconds > 0 for seconds in found.values())
    for ours, theirs in zip(cut.sampler.parameters(), trained.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_a_block_of_the_bound_sums_up_its_passes(monkeypatch):
    monkeypatch.setattr(bound, "ROWS", 1)
    monkeypatch.setattr(bound, "REPEATS", 1)
    found = bound.block(SMALL, "cpu")()
    assert found["step"] == sum(found[name] for name in page.PASSES) > 0
    assert found["rows, blocks"] == bound.BLOCK_ROWS * torch.get_num_threads()


def test_programs_take_turns_and_say_what_they_measured():
    found = run.measure({"a": STEP, "b": STEP}, rounds=2, threads=1)
    for program in found.values():
        assert len(program["blocks"]["step"]) == 2
        assert program["peak_bytes"] >= program["imported_bytes"] > 0
        assert program["versions"]["torch"] == torch.__version__.split("+")[0]


def test_a_program_that_ends_early_is_named():
    with pytest.raises(RuntimeError, match="broken ended with status 1"):
        run.measure({"broken": (sys.executable, "benchmarks.step", "--device", "nowhere")}, rounds=2, threads=1)


@pytest.mark.parametrize("bad", ["0", "-1", "two", "1.5"])
@pytest.mark.parametrize("option", ["--threads", "--steps", "--blocks", "--size"])
def test_what_is_no_positive_integer_is_refused_by_the_name_of_its_option(capsys, option, bad):
    with pytest.raises(SystemExit, match="2"):
        parser("x").parse_args([option, *[bad] * (3 if option == "--size" else 1)])
    assert f"argument {option}: invalid positive_integer value: '{bad}'" in capsys.readouterr().err


def test_a_program_that_says_something_else_is_named():
    with pytest.raises(RuntimeError, match=r"chatty said .*; expected a line of JSON"):
        run.measure({"chatty": (sys.executable, "this")}, rounds=2, threads=1)


def test_a_missing_environment_is_named_with_what_to_do():
    with pytest.raises(ValueError, match="is not there; expected an environment. Run make bench"):
        run.measure({"torchgfn": ("no-such-python", "benchmarks.peer_torchgfn")}, rounds=2, threads=1)


@pytest.mark.parametrize("options", [["--rounds", "1"], ["--threads", "0"]])
def test_too_few_rounds_or_threads_are_refused(monkeypatch, options):
    monkeypatch.setattr(sys, "argv", ["run", *options])
    with pytest.raises(ValueError, match="expected 2 or more, and 1 or more"):
        run.main()


def test_a_program_by_itself_prints_medians_and_memory(capsys):
    options = parser("x").parse_args(["--blocks", "3"])
    values = iter([9.0, 1.0, 3.0, 2.0])  # the first block is not counted
    serve(options, lambda: lambda: {"step": next(values)}, {})
    assert re.fullmatch(r"step +2\npeak memory, MB +\d+, \d+ after imports\n", capsys.readouterr().out)


def test_peak_memory_is_in_bytes_and_does_not_fall_when_memory_is_freed():
    held = torch.ones(50_000_000)
    while_held = peak_memory()
    del held
    assert while_held > 2e8
    # The system counts pages in batches, so the last ones may be missing.
    assert peak_memory() > 0.99 * while_held


# The record.


def test_quartiles_and_ratios_are_those_by_hand():
    found = record.summary([4.0, 1.0, 3.0, 2.0, 5.0])
    assert (found.low, found.median, found.high) == (2.0, 3.0, 4.0)
    both = {"ours": [1.0, 4.0, 3.0], "theirs": [2.0, 4.0, 12.0]}
    made = replace(made_run(), measures={name: {"blocks": {"step": values}} for name, values in both.items()})
    assert record.ratio(made, "ours", "theirs").median == 0.5  # of 1/2, 1 and 1/4, not of the medians


@pytest.mark.parametrize(
    "bad",
    [
        None,
        {},
        {"blocks": None},
        {"blocks": {}},
        *({"blocks": {"step": b}} for b in ([], [1.0], [1.0, 0.0], 2.0, [1.0, None])),
    ],
    ids=in_one_line,
)
def test_a_record_without_the_blocks_of_a_program_is_refused_by_its_file(bad):
    made = replace(made_run(), measures={"torchgfn": bad})
    for program in ("torchgfn", "companion"):
        with pytest.raises(
            ValueError, match=rf"threads-1.json has .* as 'step' of '{program}'; expected .* Run make bench"
        ):
            record.ratio(made, program, "torchgfn")


@pytest.mark.parametrize("threads", [[1, 1], [1, None], [1, "2"]], ids=in_one_line)
def test_two_records_on_as_many_threads_are_refused(tmp_path, monkeypatch, threads):
    monkeypatch.setattr(record, "RESULTS", tmp_path)
    for name, number in zip("ab", threads, strict=True):
        records.write("benchmark", {"name": name, "threads": number}, {}, {}, where=tmp_path)
    with pytest.raises(ValueError, match="a.json.*b.json.* threads; expected one for each number"):
        record.load()


def test_a_run_takes_the_place_of_the_last_one_on_as_many_threads(tmp_path, monkeypatch):
    """The runs come in the order of their threads, which is not that of their names."""
    monkeypatch.setattr(record, "RESULTS", tmp_path)
    monkeypatch.setattr(run, "measure", lambda programs, rounds, threads: {"program": {"rounds": rounds}})
    for threads, rounds in ((10, 2), (2, 3), (10, 4)):
        monkeypatch.setattr(sys, "argv", ["run", "--threads", str(threads), "--rounds", str(rounds)])
        run.main()
    found = record.load()
    assert [(threads, each.configuration["rounds"]) for threads, each in found.items()] == [(2, 3), (10, 4)]
    assert found[10].measures == {"program": {"rounds": 4}} and found[10].configuration["size"]["width"] == 64
    assert set(found[10].provenance) == set(record.provenance())


def test_provenance_names_the_machine_and_the_code():
    found = record.provenance()
    assert found["processor"] and found["cores"] >= 1
    checkout = subprocess.run(["git", "-C", ROOT, "rev-parse", "HEAD"], capture_output=True, text=True)
    assert found["commit"] == (checkout.stdout.strip() or None)


def test_there_is_a_run_on_one_thread_and_every_block_of_every_program():
    runs = record.load()
    assert 1 in runs
    for threads, found in runs.items():
        about = found.configuration
        assert set(about) == {"name", "threads", "rounds", "steps_per_block", "size"} and about["threads"] == threads
        assert Size(**about["size"]) == Size() and list(found.measures) == list(run.PROGRAMS)
        for program in found.measures.values():
            assert program["peak_bytes"] >= program["imported_bytes"] > 0
            for values in program["blocks"].values():
                assert len(values) == about["rounds"]
                assert all(math.isfinite(value) and value > 0 for value in values)
        names = {name: set(program["blocks"]) for name, program in found.measures.items()}
        assert names["parts"] == set(parts.PARTS)
        assert names["growth"] == set(map(growth.name_of, growth.sizes()))
        assert all(names[program] == {"step"} for program in page.COMPARED)


def test_the_records_are_of_the_torchgfn_that_is_pinned():
    pinned = (ROOT / "tests/peers/requirements_torchgfn.txt").read_text()
    for found in record.load().values():
        versions = found.measures["torchgfn"]["versions"]
        assert f"torchgfn=={versions['torchgfn']}\n" in pinned and f"torch=={versions['torch']}\n" in pinned


# The page.


def test_the_page_and_its_figure_are_fresh():
    runs = record.load()
    assert (ROOT / "book/speed.md").read_text() == page.render(runs), "book/speed.md is stale: run make bench-page"
    drawn = (ROOT / "book/_static/speed.svg").read_text()
    assert drawn == page.figure(runs[1]), "book/_static/speed.svg is stale: run make bench-page"


def test_the_page_has_a_value_for_every_name_and_a_name_for_every_measured_number():
    text = page.TEMPLATE.read_text()
    assert "<<" not in page.render(record.load())
    # What is left without the names: the commands, and "numpy below 2".
    prose = re.sub(r"<<.*?>>|```\n.*?```|`[^`]*`", "", text, flags=re.DOTALL)
    assert re.findall(r"\S*\d\S*", prose) == ["float32,", "2,"]


def test_the_page_says_what_the_blocks_say():
    ours, theirs = [0.1, 0.1, 0.1], [0.5, 0.4, 0.2]
    table = page.comparison(
        made_run(companion=ours, torchgfn=theirs, **{"torchgfn, kept": theirs, "torchgfn, memory kept": theirs})
    )
    assert "| this package | 100 (100 to 100) |  |" in table
    assert "| torchgfn, as its example trains | 400 (300 to 450) | 0.250 (0.225 to 0.375) |" in table


def test_more_threads_have_a_section_where_they_were_measured():
    one, two = made_run(), made_run(companion=[0.1, 0.1], torchgfn=[0.4, 0.4])
    assert "More threads" not in page.render({1: one})
    text = page.render({1: one, 2: two})
    assert "\n\n## More threads\n\n| threads |" in text
    assert "\n| 2 | 100 (100 to 100) | 400 (400 to 400) | 0.250 (0.250 to 0.250) |\n\n## Repeat it\n" in text


def test_a_record_without_a_run_on_one_thread_is_refused():
    with pytest.raises(ValueError, match=r"runs on \[2\] threads; expected one on 1. Run make bench"):
        page.render({2: made_run()})


def test_the_page_is_in_the_book():
    assert "file: book/speed\n" in (ROOT / "_toc.yml").read_text()

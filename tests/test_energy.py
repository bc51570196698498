"""Energy is what counters counted, in every window; otherwise nothing is said."""

import pytest
from conftest import small_recipe
from recorded import EVENTS, recorded, section

from tuner.hub.card import card
from tuner.planning import plan
from tuner.training import energy
from tuner.training.window import train

FULL = 9_999_999  # microjoules


@pytest.fixture
def counters(tmp_path, monkeypatch):
    """Two processors' counters as Linux shows them; a part of one, which counts twice; and something else."""
    for zone in ("intel-rapl:0", "intel-rapl:1", "intel-rapl:0:0", "dtpm"):
        (tmp_path / zone).mkdir()
        (tmp_path / zone / "max_energy_range_uj").write_text(f"{FULL}\n")
        (tmp_path / zone / "energy_uj").write_text("9000000\n")
    monkeypatch.setattr(energy, "POWERCAP", tmp_path)
    return tmp_path


def test_processors_are_summed_and_counters_that_began_again_go_on(counters):
    told = []
    emit = energy.metered(told.append)
    (counters / "intel-rapl:0/energy_uj").write_text("9500000")
    emit({"event": "checkpoint"})
    (counters / "intel-rapl:0/energy_uj").write_text("500000")  # began again
    (counters / "intel-rapl:1/energy_uj").write_text("9250000")
    emit({"event": "step"})
    emit({"event": "end", "reason": "steps"})
    assert [event.get("joules") for event in told] == [{"processor": 0.5}, None, {"processor": 1.75}]


@pytest.mark.parametrize("content", [None, "many"])
def test_a_counter_that_can_not_be_read_counts_nothing(content, counters):
    place = counters / "intel-rapl:1/energy_uj"
    place.unlink() if content is None else place.write_text(content)
    told = []
    energy.metered(told.append)({"event": "end"})
    assert told == [{"event": "end"}]


def test_a_training_is_counted_and_its_card_tells_it(counters, tmp_path, no_estimates):
    run = plan.prepare(small_recipe().with_settings({"budget.steps": 2}), path=tmp_path / "run")
    for event in train(run):
        if event["event"] == "step":
            (counters / "intel-rapl:0/energy_uj").write_text(f"{9_000_000 + 360_000 * event['step']}")
    assert energy.of_run(run) == {"processor": pytest.approx(0.72)}
    told = "0.0002 Wh by the processor, by counters of the machine"
    assert f"- energy: {told}" in section(card(run), "Training")


def test_a_run_of_which_a_window_was_not_counted_tells_nothing(tmp_path):
    counted = EVENTS[-1] | {"joules": {"processor": 7200.0}}
    once = recorded(tmp_path / "a", events=[*EVENTS[1:-1], counted])
    assert energy.of_run(once) == {"processor": 7200.0}
    assert "- energy: 2 Wh by the processor" in card(once)
    twice = recorded(tmp_path / "b", events=[*EVENTS[:-1], counted])
    assert energy.of_run(twice) == {}
    assert "- energy: not measured" in card(twice)

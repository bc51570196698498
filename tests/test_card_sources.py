"""What a pushed card carries over from elsewhere: commits, licenses and the curve; and what it keeps silent about."""

import io
import json

import pytest
from conftest import small_recipe
from hub_double import Hub
from huggingface_hub import ModelCard
from recorded import EVENTS, HUB, PLAN, recorded

from tuner import recipe, runs
from tuner.data import sources
from tuner.hub import curve
from tuner.hub.push import push
from tuner.planning import plan

ROWS = [{"prompt": f"say {i}", "completion": f"it is {i}"} for i in range(12)]
JSONL = "".join(f"{json.dumps(row)}\n" for row in ROWS)


def card(license: str) -> bytes:
    """A repository's README."""
    return f"---\nlicense: {license}\n---\n# things\n".encode()


def pushed(hub: Hub, run: runs.Run, **asked: str) -> tuple[dict, str, dict[str, bytes]]:
    """The pushed card's front matter and text, and all files."""
    (run.adapter / "adapter_model.safetensors").write_bytes(b"weights")
    push(run, "told", token=hub.user("alice"), endpoint=hub.url, **asked)
    files = hub.repo("alice/told").files
    read = ModelCard(files["README.md"].decode())
    return read.data.to_dict(), read.text, files


def test_licenses_are_those_of_the_versions_that_were_used(hub, tmp_path):
    base = hub.add_model(HUB["model.name"], {"README.md": card("apache-2.0")})
    data = hub.add_dataset(HUB["data.source"], {"README.md": card("[cc-by-4.0, mit]")})
    used = PLAN | {"revision": base.sha, "data": {"origin": "hub", "revision": data.sha}}
    for repo in (base, data):
        repo.commit({"README.md": card("other")})  # changed since
    front, text, _ = pushed(hub, recorded(tmp_path, plan=used))
    assert front["license"] == "apache-2.0"
    assert "\n- license of the data: cc-by-4.0, mit\n" in text
    assert "license (apache-2.0)," in text
    assert f"(en), revision `{used['data']['revision']}`\n" in text


@pytest.mark.parametrize("written", ["3", "{a: b}", '"a\\nb"', '""'])
def test_a_license_that_is_none_is_not_carried_over_and_stops_no_push(written, hub, tmp_path):
    hub.add_model(HUB["model.name"], {"README.md": card(written)})  # whose commit the plan does not name
    front, text, _ = pushed(hub, recorded(tmp_path, plan=PLAN | {"revision": None}))
    assert "license" not in front
    assert "license of the data" not in text


def test_a_file_of_ones_own_gets_the_name_that_its_owner_gives_it(hub, tmp_path):
    settings = HUB | {"data.source": "layoffs.csv", "data.config": None}
    run = recorded(tmp_path, settings, PLAN | {"data": {"origin": "own", "revision": None}})
    _, text, files = pushed(hub, run, data_name="Our `letters` <b>")
    assert "on 1,234 rows of Our 'letters' &lt;b>, a file that is not published" in text
    told = b"".join(files.values())
    assert b"layoffs" not in told
    assert b"source: rows.csv" in files["recipe.yaml"]


def test_where_rows_are_from_is_known_from_where_they_were_read(tmp_path, monkeypatch, no_estimates):
    """A visitor's file may have the name of an example."""
    (tmp_path / "corporate.jsonl").write_text(JSONL)
    table = sources.read_files([tmp_path / "corporate.jsonl"], ["corporate.jsonl"], recipe.Data())
    shipped = small_recipe().with_settings({"data.source": "corporate.jsonl", "data.max_rows": 12})
    planned = [plan.check(shipped, rows, local=False).plan["data"]["origin"] for rows in (table, None)]
    assert planned == ["own", "example"]


def test_the_curve_stands_beside_the_card_and_shows_what_was_kept(hub, tmp_path):
    from matplotlib.image import imread

    _, text, files = pushed(hub, recorded(tmp_path / "a"))
    assert "![Training and held-out loss by step](curve.png)" in text
    assert imread(io.BytesIO(files["curve.png"])).shape[:2] == (360, 840)
    again = recorded(tmp_path / "b", events=[*EVENTS[:3], {"event": "step", "step": 30, "loss": 9.0}])
    redone = recorded(tmp_path / "c", events=[*again.events(), EVENTS[1], EVENTS[4]])
    assert curve._losses(redone, "step") == {36: 0.75}  # step 30 was done again from step 20 on
    assert curve._losses(redone, "heldout") == {0: 1.75}
    assert curve.picture(redone) == curve.picture(redone) != curve.picture(again)


def test_a_run_without_a_curve_has_no_picture(hub, tmp_path):
    losses = [{"event": "step", "step": 1, "loss": float("nan")}]
    _, text, files = pushed(hub, recorded(tmp_path, events=losses))
    assert "curve.png" not in files
    assert "curve.png" not in text

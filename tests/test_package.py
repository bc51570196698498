"""What people install and import: the wheel works away from the checkout; public names load when they are used."""

import configparser
import os
import runpy
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import fresh
import pytest
from conftest import ROOT
from packaging.metadata import Metadata
from packaging.requirements import Requirement
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

import tuner
from tuner.inference.generate import Sampling
from tuner.models.fetch import base_of
from tuner.models.load import load_base
from tuner.planning.trackers import LOOK
from tuner.runs import Run

MEBIBYTE = 2**20
DATA = ("*.yaml", "*.jsonl", "tiny-*/*", "finished/**/*")


def run_python(
    code: str, folder: Path, *arguments: str, path: Path = ROOT, python: str = sys.executable
) -> subprocess.CompletedProcess:
    """An interpreter in `folder`, which finds the package in `path` alone."""
    env = {**os.environ, "PYTHONPATH": str(path)}
    command = [python, "-c", code, *arguments]
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=120)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this checkout, built without network and unpacked."""
    source, built = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in ("tuner", "examples"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "requirements.txt", "LICENSE"):
        shutil.copy(ROOT / name, source)
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--no-index", "-w", built]
    build = subprocess.run([*command, source], capture_output=True, text=True)
    assert build.returncode == 0, build.stderr
    (file,) = built.glob("*.whl")
    assert file.stat().st_size < 20 * MEBIBYTE
    with zipfile.ZipFile(file) as archive:
        archive.extractall(built / "unpacked")
    return built / "unpacked"


def test_the_wheel_has_every_module_and_all_data_of_the_examples(wheel):
    modules = {file.relative_to(ROOT) for file in (ROOT / "tuner").rglob("*.py")}
    data = {"tuner" / f.relative_to(ROOT) for p in DATA for f in (ROOT / "examples").glob(p) if f.is_file()}
    assert len(modules) > 50
    assert len(data) > 30
    packed = {file.relative_to(wheel) for file in wheel.rglob("*") if file.is_file()}
    assert modules | data | {Path("tuner/ui/style.css")} <= packed


def test_the_wheel_asks_for_what_a_space_installs_and_names_its_licence(wheel):
    (file,) = wheel.glob("*.dist-info/METADATA")
    metadata = Metadata.from_email(file.read_bytes(), validate=False)
    lines = (line.partition("#")[0].strip() for line in (ROOT / "requirements.txt").read_text().splitlines())
    needed = {str(required) for required in metadata.requires_dist if not required.marker}
    assert needed == {str(Requirement(line)) for line in lines if line}
    extras = {str(required) for required in metadata.requires_dist if required.marker}
    tested = map(Requirement, (ROOT / "requirements-dev.txt").read_text().splitlines()[1:])
    assert extras == {f'{required}; extra == "{required.name}"' for required in tested if required.name in LOOK}
    assert metadata.license_expression == "Apache-2.0"
    assert list(wheel.glob("*.dist-info/licenses/LICENSE"))


def test_the_tuner_command_works_from_any_folder(wheel, tmp_path):
    scripts = configparser.ConfigParser()
    scripts.read(next(wheel.glob("*.dist-info/entry_points.txt")))
    module, function = scripts["console_scripts"]["tuner"].split(":")
    # What pip writes into the script.
    code = f"import sys, {module}; print({module}.__file__); sys.exit({module}.{function}())"
    check = run_python(code, tmp_path, "check", "corporate", path=wheel, python=fresh.PYTHON)
    assert check.returncode == 0, check.stderr
    assert check.stdout.startswith(str(wheel))
    assert "480 rows" in check.stdout


def test_importing_tuner_loads_nothing_heavy_and_knows_its_names(tmp_path):
    code = (
        "import sys; before = set(sys.modules); import tuner\n"
        "assert set(tuner.__all__) <= set(dir(tuner)) and not hasattr(tuner, 'nonsense')\n"
        "assert dir(tuner) == sorted(dir(tuner)) and '__version__' in dir(tuner)\n"
        "print({m.split('.')[0] for m in set(sys.modules) - before} - set(sys.stdlib_module_names))"
    )
    run = run_python(code, tmp_path)
    assert run.stdout == "{'tuner'}\n", run.stderr


@pytest.mark.parametrize(("given", "used"), [(None, "10000"), ("7", "7")])
def test_torchs_threads_wait_in_a_short_loop_unless_somebody_chose_another(given, used, monkeypatch):
    monkeypatch.setenv("GOMP_SPINCOUNT", given or "")
    if given is None:
        monkeypatch.delenv("GOMP_SPINCOUNT")
    runpy.run_path(str(ROOT / "tuner/__init__.py"))
    assert os.environ["GOMP_SPINCOUNT"] == used


def test_a_name_that_is_not_public_is_an_attribute_error():
    with pytest.raises(AttributeError, match=r"^module 'tuner' has no attribute 'nonsense'$"):
        tuner.nonsense  # noqa: B018


def test_every_public_name_is_what_editors_are_shown():
    shown = {}
    text = (ROOT / "tuner/__init__.py").read_text()
    block = text[text.index("if TYPE_CHECKING:") : text.index("__version__")]
    exec("if True:\n" + block.partition("\n")[2], shown)
    assert sorted(tuner.__all__) == sorted(
        ["Recipe", "check", "prepare", "train", "evaluate", "chat", "merge", "push"]
    )
    for name in tuner.__all__:
        assert getattr(tuner, name) is shown[name]
        assert getattr(tuner, name).__doc__


def test_chat_answers_as_base_adapter_and_merged_model(finished, tmp_path):
    run = Run(shutil.copytree(finished.path, tmp_path / "run"))
    (row, *_) = run.read_json("evaluation.json")["examples"]
    answers = tuner.chat(run, row["prompt"], sampling=Sampling(max_new_tokens=16))
    assert list(answers) == ["base", "adapter", "merged"]
    assert (answers["base"], answers["adapter"]) == (row["base"], row["adapter"])
    merged, tokenizer = AutoModelForCausalLM.from_pretrained(run.merged), AutoTokenizer.from_pretrained(run.merged)
    merged, base = merged.float(), load_base(base_of(run))

    def expected(messages: list[dict], model: PreTrainedModel = merged) -> str:
        inputs = tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        tokens = model.generate(**inputs, max_new_tokens=16, do_sample=False)[0]
        return tokenizer.decode(tokens[inputs["input_ids"].shape[1] :], skip_special_tokens=True)

    user = {"role": "user", "content": row["prompt"]}
    assert answers["merged"] == expected([user])
    system = "thx for the update. see u at lunch on friday? bring the report"
    answers = tuner.chat(run, row["prompt"], system=system, sampling=Sampling(max_new_tokens=16))
    messages = [{"role": "system", "content": system}, user]
    assert answers["merged"] == expected(messages)
    assert answers["base"] == expected(messages, base) != expected(messages[::-1], base)

"""What processes that work for the page see of the environment: no secret of any name, and nobody's login."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, small_recipe

from tuner import environment, gpu, runs
from tuner.inference import cpu_process

SECRETS = dict.fromkeys(
    (
        "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_OIDC_RESOURCE", "OAUTH_CLIENT_SECRET", "OAUTH_CLIENT_ID", "DATABASE",
        "AWS_SECRET_ACCESS_KEY", "OPENAI_API_KEY", "MY_PASSWORD", "STRIPE", "TUNER_API_KEY", "TUNER_ADMIN_PASSWORD",
        "HF_HUB_WRITE_TOKEN", "PYTHON_AUTH", "SPACES_SECRET", "WANDB_API_KEY", "GRADIO_PASSWORD", "TRANSFORMERS_KEY_2",
        "SPACE_APIKEY", "TUNER_HFTOKEN", "TUNER_WEBHOOK", "SPACE_CREDS", "TORCH_MYPASSWORD",
        "TUNER_DATABASE_URL", "TUNER_PASSPHRASE", "TUNER_JWT", "TUNER_OAUTH", "TUNER_ACCESSKEYID", "TUNER_BEARER",
        "TUNER_DB", "TUNER_ADMIN", "HF_HUB_PAT", "NVIDIA_API", "PYTHON_DB_URL", "SPACE_ACCESSKEYID", "SPACES_JWT",
        "PYTHON_DBURI", "HF_DATASETS_LOGIN", "TORCH_OAUTH2", "SPACE_PASSPHRASE", "CUDA_PINS",
        "TORCHINDUCTOR_REDIS_URL",
    ),
    "a-secret-of-the-owner",
)  # fmt: skip
NEEDED = {
    "HF_ENDPOINT": "http://127.0.0.1:9", "HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": "/c", "TUNER_MAX_TOKENS": "5",
    "OMP_NUM_THREADS": "1", "https_proxy": "http://127.0.0.1:9", "TOKENIZERS_PARALLELISM": "false", "LC_ALL": "C",
    "HUGGINGFACE_HUB_CACHE": "/c", "DO_NOT_TRACK": "1", "DISABLE_TELEMETRY": "1",
}  # fmt: skip


@pytest.fixture
def secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    """An app whose owner has secrets, and settings that its libraries need."""
    for name, value in (SECRETS | NEEDED).items():
        monkeypatch.setenv(name, value)


@pytest.fixture
def prints(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """In Python's place, a program that writes down its environment; the file."""
    program, out = tmp_path / "python", tmp_path / "environment"
    program.write_text(f"#!/bin/sh\nenv > {out}\necho '{{}}'\n")
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))
    return out


def is_clean(text: str) -> bool:
    """Whether the printed environment has no secret, and all that is needed."""
    lines = text.splitlines()
    assert "a-secret-of-the-owner" not in text
    assert not [line for line in lines if line.partition("=")[0] in SECRETS]
    return {"HF_HUB_DISABLE_IMPLICIT_TOKEN=1", *(f"{k}={v}" for k, v in NEEDED.items())} <= set(lines)


def test_a_training_process_has_no_secret(secrets, prints, tmp_path):
    for _ in gpu.train(runs.create(small_recipe(), path=tmp_path / "run")):
        pass  # or nothing at all: the program may have ended before the first look at it
    assert is_clean(prints.read_text())


def test_a_process_that_merges_on_the_cpu_has_no_secret(secrets, prints):
    cpu_process.tuner("merge", "a run")
    assert is_clean(prints.read_text())


def test_a_worker_drops_its_secrets_at_its_first_job_and_keeps_its_settings(secrets, prints, monkeypatch):
    with monkeypatch.context() as patch:
        before = dict(os.environ)
        patch.setattr(gpu, "ZERO", True)
        patch.setattr(gpu, "_warm", False)
        patch.setattr("gc.freeze", lambda: None)
        try:
            gpu._opening_time()
            left = dict(os.environ)
            subprocess.run([sys.executable], check=True, capture_output=True)
        finally:
            os.environ |= before
    assert is_clean(prints.read_text())
    assert not SECRETS.keys() & left.keys()


# How a library could still find the owner's login.
FINDS = """
import json, sys
from tuner import environment
environment.drop_login()
from huggingface_hub import HfApi, get_token
from huggingface_hub.utils import build_hf_headers
found = [get_token(), *(build_hf_headers(**given).get("authorization") for given in ({}, {"token": None}))]
try:
    build_hf_headers(token=True)
except Exception as error:
    found.append(type(error).__name__)
found.append(build_hf_headers(token="hf_mine")["authorization"])
print(json.dumps(found))
"""


def test_the_page_finds_no_login_of_the_machine_however_it_asks(tmp_path):
    (tmp_path / "token").write_text("hf_owner_in_a_file")
    env = os.environ | SECRETS | {"HF_HOME": str(tmp_path)}
    for missing in ((), ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_OIDC_RESOURCE")):
        kept = {name: value for name, value in env.items() if name not in missing}
        done = subprocess.run([sys.executable, "-c", FINDS], cwd=ROOT, env=kept, capture_output=True, text=True)
        found = json.loads(done.stdout or done.stderr)
        assert found == [None, None, None, "LocalTokenNotFoundError", "Bearer hf_mine"]


def test_a_setting_is_not_taken_for_a_secret_because_of_a_word_in_it():
    kept = (
        "TOKENIZERS_PARALLELISM", "HTTPS_PROXY", "no_proxy", "CUDA_VISIBLE_DEVICES", "HF_ENDPOINT", "PYTHONPATH",
        "SPACES_ZERO_DEVICE_API_URL", "SPACE_ID", "SPACE_HOST", "HF_HUB_DISABLE_IMPLICIT_TOKEN", "HF_TOKEN_PATH",
    )  # fmt: skip
    assert [name for name in kept if not environment.is_kept(name)] == []


def test_of_the_names_that_begin_as_tuners_own_those_that_it_reads_are_kept():
    sources = [ROOT / "app.py", ROOT / "README.md", *(ROOT / "tuner").rglob("*.py")]
    sources.remove(Path(environment.__file__))
    read = {name for file in sources for name in re.findall("TUNER_[A-Z_]+", file.read_text())}
    assert len(read) > 10
    assert {name for name in environment.KEPT if name.startswith("TUNER_")} == read
    assert all(map(environment.is_kept, read))

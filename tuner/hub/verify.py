"""Does an export answer as its run did? Its files and answers, held against the receipt that came with it.

    report = verify("me/my-adapter")            # or the folder of a run or of an unzipped download
    report.differs, report.unchecked, report.same    # sentences

Only safetensors are loaded, and no code of a repository. Answers are compared up to rounding: where they part, the two
tokens must be about as likely as each other.
"""

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tuner import hub_errors, names, runs
from tuner.data.problems import and_join
from tuner.errors import TunerError
from tuner.hub import receipt as receipts
from tuner.hub import verify_answers, verify_server
from tuner.hub.receipt_shape import checked
from tuner.hub.verify_report import Report
from tuner.methods.files import CONFIG, WEIGHTS
from tuner.models.fetch import FILES, is_shipped
from tuner.models.shape import load_tokenizer

log = logging.getLogger(__name__)

MOST_BYTES = 50 * 2**30  # of a repository that is fetched
MOST_RECEIPT = 50 * 2**20
GGUF = (
    "A GGUF file is checked where it runs: start a server with it, such as `llama-server -m FILE`, and name that with "
    "--server."
)


def verify(
    name: str,
    *,
    revision: str | None = None,
    merged: str | None = None,
    server: verify_server.Server | None = None,
    token: str | bool | None = None,
) -> Report:
    """Hold an export, and a merged model or a server that is said to answer alike, against the export's receipt.

    Raises TunerError if there is no such export, or if it has no receipt.
    """
    folder, known = open_export(name, revision, token)
    report = Report()
    has_adapter = (folder / CONFIG).is_file()  # of which some have the base's configuration beside them
    is_model = not has_adapter and (folder / "config.json").is_file()
    is_adapter = has_adapter or not (is_model or any(folder.glob("*.gguf")))
    if is_model or is_adapter:
        _check_tokenizer(report, folder, known)
    elif not server:
        report.leave_open(GGUF)
    with _noted(report, "The model's answers"):
        if is_adapter and _check_adapter(report, folder, known):
            verify_answers.check_adapter(report, folder, known, token)
        elif is_model:
            verify_answers.check_merged(report, folder, known)
    if merged:
        other = Path(merged) if Path(merged).is_dir() else _fetch(merged, None, token)
        _check_tokenizer(report, other, known, "The merged model's tokenizer")
        with _noted(report, "The merged model"):
            verify_answers.check_merged(report, other, known, folder if is_adapter else None, token)
    if server:
        with _noted(report, "The server"):
            verify_server.check_server(report, server, known)
    return report


@contextmanager
def _noted(report: Report, what: str) -> Iterator[None]:
    """Note what can't be checked, so that what was found before is told all the same."""
    try:
        yield
    except TunerError as error:
        report.leave_open(f"{what} could not be checked: {error}")
    except Exception as error:  # whatever libraries raise for files that don't fit each other
        log.warning("%s", what, exc_info=error)
        report.leave_open(f"{what} could not be checked: its files can't be loaded ({type(error).__name__}).")


def open_export(name: str, revision: str | None, token: str | bool | None) -> tuple[Path, dict]:
    """The folder of an export and its receipt; of a run, the receipt that its export would have."""
    path = Path(name)
    if path.is_dir() and (path / "plan.json").is_file():
        run = runs.Run(path)
        if not (run.adapter / CONFIG).is_file():
            raise TunerError(f"Run {run.id} has no adapter yet. Train it first.")
        known = receipts.receipt(run)
        known["base"]["folder"] = run.plan.get("model_folder")
        return run.adapter, known
    folder = path if path.is_dir() else _fetch(name, revision, token)
    file = folder / receipts.NAME
    try:
        if file.stat().st_size > MOST_RECEIPT:
            raise ValueError
        known = checked(json.loads(file.read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise TunerError(
            f"'{name}' has no {receipts.NAME}, so there is nothing to compare with. Push its run again with this "
            "version of Tuner."
        ) from None
    except (OSError, ValueError, RecursionError):
        raise TunerError(
            f"The {receipts.NAME} of '{name}' is damaged, or of another version of Tuner. Push its run again."
        ) from None
    known["base"].pop("folder", None)  # nobody else names a folder of this machine
    return folder, known


def _fetch(name: str, revision: str | None, token: str | bool | None) -> Path:
    """The files of a repository, without pickles and code."""
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.utils import filter_repo_objects

    names.check(repository=name, revision=revision)
    hub_errors.limit_waiting()
    try:
        info = HfApi(token=token).model_info(name, revision=revision, files_metadata=True)
        patterns, sizes = [*FILES, "recipe.yaml"], {f.rfilename: f.size or 0 for f in info.siblings or ()}
        size = sum(sizes[file] for file in filter_repo_objects(sizes, allow_patterns=patterns))
        if size > MOST_BYTES:
            raise TunerError(f"'{name}' has {size >> 30} GB, more than the {MOST_BYTES >> 30} GB that are fetched.")
        return Path(snapshot_download(name, revision=info.sha, token=token, allow_patterns=patterns))
    except TunerError:
        raise
    except Exception as error:
        raise hub_errors.explain(error, f"the repository '{name}'") or error from error


def _check_tokenizer(report: Report, folder: Path, known: dict, title: str = "The tokenizer") -> None:
    """Vocabulary, template, end token, and what the tokenizer adds of its own; then the prompts' tokens."""
    expected = known.get("tokenizer")
    if not expected:
        report.unchecked.append("The receipt has no tokenizer to compare with.")
        return
    try:
        tokenizer = load_tokenizer(folder)
    except TunerError as error:
        report.differs.append(f"{title} can't be loaded: {error}")
        return
    found = receipts.tokenizer_of(tokenizer)
    problems = list(_tokenizer_problems(title, found, expected))
    report.differs.extend(problems)
    if not problems:
        report.same.append(f"{title}: vocabulary, added tokens, end token and chat template")
    verify_answers.check_prompts(report, tokenizer, known, title)


def _tokenizer_problems(title: str, found: dict, expected: dict) -> list[str]:
    problems = []
    missing = sorted(expected["added"].keys() - found["added"].keys())
    if missing:
        problems.append(
            f"{title} lacks the added token {and_join(missing[:5])}, which would be read as several. Use the "
            "tokenizer files of the run."
        )
    moved = [t for t, number in found["added"].items() if expected["added"].get(t, number) != number]
    if not missing and (moved or found["vocabulary"] != expected["vocabulary"]):
        which = f" (such as {moved[0]})" if moved else ""
        problems.append(
            f"{title} gives tokens other numbers than in training{which}: the model would read other tokens. Use "
            "the tokenizer files of the run."
        )
    if found["template"] != expected["template"]:
        problems.append(
            f"{title} has another chat template than in training: prompts would be rendered otherwise. Use the run's "
            "chat_template.jinja."
        )
    if found["eos"] != expected["eos"]:
        problems.append(
            f"{title} has the end token {found['eos']} where training had {expected['eos']}: answers may never end. "
            "Set eos_token in tokenizer_config.json."
        )
    if found["plain"] != expected["plain"] and len(found["plain"]) != len(expected["plain"]):
        problems.append(
            f"{title} adds other tokens of its own to a text than in training ({len(found['plain'])} tokens for "
            f"'{receipts.PLAIN}', not {len(expected['plain'])}), such as a second begin token. Set add_bos_token and "
            "add_eos_token in tokenizer_config.json as they were."
        )
    return problems


def _check_adapter(report: Report, folder: Path, known: dict) -> bool:
    """The adapter's tensors and configuration, and which base it names; whether it can be loaded."""
    expected, problems, can_load = known.get("adapter") or {}, [], True
    found = receipts.adapter_of(folder)
    for name in expected:
        if not expected[name]:
            report.unchecked.append(f"The receipt has no hashes of {name}.")
        elif not found.get(name):
            problems.append(f"{name} is missing or damaged. Push the run again.")
            can_load = False
        elif name.endswith(WEIGHTS):
            changed = [t for t in expected[name] if found[name].get(t) != expected[name][t]]
            if changed or found[name].keys() - expected[name].keys():
                problems.append(
                    f"{name}: {len(changed)} of {len(expected[name])} tensors differ from the run's"
                    f"{f', first {changed[0]}' if changed else ''}. These are not the weights that were trained. Push "
                    "the run again."
                )
        else:
            problems += [
                f"{name}: {key} is {found[name].get(key)} where the run had {value}. Set it back."
                for key, value in expected[name].items()
                if found[name].get(key) != value
            ]
    config, base = found.get(CONFIG), known["base"]
    if config and not is_shipped(base["name"]):
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        for key, was in (("base_model_name_or_path", base["name"]), ("revision", base["revision"])):
            if (was and config.get(key) not in (was, None)) or (key == "revision" and was and not config.get(key)):
                problems.append(
                    f"{CONFIG}: {key} is {config.get(key)} where the adapter was trained on {was}. On another version "
                    "of the base model it answers otherwise. Set it back."
                )
    report.differs.extend(problems)
    if not problems:
        report.same.append("The adapter: every tensor, its configuration, and the version of the base model")
    return can_load

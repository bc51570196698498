"""What the environment of a process that works for the page may hold: what libraries need, and no secrets.

A Space's owner may have secrets of any name, so there is a list of what is kept and none of what is dropped. Tuner's
own settings are kept by their names, and those of libraries by their families, unless a word in the name says that the
value may be a secret. The page itself keeps what its sign-in needs, but not the owner's own login at the Hub.
"""

import os
import re
import sys

# Settings of libraries, by the beginnings of their names.
KEPT_FAMILIES = (
    "SPACES_", "SPACE_", "LC_", "PYTHON", "CUDA_", "NVIDIA_", "CUBLAS_", "CUDNN_", "NCCL_", "OMP_", "GOMP_", "KMP_",
    "MKL_", "OPENBLAS_", "NUMEXPR_", "TORCH_", "TORCHINDUCTOR_", "PYTORCH_", "TRITON_", "BNB_", "ATEN_",
    "BITSANDBYTES_", "MALLOC_", "HF_HUB_", "HF_DATASETS_", "HF_XET_", "TRANSFORMERS_", "ACCELERATE_", "TOKENIZERS_",
)  # fmt: skip
# A proxy's variable may hold a password, and a process that downloads can't do without it.
KEPT = {
    "PATH", "HOME", "USER", "LOGNAME", "SHELL", "LANG", "LANGUAGE", "TZ", "TERM", "TMPDIR", "TEMP", "TMP", "HOSTNAME",
    "LD_LIBRARY_PATH", "LD_PRELOAD", "VIRTUAL_ENV", "HF_HOME", "HF_ENDPOINT", "HUGGINGFACE_HUB_CACHE",
    "XDG_CACHE_HOME", "TQDM_DISABLE", "DO_NOT_TRACK", "DISABLE_TELEMETRY", "NO_PROXY", "HTTP_PROXY", "HTTPS_PROXY",
    "ALL_PROXY", "SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SYSTEMROOT",
    "SPACES_ZERO_DEVICE_API_URL",  # of the platform
    "TUNER_RUNS", "TUNER_WINDOW_SECONDS", "TUNER_TRAINING_SLOTS", "TUNER_DEBUG",
    "TUNER_MAX_SECONDS", "TUNER_MAX_TOKENS", "TUNER_MAX_BILLION_PARAMETERS", "TUNER_MAX_FILE_MB", "TUNER_MAX_ROWS",
    "TUNER_MAX_RUNS_GB", "TUNER_CHECK_SECONDS", "TUNER_CHECK_GB",
}  # fmt: skip
# One of these words in a name says that its value may be a secret, whatever its family. Addresses hold passwords, too.
SECRET = re.compile(
    r"(?:^|_)(?:[A-Z]*(?:TOKEN|SECRET|KEY|KEYID|PASSWORD|PASSWD|PHRASE|WEBHOOK|URL|URI|DSN|JWT|AUTH|BEARER)|PASS|PWD|PAT"
    r"|PIN|API|SAS|SALT|CREDENTIAL|CRED|COOKIE|LOGIN|SESSION|PRIVATE|CONNECTION|CONN)(?:S|\d*)(?:_|$)"
)
# The owner's login: variables that hold it, and those that tell where it is or how to get it.
LOGIN = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HUGGINGFACE_HUB_TOKEN", "HF_OIDC_RESOURCE", "HF_OIDC_ID_TOKEN")
# huggingface_hub reads these when it is imported. The first does not cover `token=True`, nor a library that asks for
# the token itself: those find none.
NO_LOGIN = {"HF_HUB_DISABLE_IMPLICIT_TOKEN": "1", "HF_TOKEN_PATH": os.devnull}
# What a child is started with, so that the terminal does not interrupt it with the page. A session of its own would do
# that, too, but among sessions Linux shares the processor out alike, however nice the child is (man 7 sched).
OWN_GROUP = {"process_group": 0} if sys.version_info >= (3, 11) else {"start_new_session": True}


def is_kept(name: str) -> bool:
    """Whether a process that works for the page may have the variable of this name."""
    upper = name.upper()  # http_proxy and its like are written either way
    if name in NO_LOGIN or upper in KEPT:
        return True
    return upper.startswith(KEPT_FAMILIES) and not SECRET.search(upper)


def for_child() -> dict[str, str]:
    """The environment for a process that works for the page: no secrets, and nobody's login at the Hub."""
    return {name: value for name, value in os.environ.items() if is_kept(name)} | NO_LOGIN


def drop_secrets() -> None:
    """Take out of this process's environment what `for_child` leaves out."""
    for name in [name for name in os.environ if not is_kept(name)]:
        del os.environ[name]
    os.environ |= NO_LOGIN


def drop_login() -> None:
    """Forget the owner's login at the Hub. The page calls it before anything imports huggingface_hub."""
    for name in LOGIN:
        os.environ.pop(name, None)
    os.environ |= NO_LOGIN

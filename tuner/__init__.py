"""Fine-tune a language model in minutes, see whether it helped, and take the adapter home."""

import os

__version__ = "0.1.0"

# Read when torch is first imported. OpenMP's threads wait in a long busy loop by default, and two visitors who train
# at once on two cores then mostly wait; without any busy loop a single training loses time to waking up.
os.environ.setdefault("GOMP_SPINCOUNT", "10000")

"""Fine-tune a language model in minutes, see whether it helped, and take the adapter home."""

import os

__version__ = "0.1.0"

# Read when torch is first imported. OpenMP's threads wait in a busy loop by default: two visitors who train at once on
# two cores then take turns at waiting, and both are eight times slower than they need be.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

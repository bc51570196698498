"""Fine-tune a language model in minutes, see whether it helped, and take the adapter home."""

__version__ = "0.1.0"

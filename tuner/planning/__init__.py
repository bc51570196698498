"""Before a run: what can be checked, chosen and estimated without a GPU."""

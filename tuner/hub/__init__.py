"""Push a run to the Hub, with its model card."""

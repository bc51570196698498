"""Taking a run to the Hub."""

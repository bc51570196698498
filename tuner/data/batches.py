"""Which rows are in the batch of each step. Knows nothing of torch."""

import random
from collections.abc import Iterable, Iterator

ENDLESS = 10**7  # steps
GROUP = 10  # batches that are sorted by length together


class Batches:
    """Row numbers of each step from `start` on, endlessly; every epoch is shuffled anew.

    A step's rows depend on the seed and the step alone, so a resumed run continues exactly where it stopped. Rows of
    similar length are batched together, which saves padding.
    """

    def __init__(self, lengths: list[int], batch_size: int, seed: int, start: int = 0) -> None:
        self.lengths, self.batch_size, self.seed, self.start = lengths, batch_size, seed, start

    def __len__(self) -> int:
        return ENDLESS

    def __iter__(self) -> Iterator[list[int]]:
        return self.since(self.start)

    def since(self, step: int) -> Iterator[list[int]]:
        """The batches from `step` on."""
        per_epoch = -(-len(self.lengths) // self.batch_size)
        epoch, skip = divmod(step, per_epoch)
        while True:
            yield from self.epoch(epoch)[skip:]
            epoch, skip = epoch + 1, 0

    def sizes(self, step: int) -> Iterator[int]:
        """Padded tokens of each step from `step` on."""
        return self.sizes_of(self.since(step))

    def sizes_of(self, batches: Iterable[list[int]]) -> Iterator[int]:
        """Padded tokens of each batch."""
        return (max(self.lengths[row] for row in rows) * len(rows) for rows in batches)

    def epoch(self, epoch: int) -> list[list[int]]:
        """All batches of an epoch, in their order."""
        shuffle = random.Random(f"{self.seed}/{epoch}").shuffle
        rows = list(range(len(self.lengths)))
        shuffle(rows)
        size = self.batch_size * GROUP
        groups = [sorted(rows[i : i + size], key=self.lengths.__getitem__) for i in range(0, len(rows), size)]
        batches = [g[i : i + self.batch_size] for g in groups for i in range(0, len(g), self.batch_size)]
        shuffle(batches)
        return batches

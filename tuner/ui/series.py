"""A long curve in a bounded number of points: what a chart needs of a hundred thousand losses."""

MOST = 390  # points that are means of neighbors; a screen can't show many more

Point = tuple[float, float]


class Series:
    """Points in the order of x. Once there are many, neighbors are averaged; extremes and newest stay as they were."""

    def __init__(self):
        self._points: list[Point] = []  # (the last x, the mean y) of each group
        self._size = 1  # points in a group
        self._group: list[float] = []  # the unfinished group
        self._newest: Point | None = None
        self._lowest: Point | None = None
        self._highest: Point | None = None

    def add(self, x: float, y: float) -> None:
        """Add the next point."""
        self._newest = (x, y)
        self._lowest = min(self._lowest or self._newest, self._newest, key=_height)
        self._highest = max(self._highest or self._newest, self._newest, key=_height)
        self._group.append(y)
        if len(self._group) == self._size:
            self._points.append((x, sum(self._group) / self._size))
            self._group = []
        if len(self._points) == MOST:
            pairs = zip(self._points[::2], self._points[1::2], strict=True)
            self._points = [(later[0], (earlier[1] + later[1]) / 2) for earlier, later in pairs]
            self._size *= 2

    def take_back(self, x: float) -> None:
        """Forget what comes after x; of a group that x divides nothing is kept."""
        if not self._newest or self._newest[0] <= x:
            return
        self._points = [point for point in self._points if point[0] <= x]
        self._group = []
        kept = [*self._points, *(p for p in (self._lowest, self._highest) if p[0] <= x)]
        self._newest = max(kept, default=None)
        self._lowest = min(kept, key=_height, default=None)
        self._highest = max(kept, key=_height, default=None)

    def points(self) -> list[Point]:
        """The curve's points, at most MOST and three more."""
        if self._size == 1:
            return list(self._points)
        return sorted({*self._points, self._lowest, self._highest, self._newest} - {None})


def _height(point: Point) -> float:
    return point[1]

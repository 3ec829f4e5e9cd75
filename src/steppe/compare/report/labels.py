"""Where to write the names of points so that they cover neither each other nor the points.

Each label tries positions on rings around its point. One after the other takes its cheapest position given all the
others, until none wants to move.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

RINGS = (6.0, 14.0, 24.0, 36.0, 50.0, 66.0)
DIRECTIONS = 16
ROUNDS = 12


@dataclass(frozen=True)
class Box:
    """A rectangle in pixels."""

    left: float
    bottom: float
    right: float
    top: float

    def overlap(self, other: Box, margin: float = 0.0) -> float:
        """Common area of both, the first one grown by a margin."""
        width = min(self.right, other.right) - max(self.left, other.left) + margin
        height = min(self.top, other.top) - max(self.bottom, other.bottom) + margin
        return width * height if width > 0 and height > 0 else 0.0

    @property
    def area(self) -> float:
        """Width times height."""
        return (self.right - self.left) * (self.top - self.bottom)

    def nearest(self, point: tuple[float, float]) -> tuple[float, float]:
        """The point of the rectangle that is nearest to another point."""
        return min(max(point[0], self.left), self.right), min(max(point[1], self.bottom), self.top)


def place(
    points: Sequence[tuple[float, float]],
    sizes: Sequence[tuple[float, float]],
    bounds: Box,
    obstacles: Iterable[Box] = (),
) -> list[Box]:
    """One rectangle per point for its label.

    Args:
        points: the points, in pixels; every point is an obstacle to all labels.
        sizes: width and height of the labels, in pixels.
        bounds: labels stay inside.
        obstacles: what labels had better not cover, such as interval bars and lines.
    """
    marks = [Box(x - 5, y - 5, x + 5, y + 5) for x, y in points]
    soft = list(obstacles)
    options = [list(_around(point, size)) for point, size in zip(points, sizes, strict=True)]
    fixed = [[_standing(box, i, points, marks, soft, bounds) for box in boxes] for i, boxes in enumerate(options)]
    chosen = [min(range(len(costs)), key=costs.__getitem__) for costs in fixed]
    for _ in range(ROUNDS):
        before = list(chosen)
        for i, boxes in enumerate(options):
            others = [(points[j], options[j][chosen[j]]) for j in range(len(options)) if j != i]
            costs = [fixed[i][k] + _crowding(box, points[i], others) for k, box in enumerate(boxes)]
            chosen[i] = min(range(len(costs)), key=costs.__getitem__)
        if chosen == before:
            break
    return [boxes[k] for boxes, k in zip(options, chosen, strict=True)]


def _around(point: tuple[float, float], size: tuple[float, float]) -> Iterable[Box]:
    for ring in RINGS:
        yield from _corners(point, size, ring)
        for step in range(DIRECTIONS):
            angle = 2 * math.pi * step / DIRECTIONS
            x = point[0] + math.cos(angle) * (ring + size[0] / 2)
            y = point[1] + math.sin(angle) * (ring + size[1] / 2)
            yield Box(x - size[0] / 2, y - size[1] / 2, x + size[0] / 2, y + size[1] / 2)


def _corners(point: tuple[float, float], size: tuple[float, float], ring: float) -> Iterable[Box]:
    """Beside the point with a corner towards it: clear of a vertical or horizontal line through the point."""
    gap = 0.7 * ring
    for left in (point[0] + gap, point[0] - gap - size[0]):
        for bottom in (point[1] + gap, point[1] - gap - size[1]):
            yield Box(left, bottom, left + size[0], bottom + size[1])


def _standing(
    box: Box,
    own: int,
    points: Sequence[tuple[float, float]],
    marks: Sequence[Box],
    soft: Sequence[Box],
    bounds: Box,
) -> float:
    """Cost of a position whatever the other labels do: distance, points and lines covered, leaving the bounds."""
    distance = math.dist(points[own], box.nearest(points[own]))
    outside = box.area - box.overlap(bounds)
    covered = sum(box.overlap(mark) for mark in marks)
    lines = sum(box.overlap(line, 1.0) for line in soft)
    crossing = sum(_crosses(points[own], box, mark) for i, mark in enumerate(marks) if i != own)
    return distance + 10 * outside + 5 * covered + 0.6 * lines + 40 * crossing


def _crowding(box: Box, point: tuple[float, float], others: Iterable[tuple[tuple[float, float], Box]]) -> float:
    cost = 0.0
    for other_point, other in others:
        cost += 20 * box.overlap(other, 2.0)
        cost += 60 * (_crosses(point, box, other) + _crosses(other_point, other, box))
    return cost


def _crosses(point: tuple[float, float], box: Box, other: Box) -> bool:
    """True when the leader from the point to its label runs through another rectangle."""
    end = box.nearest(point)
    between = [(point[0] + f * (end[0] - point[0]), point[1] + f * (end[1] - point[1])) for f in (0.3, 0.5, 0.7, 0.9)]
    return any(other.left <= x <= other.right and other.bottom <= y <= other.top for x, y in between)

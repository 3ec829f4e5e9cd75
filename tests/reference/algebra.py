"""Sums over dicts of arrays: every norm here is global, over all the entries of the dict."""

import math


def dot(a, b):
    """Global inner product."""
    return sum(float((a[k] * b[k]).sum()) for k in a)


def norm(a):
    """Global Euclidean norm."""
    return math.sqrt(dot(a, a))


def size(x):
    """Euclidean norm of one array."""
    return math.sqrt(float((x * x).sum()))


def plus(a, b, factor=1.0):
    """a + factor * b."""
    return {k: a[k] + factor * b[k] for k in a}


def times(factor, a):
    """factor * a."""
    return {k: factor * a[k] for k in a}


def at(value, t):
    """The value of a hyper-parameter at step t: a number, or a curve of t."""
    return value(t) if callable(value) else value

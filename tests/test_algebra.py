"""Norms, inner products and scalings of lists against one concatenated vector in float64."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from steppe._algebra import (
    add_scaled_,
    bits_unless_,
    copy_,
    inner,
    joined,
    norm,
    norm_each,
    ratio,
    scale_,
    scale_each_,
    wide,
)

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
SHAPES = st.lists(st.lists(st.integers(0, 4), max_size=3), min_size=1, max_size=5)


def drawn(shapes, seed, dtypes=(torch.float64,)):
    generator = torch.Generator().manual_seed(seed)
    kinds = [dtypes[i % len(dtypes)] for i in range(len(shapes))]
    return [torch.randn(s, generator=generator, dtype=torch.float64).to(d) for s, d in zip(shapes, kinds, strict=True)]


def flat(tensors):
    return np.concatenate([t.double().numpy().ravel() for t in tensors])


@given(SHAPES, st.integers(0, 99), st.lists(st.sampled_from(DTYPES), min_size=1, max_size=3))
def test_norm_of_a_list_is_the_norm_of_its_concatenation(shapes, seed, dtypes):
    tensors = drawn(shapes, seed, dtypes)
    assert float(norm(tensors)) == pytest.approx(np.linalg.norm(flat(tensors)), rel=1e-6)
    for one, t in zip(norm_each(tensors), tensors, strict=True):
        assert float(one) == pytest.approx(np.linalg.norm(flat([t])), rel=1e-6)


@given(SHAPES, st.integers(0, 99))
def test_float64_is_kept(shapes, seed):
    tensors, others = drawn(shapes, seed), drawn(shapes, seed + 1)
    assert norm(tensors).dtype == inner(tensors, others).dtype == torch.float64
    assert float(norm(tensors)) == pytest.approx(np.linalg.norm(flat(tensors)), rel=1e-14)
    assert float(inner(tensors, others)) == pytest.approx(flat(tensors) @ flat(others), rel=1e-12, abs=1e-12)


@given(SHAPES, st.integers(0, 99), st.lists(st.sampled_from(DTYPES), min_size=1, max_size=3))
def test_inner_product_of_mixed_types_is_that_of_the_concatenations(shapes, seed, dtypes):
    a, b = drawn(shapes, seed, dtypes), drawn(shapes, seed + 1, list(reversed(dtypes)))
    size = np.abs(flat(a)) @ np.abs(flat(b))
    assert abs(float(inner(a, b)) - flat(a) @ flat(b)) <= 1e-6 * max(size, 1e-30)


@given(SHAPES, st.integers(0, 99), st.sampled_from(DTYPES))
def test_cauchy_schwarz_and_its_equality(shapes, seed, dtype):
    a, b = drawn(shapes, seed, [dtype]), drawn(shapes, seed + 1, [dtype])
    assert abs(float(inner(a, b))) <= float(norm(a) * norm(b)) * (1 + 1e-5)
    assert float(inner(a, a)) == pytest.approx(float(norm(a)) ** 2, rel=1e-5)


@pytest.mark.parametrize(
    ("dtype", "value", "count"),
    [(torch.bfloat16, 1.0, 4096), (torch.float16, 300.0, 4), (torch.float16, 1e-4, 4)],
    ids=["bf16 stops counting at 256", "fp16 overflows", "fp16 underflows"],
)
def test_half_precision_accumulates_in_float32(dtype, value, count):
    x = torch.full((count,), value, dtype=dtype)
    naive = torch.zeros((), dtype=dtype)
    for e in x:
        naive = naive + e * e
    expected = float(x[0]) ** 2 * count
    assert not math.isclose(float(naive), expected, rel_tol=0.1)  # what accumulation in the dtype itself would give
    pieces = list(x.reshape(4, -1))
    assert float(inner(pieces, pieces)) == pytest.approx(expected, rel=1e-5)
    assert float(norm(pieces)) == pytest.approx(math.sqrt(expected), rel=1e-5)
    assert norm(pieces).dtype == inner(pieces, pieces).dtype == torch.float32


def test_many_half_precision_tensors_do_not_lose_the_small_ones():
    """The norms of the pieces are joined in float32 too: 1 + 4096 * 2^-12 = 2."""
    pieces = [torch.ones(1, dtype=torch.bfloat16)] + [torch.full((1,), 2.0**-6, dtype=torch.bfloat16)] * 4096
    assert float(norm(pieces)) == pytest.approx(math.sqrt(2), rel=1e-6)


def test_empty_lists_and_empty_tensors():
    assert norm_each([]) == []
    assert float(norm([])) == float(inner([], [])) == float(joined([])) == 0
    assert float(norm([torch.zeros(0), torch.full((2,), 2.0), torch.zeros(0, 3)])) == pytest.approx(math.sqrt(8))
    assert float(norm([torch.zeros(0)])) == float(inner([torch.zeros(0)], [torch.zeros(0)])) == 0
    scale_([], torch.ones(())), scale_([], 2.0), scale_each_([], []), add_scaled_([], [], 1.0)
    add_scaled_([], [], torch.ones(()))


def test_lists_of_different_lengths_are_refused():
    with pytest.raises(ValueError, match="shorter"):
        inner([torch.ones(1), torch.ones(1)], [torch.ones(1)])


@given(SHAPES, st.integers(0, 99))
def test_joined_norms_of_parts_of_a_vector(shapes, seed):
    tensors = drawn(shapes, seed)
    cut = len(tensors) // 2
    parts = [norm(tensors[:cut]).double(), norm(tensors[cut:])]
    assert float(joined(parts)) == pytest.approx(float(norm(tensors)), rel=1e-14)


@pytest.mark.parametrize("poison", [math.inf, math.nan])
def test_a_poisoned_tensor_shows_in_the_norm(poison):
    result = float(norm([torch.ones(3), torch.tensor([1.0, poison])]))
    assert math.isinf(result) if math.isinf(poison) else math.isnan(result)


@pytest.mark.parametrize(
    ("top", "bottom", "expected"),
    [
        (3.0, 2.0, 1.5),
        (0.0, 2.0, 0.0),
        (3.0, 0.0, 0.0),
        (0.0, 0.0, 0.0),
        (3.0, math.nan, 0.0),
        (3.0, math.inf, 0.0),
    ],
)
@pytest.mark.parametrize("as_tensor", [False, True])
def test_ratio(top, bottom, expected, as_tensor):
    result = ratio(torch.tensor(top) if as_tensor else top, torch.tensor(bottom))
    assert result.shape == () and float(result) == expected


def test_ratio_of_a_poisoned_numerator_is_not_hidden():
    assert math.isnan(float(ratio(torch.tensor(math.nan), torch.tensor(2.0))))


@pytest.mark.parametrize("bottom", [1e-30, 1e-38, 1e-39, 1e-40, 1e-44])
@pytest.mark.parametrize("top", [1e-3, 0.05, 10.0])
def test_ratio_times_a_tiny_denominator_stays_finite(bottom, top):
    """What a radius over a gradient norm is for: rho / ||g|| * g must be a number for the tiniest g."""
    tiny = torch.tensor(bottom)
    assert float(tiny) > 0
    assert bool(torch.isfinite(ratio(top, tiny) * tiny))


@given(SHAPES, st.integers(0, 99), st.floats(-3, 3), st.booleans())
def test_scale_and_add_scaled(shapes, seed, factor, as_tensor):
    x, y = drawn(shapes, seed), drawn(shapes, seed + 1)
    kept, others = flat(x), flat(y)
    f = torch.tensor(factor, dtype=torch.float64) if as_tensor else factor
    storages = [t.data_ptr() for t in x]
    scale_(x, f)
    assert np.array_equal(flat(x), kept * factor)
    add_scaled_(x, y, f)
    np.testing.assert_allclose(flat(x), kept * factor + factor * others, rtol=1e-13, atol=1e-13)
    assert np.array_equal(flat(y), others), "the other list is only read"
    assert [t.data_ptr() for t in x] == storages, "in place"


@settings(max_examples=30)
@given(st.integers(1, 6), st.integers(0, 99))
def test_scale_each_has_one_factor_per_tensor(count, seed):
    tensors = drawn([[3]] * count, seed)
    factors = [torch.tensor(float(i), dtype=torch.float64) for i in range(count)]
    kept = [t.clone() for t in tensors]
    scale_each_(tensors, factors)
    assert all(torch.equal(t, k * i) for i, (t, k) in enumerate(zip(tensors, kept, strict=True)))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_float32_factor_leaves_half_precision_tensors_in_their_type(dtype):
    x, y = [torch.full((2,), 3.0, dtype=dtype)], [torch.full((2,), 0.5, dtype=dtype)]
    scale_(x, torch.tensor(2.0))
    add_scaled_(x, y, torch.tensor(4.0))
    scale_each_(x, [torch.tensor(0.5)])
    assert x[0].dtype == dtype and x[0].tolist() == [4.0, 4.0]


def test_a_factor_beyond_the_range_of_fp16_is_not_cut_to_it():
    """rho / ||g|| = 1e5 exceeds fp16's 65504, but rho g / ||g|| does not."""
    x = [torch.full((2,), 1e-6, dtype=torch.float16)]
    expected = 1e5 * float(x[0][0])
    scale_(x, torch.tensor(1e5))
    assert x[0].tolist() == pytest.approx([expected] * 2, rel=1e-3)


@given(st.lists(st.tuples(st.integers(0, 5), st.sampled_from(DTYPES)), max_size=6))
def test_copies_and_norms_of_mixed_dtypes_keep_their_order(kinds):
    source = [torch.full((size,), float(i + 1)).to(dtype) for i, (size, dtype) in enumerate(kinds)]
    to = [torch.zeros_like(x) for x in source]
    storages = [x.data_ptr() for x in to]
    copy_(to, source)
    assert all(torch.equal(x, y) for x, y in zip(to, source, strict=True))
    assert [x.data_ptr() for x in to] == storages
    norms = norm_each(source)
    assert [n.dtype for n in norms] == [wide(x.dtype) for x in source]
    for i, (n, x) in enumerate(zip(norms, source, strict=True)):
        assert abs(float(n) - (i + 1) * len(x) ** 0.5) < 1e-4


def test_copies_need_lists_of_one_length():
    with pytest.raises(ValueError):
        copy_([torch.zeros(1)], [])


@pytest.mark.parametrize("keep", [True, False])
def test_all_of_a_poisoned_list_or_nothing_by_its_bits(keep):
    numbers = [math.nan, math.inf, -math.inf, -0.0, 1e-40, 3.25]
    kinds = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
    tensors = [torch.tensor(numbers, dtype=kind).expand(2, 6).clone() for kind in kinds] + [torch.randn(4, 6).t()]
    before = [t.clone() for t in tensors]
    bits_unless_(torch.tensor(keep), tensors)
    for now, then in zip(tensors, before, strict=True):
        bits = {2: torch.int16, 4: torch.int32, 8: torch.int64}[now.element_size()]
        expected = then.contiguous().view(bits) if keep else torch.zeros(then.shape, dtype=bits)
        assert torch.equal(now.contiguous().view(bits), expected)

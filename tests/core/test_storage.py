"""Numbers in one or two bytes: what is stored and loaded again, over the whole range of float32."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from optchain.core import low_bits, storage

TINY = float(jnp.finfo(jnp.float32).tiny)
LARGEST = float(jnp.finfo(jnp.float32).max)
SHAPE = (64, 96)


KINDS = ["int8", "even int8", "bfloat16"]


def packed(x, kind="int8", *, signed=True):
    even = kind == "even int8"
    return storage.pack(x, "mu", "int8" if even else kind, signed=signed, even=even, keep_wide=lambda path, leaf: False)


def loaded(x, kind="int8", *, signed=True):
    return np.asarray(storage.load(packed(jnp.asarray(x), kind, signed=signed)))


blocks = st.lists(
    st.floats(0, 2.0**127, width=32).map(lambda x: x if x >= TINY else 0.0),
    min_size=storage.BLOCK,
    max_size=storage.BLOCK,
)


@given(blocks)
def test_no_square_but_zero_is_stored_as_zero(block):
    x = np.array(block, np.float32)
    again = loaded(x, signed=False)
    np.testing.assert_array_equal(again == 0, x == 0)
    assert np.isfinite(again).all()


def power(y, k):
    """yᵏ made of straight lines, with k of them from a power of two to the next."""
    log = np.arange(-80, 17)
    return np.interp(y, 2.0 ** (log // k) * (1 + log % k / k), 2.0**log)


def signed_numbers(codes):
    y = codes + 8
    return np.where(codes > 0, np.minimum(power(y / 128, 4), power(y / 64, 8) / 16), 0)


def squares(codes):
    return np.where(codes > 0, power((codes + 1) / 256, 4), 0)


def assert_neighbours(again, x, entry, numbers):
    """What is loaded is one of the two numbers with a code between which x lies, in float64."""
    (scale,) = np.asarray(entry["scales"], np.float64)
    above = np.clip(np.searchsorted(numbers * scale, np.abs(x)), 1, len(numbers) - 1)
    assert (np.abs(again) >= numbers[above - 1] * scale * (1 - 1e-6)).all()
    assert (np.abs(again) <= numbers[above] * scale * (1 + 1e-6) + TINY).all()


@given(blocks)
def test_a_square_is_stored_as_a_neighbouring_code(block):
    """One that is more than 20 binades below the largest of its block becomes the smallest code."""
    x = np.array(block, np.float32)
    entry = packed(jnp.asarray(x), signed=False)
    again = np.asarray(storage.load(entry), np.float64)
    assert_neighbours(again[x > 0], x[x > 0], entry, squares(np.arange(7, 256)))


@given(blocks, st.lists(st.sampled_from([-1.0, 1.0]), min_size=storage.BLOCK, max_size=storage.BLOCK))
def test_a_signed_number_is_stored_as_a_neighbouring_code(block, signs):
    x = np.array(block, np.float32) * np.array(signs, np.float32)
    entry = packed(jnp.asarray(x))
    again = np.asarray(storage.load(entry), np.float64)
    assert (np.sign(again) * np.sign(x) >= 0).all()
    assert_neighbours(again, x, entry, signed_numbers(np.arange(121)))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("bits", [0, 1, 2**9, 2**10, 2**31, 2**32 - 2**10, 2**32 - 2**9, 2**32 - 1])
def test_zero_stays_and_no_sign_changes_whatever_is_drawn(kind, signed, bits):
    x = np.zeros((1, 32), np.float32)
    x[0, :8] = [1, TINY, 2.0**-40, 2.0**-28, 2.0**-27, 2.0**-20, 0.3, 1 / 3]
    x[0, 16:24] = -x[0, :8] if signed else x[0, :8]
    like = packed(jnp.asarray(x), kind, signed=signed)
    codes, scale = storage.store_leaf(
        jnp.asarray(x), like["codes"], like["scales"], lambda shape: jnp.full(shape, bits, jnp.uint32)
    )
    again = np.asarray(storage.load_leaf(codes, scale))
    assert (again[x == 0] == 0).all()
    assert (again * x >= 0).all()
    assert (again[np.abs(x) == 1] == x[np.abs(x) == 1]).all()  # the largest


@pytest.mark.parametrize(("dtype", "numbers"), [("int8", signed_numbers), ("uint8", squares)])
def test_each_code_stands_for_the_number_that_the_formula_has(dtype, numbers):
    codes = np.arange(128 if dtype == "int8" else 256)
    x = storage.load_leaf(jnp.asarray(codes, dtype), jnp.ones(len(codes) // 32, jnp.bfloat16))
    np.testing.assert_array_equal(x, numbers(codes).astype(np.float32))


@given(blocks, st.lists(st.sampled_from([-1.0, 1.0]), min_size=storage.BLOCK, max_size=storage.BLOCK))
def test_a_parameter_is_stored_to_within_a_127th_of_the_largest(block, signs):
    x = np.array(block, np.float32) * np.array(signs, np.float32)
    again = loaded(x, "even int8").astype(np.float64)
    assert (np.sign(again) * np.sign(x) >= 0).all()
    assert (np.abs(again - x) <= 1.001 * np.abs(x).max() / 127 + TINY).all()


@pytest.mark.parametrize(
    ("kind", "sigma"),  # with 3 most evenly spaced codes are 0, and draw rarely
    [("int8", 0.1), ("int8", 3.0), ("even int8", 0.1), ("bfloat16", 0.1), ("bfloat16", 3.0)],
)
def test_what_is_loaded_is_right_on_average(kind, sigma):
    """The mean of 4,096 draws, in units of what chance makes of it."""
    rng = np.random.default_rng(0)
    x = jnp.asarray(np.exp(sigma * rng.standard_normal(SHAPE)) * rng.standard_normal(SHAPE), jnp.float32)
    first = packed(x, kind)

    def draw(total, number):
        again = storage.load(storage.store(x, {**first, "draws": number}, "mu"))
        return (total[0] + again, total[1] + jnp.square(again - x)), None

    (total, squares), _ = jax.lax.scan(draw, (jnp.zeros(SHAPE), jnp.zeros(SHAPE)), jnp.arange(4096))
    error, spread = np.asarray(total / 4096 - x), np.sqrt(np.asarray(squares) / 4096)
    # A number at a code is stored as that but for a rounding of the root: it draws rarely, and is left out.
    drawn = spread > 1e-3 * np.abs(x)
    assert drawn.mean() > 0.9
    assert (np.abs(error) <= 6 * spread / 64 + 1e-5 * np.abs(x))[drawn].all()


@pytest.mark.parametrize(
    ("binades", "bound", "spread"),
    [((-4, 0), 2e-5, 0.01), ((-8, -4), 1e-4, 0.02), ((-12, -8), 2e-4, 0.04), ((-19, -12), 0.005, 0.15)],
    ids=str,
)
def test_of_a_square_the_logarithm_is_right_on_average(binades, bound, spread):
    """A little more than right, which makes up for what averages do. Were the mean right, it would be less by half the spread squared."""
    lowest, highest = binades
    exponent = jax.random.uniform(jax.random.key(0), (32, 2**16 - 1), minval=lowest, maxval=highest)
    x = jnp.exp2(exponent).at[0].set(1)  # the largest of each block
    again = storage.load(packed(x, signed=False))
    errors = np.log(np.asarray(again / x, np.float64))[1:]
    assert 0 <= errors.mean() < bound
    assert errors.std() < spread


@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_an_average_moves_on_where_its_step_is_less_than_a_rounding(kind, signed):
    """`x ← x + 0.001 (1 − x)` from 0: rounded to the nearest it would stop far below 0.95."""

    def step(entry, _):
        x = storage.load(entry)
        return storage.store(x + 0.001 * (1 - x), entry, "nu"), None

    entry, _ = jax.lax.scan(step, packed(jnp.zeros(SHAPE), kind, signed=signed), length=3000)
    right = 1 - 0.999**3000
    assert abs(float(storage.load(entry).mean()) - right) < 0.01


@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "block",
    {
        "zeros": [0.0] * 32,
        "one huge": [LARGEST, *[1.0] * 31],
        "subnormal": [TINY / 8] * 32,
        "the smallest": [TINY, *[0.0] * 31],
    }.items(),
    ids=lambda item: item[0],
)
def test_blocks_at_the_edge_stay_finite(kind, signed, block):
    again = loaded(np.tile(np.float32(block[1]), 2), kind, signed=signed)
    assert np.isfinite(again).all()
    assert again.max() <= LARGEST
    assert (again[np.float32(block[1] * 2) == 0] == 0).all()
    if max(block[1]) > TINY:
        assert again.max() >= 0.9 * max(block[1])


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("signed", [True, False])
def test_what_is_not_finite_is_not_finite_when_it_is_loaded(kind, signed, bad):
    x = np.ones(64, np.float32)
    x[3] = bad
    again = loaded(x, kind, signed=signed)
    assert not np.isfinite(again[3])
    assert np.isfinite(again[32:]).all()


@pytest.mark.parametrize(
    ("shape", "axis"),
    [
        ((64, 32), -2),
        ((32, 64), -1),
        ((31, 96), -1),
        ((96, 31), -2),
        ((64, 3, 5), -3),
        ((320,), -1),
        ((31, 33), None),
        ((), None),
    ],
)
def test_blocks_lie_along_the_axis_that_can_be_split_most(shape, axis):
    assert storage.block_axis(shape) == axis


@given(st.integers(0, 2**32 - 1))
def test_low_bits_and_a_bfloat16_are_the_number(bits):
    x = np.uint32(bits).view(np.float32)
    for width, bound in ((8, 2.0**-16), (16, 0.0)):
        hi, low = low_bits.split(jnp.asarray(x), width)
        again = np.asarray(low_bits.join(hi, low))
        if not np.isfinite(x):
            np.testing.assert_array_equal(again, x)
        elif abs(x) <= float(jnp.finfo(jnp.bfloat16).max):
            assert abs(float(again) - float(x)) <= bound * max(abs(float(x)), TINY)
            assert np.signbit(again) == np.signbit(x)
        assert np.isfinite(np.asarray(hi, np.float32)) == np.isfinite(x)


@pytest.mark.parametrize(("width", "bound"), [(8, 2.0**-16), (16, 0.0)])
def test_low_bits_hold_over_all_exponents(width, bound):
    """10⁶ random mantissas in each sign and exponent, as whole arrays, whose conversions are vectorized."""
    rng = np.random.default_rng(0)
    bits = rng.integers(0, 2**32, 10**6, dtype=np.uint32)
    x = bits.view(np.float32)
    x = x[np.isfinite(x) & (np.abs(x) <= float(jnp.finfo(jnp.bfloat16).max))]
    again = np.asarray(jax.jit(lambda x: low_bits.join(*low_bits.split(x, width)))(x))
    error = np.abs(again.astype(np.float64) - x)
    assert (error <= bound * np.maximum(np.abs(x.astype(np.float64)), TINY)).all()


@pytest.mark.parametrize("shift", [24, 16, 8])
def test_random_bits_are_uniform_over_places_and_over_draws(shift):
    """χ² of a byte, which has a mean of 255 and a deviation of 22.6."""

    def chi_square(bits):
        counts = np.bincount(np.asarray(bits).ravel() >> shift & 255, minlength=256)
        expected = bits.size / 256
        return np.sum((counts - expected) ** 2) / expected

    draw = jax.jit(storage.random_bits, static_argnums=0)
    salt = storage.salt_of("nu")
    over_draws = jax.jit(jax.vmap(lambda n: storage.random_bits((1,), n, salt)))(jnp.arange(2**20))
    for bits in (*(draw((2**11, 2**11), jnp.int32(n), salt) for n in (1, 2, 77)), over_draws):
        assert 255 - 6 * 22.6 < chi_square(bits) < 255 + 6 * 22.6


@pytest.mark.parametrize("kind", KINDS)
def test_rows_that_are_stored_alone_have_the_codes_of_the_whole(kind):
    x = jax.random.normal(jax.random.key(0), (6, *SHAPE))
    old = packed(jnp.zeros_like(x), kind)

    def rows(entry):
        return {name: leaf if name == "draws" or leaf is None else leaf[2:4] for name, leaf in entry.items()}

    alone = storage.store(x[2:4], rows(old), "mu", first_row=jnp.int32(2))
    jax.tree.map(np.testing.assert_array_equal, alone, rows(storage.store(x, old, "mu")))
    other = storage.store(x[2:4], rows(old), "mu", first_row=jnp.int32(1))
    assert (other["codes"] != alone["codes"]).any()

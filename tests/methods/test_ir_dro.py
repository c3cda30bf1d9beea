import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from pydantic import ValidationError

from mixc.methods.ir_dro import Options, lin_upper, mid_rank, multiples
from mixc.solve.documents import effective, free_energy, tilt

EVEN = np.full(3, 1 / 3)
LOSS = np.array([2.0, 3.0, 4.0])


def weights(loss, share=EVEN, **options):
    return share * multiples(share, loss, Options(**{"largest": 1024.0, **options}))


# ---- T8 ----


def test_t8_the_softmax_and_what_follows_from_it():
    found = weights(LOSS)
    assert found == pytest.approx([0.09003, 0.24473, 0.66524], abs=5e-6)
    assert effective(EVEN, found / EVEN) == pytest.approx(1.9587, abs=5e-5)
    assert free_energy(EVEN, LOSS, 1.0) == pytest.approx(3.3090, abs=5e-5)


def test_t8_limits_and_shifts():
    assert weights(LOSS, temperature=1e9) == pytest.approx(EVEN)
    assert weights(LOSS, temperature=1e-6) == pytest.approx([0, 0, 1])
    assert weights(LOSS + 7) == pytest.approx(weights(LOSS), abs=1e-12)


def test_t8_a_brute_force_maximiser_agrees():
    from scipy.optimize import minimize

    share, loss, cap = np.array([0.5, 0.3, 0.2]), np.array([1.0, 2.5, 2.0]), 1.6
    for largest in (1024.0, cap):
        found = weights(loss, share, temperature=0.7, largest=largest)
        solved = minimize(
            lambda w: -(w @ loss) + 0.7 * (w * np.log(np.maximum(w, 1e-300) / share)).sum(),
            share,
            bounds=[(1e-12, largest * u) for u in share],
            constraints={"type": "eq", "fun": lambda w: w.sum() - 1},
            method="SLSQP",
            options={"ftol": 1e-16, "maxiter": 500},
        )
        assert found == pytest.approx(solved.x, abs=1e-6)
        value = found @ loss - 0.7 * (found * np.log(found / share)).sum()
        assert value >= -solved.fun - 1e-8
        if largest == 1024.0:
            assert value == pytest.approx(free_energy(share, loss, 0.7), abs=1e-12)


# ---- laws ----

sizes = st.integers(1, 20)


@given(
    sizes.flatmap(
        lambda n: st.tuples(
            arrays(float, n, elements=st.floats(0.01, 1)),
            arrays(float, n, elements=st.floats(-300, 300)),
        )
    ),
    st.floats(1, 50),
)
def test_a_tilt_keeps_the_mean_and_its_cap(case, largest):
    raw, gain = case
    share = raw / raw.sum()
    m = tilt(share, gain, largest)
    assert (share * m).sum() == pytest.approx(1, abs=1e-9)
    assert (m <= largest * (1 + 1e-9)).all()
    assert (m >= 0).all()
    assert (np.diff(m[np.argsort(gain)]) >= -1e-9).all()
    order = np.arange(len(gain))[::-1]
    assert tilt(share[order], gain[order], largest) == pytest.approx(m[order], abs=1e-9)
    # A document cut in two halves of the same loss weighs the same.
    halves = tilt(np.repeat(share / 2, 2), np.repeat(gain, 2), largest)
    assert halves[::2] == pytest.approx(m, rel=1e-6, abs=1e-9)


@given(sizes.flatmap(lambda n: arrays(float, n, elements=st.floats(0, 20))), st.floats(0.05, 0.5))
def test_mid_rank_keeps_a_band_and_not_the_hardest(loss, band):
    share = np.full(len(loss), 1 / len(loss))
    m = mid_rank(share, loss, band)
    assert (share * m).sum() == pytest.approx(1)
    assert len(set(m[m > 0].tolist())) == 1
    if len(loss) * band >= 1 and len(set(loss.tolist())) == len(loss):
        assert m[loss.argmax()] == 0


def test_mid_rank_by_hand():
    loss = np.arange(8.0)
    m = mid_rank(np.full(8, 1 / 8), loss, 0.25)
    assert m.tolist() == [0, 0, 0, 0, 4, 4, 0, 0]


def test_lin_upper_rises_to_the_middle_of_the_range_and_no_further():
    assert lin_upper(np.array([1.0, 1.5, 2.0, 2.5, 3.0])).tolist() == [0, 0.5, 1, 1, 1]
    assert lin_upper(np.array([2.0, 2.0])).tolist() == [0, 0]
    m = weights(np.array([0.0, 5.0, 10.0]), rule="lin_upper")
    assert m[1] == m[2] == pytest.approx(np.e * m[0])


def test_t3_the_softmax_weighs_noise_most_and_lin_upper_no_more_than_the_middle():
    loss = np.array([0.5, 2.6, np.log(64)])
    assert weights(loss).argmax() == 2
    assert weights(loss, rule="lin_upper")[1] == weights(loss, rule="lin_upper")[2]


def test_options_are_checked():
    for bad in ({"temperature": 0}, {"largest": 0.5}, {"largest": 2000.0}, {"band": 0.6}):
        with pytest.raises(ValidationError):
            Options(**bad)

import numpy as np
import pytest

from sciflow.subsets import evenly_spread


@pytest.mark.parametrize(("n", "most"), [(0, 5), (1, 5), (5, 5), (7, 3), (1000, 7), (9, 1), (9, 0)])
def test_rows_rise_without_repetition_and_their_steps_differ_by_at_most_one(n, most):
    rows = evenly_spread(n, most)
    assert len(rows) == min(n, most) and rows.dtype == np.int64
    steps = np.diff(rows)
    assert (steps > 0).all() and (len(steps) == 0 or np.ptp(steps) <= 1)
    if n and most > 1:
        assert rows[0] == 0 and rows[-1] == n - 1

"""Training windows: repeatable, within bounds, and silent about what is not given."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from domains.timeseries.covariates import Covariates
from domains.timeseries.encoding import FIELD, batch_of, feature_count
from domains.timeseries.own import anchoring_season
from domains.timeseries.view import View
from domains.timeseries.windows import Patterns, Windows
from tests.timeseries.small_forecaster import make_series

SERIES = [make_series("a", 300, seed=1), make_series("b", 130, scale=50.0, seed=2)]


def windows(**settings: object) -> Windows:
    return Windows(SERIES, 72, 24, 24, Patterns(), (48,), **settings)  # type: ignore[arg-type]


def test_every_window_lies_inside_one_series() -> None:
    data = windows()
    # 48 steps of history at least, a whole horizon after the origin.
    assert len(data) == (300 - 24 - 48 + 1) + (130 - 24 - 48 + 1)
    y = data.window(torch.arange(len(data)))
    assert y.shape == (len(data), 96, 1)
    assert torch.isfinite(y[:, 72:]).all()
    last = y[300 - 24 - 48]
    assert np.allclose(last[72:, 0], SERIES[0].values[-24:, 0])
    # Before its beginning a series has nothing, least of all another's end.
    first_of_b = y[300 - 24 - 48 + 1]
    assert torch.isnan(first_of_b[:24]).all()
    assert np.allclose(first_of_b[24:72, 0], SERIES[1].values[:48, 0])


def test_origins_are_the_last_horizons() -> None:
    data = Windows(SERIES[:1], 72, 24, 24, None, origins=3)
    y = data.window(torch.arange(len(data)))
    assert len(data) == 3
    assert np.allclose(y[:, 72:].flatten(), SERIES[0].values[-72:, 0])
    given = data.collate(torch.arange(3)).context.given[FIELD]
    assert bool(given[:, :72].all()) and not bool(given[:, 72:].any())


def test_a_row_is_the_same_in_any_batch() -> None:
    data = windows()
    together, alone = data.collate(torch.tensor([5, 90, 7])), data.collate(torch.tensor([90]))
    assert torch.equal(together[FIELD][1:2], alone[FIELD])
    assert torch.equal(together.context.given[FIELD][1:2], alone.context.given[FIELD])
    assert torch.equal(together.context.extras["features"][1:2], alone.context.extras["features"])


def test_shares_of_the_patterns() -> None:
    data, n = windows(), 250
    given = data.collate(torch.arange(n)).context.given[FIELD][..., 0]
    free = ~given.any(1)
    plain = given[:, 24:72].all(1) & ~given[:, 72:].any(1)
    assert abs(float(free.double().mean()) - 0.15) < 0.08
    assert 0.3 < float(plain.double().mean()) < 0.6
    infilled = given[:, 90:].any(1)
    assert 0.05 < float(infilled.double().mean()) < 0.35


@pytest.mark.parametrize("lags", [(), (24, 48)])
def test_the_network_is_not_told_what_is_not_given(lags: tuple[int, ...]) -> None:
    """Other values in the place of those asked for change neither features nor frame."""
    generator = torch.Generator().manual_seed(0)
    y = torch.randn(6, 96, 1, generator=generator, dtype=torch.float64)
    given = torch.rand(y.shape, generator=generator) < 0.5
    given[0] = torch.arange(96)[:, None] < 72
    real = torch.ones_like(given)
    other = torch.where(given, y, 7.0 + 100 * torch.randn(y.shape, generator=generator))
    a, b = (batch_of(View(v, given, real), 24, lags) for v in (y, other))
    assert a.context.extras["features"].shape[-1] == feature_count(
        {"lags": lags, "covariates": None}
    )
    for name, value in a.context.extras.items():
        assert torch.equal(value, b.context.extras[name]), name
    assert torch.equal(a[FIELD][given], b[FIELD][given])
    assert not torch.equal(a[FIELD], b[FIELD])


def test_future_covariates_are_told_only_where_they_are_known() -> None:
    told = [
        s.replace(covariates=np.arange(len(s))[:, None] / 10.0, covariate_names=("trend",))
        for s in SERIES
    ]
    for known in (True, False):
        covariates = Covariates.fit(told, known)
        assert covariates is not None
        data = Windows(told, 72, 24, 24, None, covariates=covariates)
        features = data.collate(torch.tensor([0])).context.extras["features"][0, :, 0]
        value, mark = features[:, 3], features[:, 4]
        assert bool(mark[24:72].all()) and bool(mark[72:].all()) is known
        assert bool((value[72:] != 0).any()) is known
        # What ends with the history is also told relative to it.
        assert features.shape[1] == (5 if known else 6)
        assert not bool(features[72:, 5:].any())
        # Before the series began there is nothing to tell.
        assert not bool(mark[:24].any())


def test_a_covariate_stands_in_for_what_was_not_seen_whatever_the_units() -> None:
    """Where it is the series itself in other units, it is told as seen values are, everywhere."""
    generator = torch.Generator().manual_seed(1)
    y = 3 + 1e-3 * torch.randn(4, 96, 2, generator=generator, dtype=torch.float64).cumsum(1)
    given = torch.rand(y.shape, generator=generator) < 0.4
    given[0] = torch.arange(96)[:, None] < 40
    for channel in (0, 1):
        twin = 5e6 * y[..., channel : channel + 1]
        batch = batch_of(View(y, given, torch.ones_like(given), twin), 24)
        features = batch.context.extras["features"][:, :, channel]
        seen = given[..., channel]
        assert torch.allclose(features[..., -1][seen], features[..., 0][seen], atol=1e-4)
        for row in range(4):
            known = y[row, seen[row], channel]
            z = (y[row, :, channel] - known.mean()) / known.std(correction=0)
            assert torch.allclose(features[row, :, -1], z.asinh().float(), atol=1e-4)


def test_a_silent_station_tells_nothing_beside_its_values() -> None:
    """Half of the windows know past covariates only where values are given; the rest, all of them.

    A network that always saw them would fill every gap from what was measured beside it.
    """
    told = [
        s.replace(covariates=np.ones((len(s), 1)), covariate_names=("ozone",)) for s in SERIES[:1]
    ]
    rows = torch.arange(200)
    for known, silent in ((False, 0.5), (False, 0.0), (True, 0.5)):
        covariates = Covariates.fit(told, known)
        patterns = Patterns(silent=silent)
        data = Windows(told, 72, 24, 24, patterns, covariates=covariates)
        batch = data.collate(rows)
        mark = batch.context.extras["features"][:, :72, 0, 4].bool()
        given = batch.context.given[FIELD][:, :72, 0]
        exists = batch.context.mask[:, :72, 0]
        gaps = (exists & ~given).any(1)
        quiet = ~(mark & exists & ~given).any(1)
        assert bool(mark[given].all())
        share = float((quiet & gaps).sum() / gaps.sum())
        assert share == (pytest.approx(0.5, abs=0.15) if silent and not known else 0.0)


def test_covariates_are_standardised_by_the_training_part() -> None:
    rng = np.random.default_rng(0)
    told = SERIES[0].replace(
        covariates=5 + 3 * rng.standard_normal((300, 1)), covariate_names=("wind",)
    )
    covariates = Covariates.fit([told], True)
    assert covariates is not None
    values = covariates.of(told, 310)
    assert abs(np.nanmean(values)) < 1e-9 and abs(np.nanstd(values) - 1) < 1e-9
    assert np.isnan(values[300:]).all()
    assert Covariates.fit(SERIES, True) is None


def test_the_anchor_is_chosen_over_the_whole_horizon() -> None:
    """A seasonal series is anchored a season ago, also where half the horizon is one season."""
    assert anchoring_season(SERIES, 24, 48) == 24
    walk = make_series("w", 500).replace(
        values=np.random.default_rng(0).standard_normal((500, 1)).cumsum(0)
    )
    assert anchoring_season([walk], 24, 48) == 1

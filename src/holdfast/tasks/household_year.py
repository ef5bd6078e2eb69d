"""A year of a household in central Europe, hour by hour, from a seed: load, sun on the roof, weather. Made up, not measured.

Hour 0 is midnight at the beginning of 1 January, a Monday.
"""

from typing import NamedTuple

import numpy as np

HOURS = 8760
#: Bounds of the temperature outside, °C: what a safeguard may rely on.
COLDEST, HOTTEST = -10.0, 40.0
_LATITUDE, _TILT_OF_EARTH = np.deg2rad(48.0), np.deg2rad(23.44)
_PEAK_POWER = 5.0


class HouseholdYear(NamedTuple):
    """Hourly series, each of shape [8760].

    Attributes:
        load: electric power that the household uses, kW, above 0.
        solar: electric power from the roof, kW, 0 at night and at most 5.
        outdoor: temperature outside, °C, within -10 and 40.
    """

    load: np.ndarray
    solar: np.ndarray
    outdoor: np.ndarray


def price_of_hour() -> np.ndarray:
    """Price of electric energy by hour of the day, shape [24], 1/kWh: 0.2 at night, 0.5 in the evening, else 0.4."""
    prices = np.full(24, 0.4)
    prices[[22, 23, *range(6)]] = 0.2
    prices[17:21] = 0.5
    return prices


def household_year(seed: int = 0) -> HouseholdYear:
    """The year of that seed; the same seed gives the same year."""
    weather, clouds, using = (np.random.default_rng([seed, stream]) for stream in range(3))
    hour = np.arange(HOURS)
    clearness = _clearness(clouds)
    return HouseholdYear(_load(using, hour), _solar(hour, clearness), _outdoor(weather, hour, clearness))


def _memory(generator: np.random.Generator, hours: float) -> np.ndarray:
    """A stationary first-order autoregression of unit variance that forgets within `hours`, shape [8760]."""
    kept = np.exp(-1 / hours)
    noise = generator.normal(size=HOURS)
    noise[1:] *= np.sqrt(1 - kept**2)
    for i in range(1, HOURS):
        noise[i] += kept * noise[i - 1]
    return noise


def _clearness(generator: np.random.Generator) -> np.ndarray:
    """Share of the sun that clouds let through: fronts that stay for days, and clouds that pass."""
    cover = 1.3 * _memory(generator, 40.0) + 0.6 * _memory(generator, 2.0)
    return 0.12 + 0.88 / (1 + np.exp(-1.5 * cover))


def _solar(hour: np.ndarray, clearness: np.ndarray) -> np.ndarray:
    """A roof that lies flat, with the sun's elevation in the middle of the hour."""
    declination = -_TILT_OF_EARTH * np.cos(2 * np.pi * (hour / 24 + 10) / 365)
    turned = 2 * np.pi * (hour % 24 + 0.5 - 12) / 24
    elevation = np.sin(_LATITUDE) * np.sin(declination) + np.cos(_LATITUDE) * np.cos(declination) * np.cos(turned)
    # Low sun crosses more air.
    return _PEAK_POWER * np.maximum(elevation, 0.0) ** 1.2 * clearness


def _outdoor(generator: np.random.Generator, hour: np.ndarray, clearness: np.ndarray) -> np.ndarray:
    """Seasons (coldest in late January), days (warmest at 15:00, more so under a clear sky), weather of about five days."""
    season = 10.5 - 10.0 * np.cos(2 * np.pi * (hour / 24 - 25) / 365)
    day = -(1.5 + 4.0 * clearness) * np.cos(2 * np.pi * (hour % 24 - 3) / 24)
    return np.clip(season + day + 3.5 * _memory(generator, 60.0), COLDEST, HOTTEST)


def _load(generator: np.random.Generator, hour: np.ndarray) -> np.ndarray:
    """A base, a morning and an evening peak; at weekends later in the morning and more at noon; darker days use more."""
    of_day, weekend = hour % 24, (hour // 24) % 7 >= 5

    def peak(middle, width):
        away = (of_day - middle + 12) % 24 - 12
        return np.exp(-0.5 * (away / width) ** 2)

    morning = 0.5 * peak(np.where(weekend, 9.5, 7.0), np.where(weekend, 1.8, 1.2))
    noon = np.where(weekend, 0.35, 0.12) * peak(12.5, 1.5)
    evening = peak(19.0, 2.0)
    dark = 1 + 0.2 * np.cos(2 * np.pi * hour / HOURS)
    varying = np.exp(0.25 * _memory(generator, 3.0) + 0.2 * generator.normal(size=HOURS))
    return 0.2 + dark * (morning + noon + evening) * varying + 0.05 * varying

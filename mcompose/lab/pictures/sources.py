"""Real numbers for pictures: the tables in the package ``vega-datasets`` (MIT), read without importing it.

A source is a list of records: a car, a day, a flower, a month. A figure is the mean over a few records of one group, in
the source's unit, rounded to 0..99. A quarter of the records is held out, so no number in a test picture comes from a
record that is used for training.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

import numpy as np

from mcompose.errors import RequestError

__all__ = ["COLUMN_NAMES", "ROW_NAMES", "Figures", "Source", "draw_figures", "load_sources"]

SPLITS: Final = ("train", "test")
_TEST_EVERY: Final = 4
_MEAN_OVER: Final = 3

_MONTHS: Final = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
_BRANDS: Final = {"ford": "ford", "chevrolet": "chev", "plymouth": "plym", "amc": "amc", "dodge": "dodg",
                  "toyota": "toyo", "datsun": "dats"}  # fmt: skip
_SITES: Final = {"University Farm": "Farm", "Waseca": "Was", "Morris": "Mor", "Crookston": "Cro",
                 "Grand Rapids": "Gra", "Duluth": "Dul"}  # fmt: skip
_SECTORS: Final = {"construction": "cons", "manufacturing": "manu", "wholesale_trade": "sale", "retail_trade": "shop",
                   "utilities": "util", "information": "info", "financial_activities": "fin"}  # fmt: skip
_CARS: Final = {"mpg": ("Miles_per_Gallon", 1.0), "hp": ("Horsepower", 0.4), "acc": ("Acceleration", 1.0),
                "lbs": ("Weight_in_lbs", 0.02)}  # fmt: skip
_FLOWERS: Final = {"slen": "sepalLength", "swid": "sepalWidth", "plen": "petalLength", "pwid": "petalWidth"}
_WEATHER: Final = {"high": ("temp_max", 1.0), "low": ("temp_min", 1.0), "wind": ("wind", 10.0),
                   "rain": ("precipitation", 5.0)}  # fmt: skip
_SYMBOLS: Final = ("MSFT", "AMZN", "IBM", "GOOG", "AAPL")
_STOCK_YEARS: Final = ("2005", "2006", "2007", "2008", "2009")
_JOB_YEARS: Final = ("2006", "2008", "2010", "2012", "2014")

ROW_NAMES: Final = (*_MONTHS, *_BRANDS.values(), *_SITES.values(), "set", "ver", "vir", *_SYMBOLS, *_SECTORS.values())
"""All names of rows; at most four letters each, so that they fit into a picture."""
COLUMN_NAMES: Final = (*_WEATHER, *_CARS, *_FLOWERS, "1931", "1932", *_STOCK_YEARS, "2010", "2012", "2014")
"""All names of columns."""


@dataclass(frozen=True)
class Source:
    """One table of real numbers.

    Args:
        name: Name of the data set.
        rows: Names of the groups of records.
        columns: Names of the measured quantities.
        values: (row, column) -> one value per record, in order, as float.
    """

    name: str
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    values: Mapping[tuple[str, str], np.ndarray]

    def figure(self, row: str, column: str, *, split: str, generator: np.random.Generator) -> int:
        """Draws one number: the mean over a few records.

        Args:
            row: Name of the group.
            column: Name of the measured quantity.
            split: "train" or "test": the records to draw from.
            generator: Source of randomness that draws the records.

        Returns:
            Their mean, 0 to 99.
        """
        held = self.values[row, column]
        test = np.arange(len(held)) % _TEST_EVERY == _TEST_EVERY - 1
        own = held[test] if split == "test" else held[~test]
        drawn = own[generator.integers(len(own), size=_MEAN_OVER)]
        return int(np.clip(np.rint(drawn.mean()), 0, 99))


@dataclass(frozen=True)
class Figures:
    """A small table of numbers to draw.

    Args:
        rows: Names of the rows.
        columns: Names of the columns.
        values: Values of each row, one row after the other.
    """

    rows: tuple[str, ...]
    columns: tuple[str, ...]
    values: tuple[tuple[int, ...], ...]


def draw_figures(source: Source, *, rows: int, columns: int, split: str, generator: np.random.Generator) -> Figures:
    """Draws a small table.

    Args:
        source: Source of the numbers.
        rows: Number of rows, fewer when the source has fewer; they keep the source's order.
        columns: Number of columns, likewise.
        split: "train" or "test".
        generator: Source of randomness that chooses rows, columns and records.

    Returns:
        The table.
    """
    chosen_rows = _some(source.rows, rows, generator)
    chosen_columns = _some(source.columns, columns, generator)
    values = tuple(
        tuple(source.figure(row, column, split=split, generator=generator) for column in chosen_columns)
        for row in chosen_rows
    )
    return Figures(chosen_rows, chosen_columns, values)


def _some(names: tuple[str, ...], count: int, generator: np.random.Generator) -> tuple[str, ...]:
    places = generator.permutation(len(names))[: min(count, len(names))]
    return tuple(names[i] for i in sorted(places))


@cache
def load_sources() -> tuple[Source, ...]:
    """Reads the six sources.

    Returns:
        Seattle's weather, cars, iris flowers, barley yields, stock prices and employment in the United States.

    Raises:
        RequestError: vega-datasets is not installed.
    """
    folder = _folder()
    return (
        _weather(folder), _cars(folder), _flowers(folder), _barley(folder), _stocks(folder), _jobs(folder),
    )  # fmt: skip


def _folder() -> Path:
    found = find_spec("vega_datasets")  # its own import needs pandas; its files do not
    if found is None or not found.submodule_search_locations:
        raise RequestError(
            "The lab's pictures need the numbers of vega-datasets.",
            hint="Install it: pip install --no-deps vega-datasets==0.9.0",
        )
    return Path(found.submodule_search_locations[0]) / "_data"


def _rows_of(path: Path) -> list[dict[str, Any]]:
    text = path.read_text(encoding="utf-8")
    return json.loads(text) if path.suffix == ".json" else list(csv.DictReader(text.splitlines()))


def _source(
    name: str, records: list[tuple[str, str, float]], rows: tuple[str, ...], columns: tuple[str, ...]
) -> Source:
    held: dict[tuple[str, str], list[float]] = {(row, column): [] for row in rows for column in columns}
    for row, column, value in records:
        held[row, column].append(value)
    return Source(name, rows, columns, {key: np.array(values) for key, values in held.items()})


def _weather(folder: Path) -> Source:
    records = [
        (_MONTHS[int(day["date"].replace("-", "/").split("/")[1]) - 1], name, float(day[key]) * scale)
        for day in _rows_of(folder / "seattle-weather.csv")
        for name, (key, scale) in _WEATHER.items()
    ]
    return _source("weather", records, _MONTHS, tuple(_WEATHER))


def _cars(folder: Path) -> Source:
    records = [
        (_BRANDS[car["Name"].split()[0]], name, car[key] * scale)
        for car in _rows_of(folder / "cars.json")
        for name, (key, scale) in _CARS.items()
        if car["Name"].split()[0] in _BRANDS and car[key] is not None
    ]
    return _source("cars", records, tuple(_BRANDS.values()), tuple(_CARS))


def _flowers(folder: Path) -> Source:
    records = [
        (flower["species"][:3], name, flower[key] * 10)
        for flower in _rows_of(folder / "iris.json")
        for name, key in _FLOWERS.items()
    ]
    return _source("flowers", records, ("set", "ver", "vir"), tuple(_FLOWERS))


def _barley(folder: Path) -> Source:
    records = [(_SITES[row["site"]], str(row["year"]), row["yield"]) for row in _rows_of(folder / "barley.json")]
    return _source("barley", records, tuple(_SITES.values()), ("1931", "1932"))


def _stocks(folder: Path) -> Source:
    records = [
        (row["symbol"], row["date"][-4:], float(row["price"]) * 0.12)
        for row in _rows_of(folder / "stocks.csv")
        if row["date"][-4:] in _STOCK_YEARS
    ]
    return _source("stocks", records, _SYMBOLS, _STOCK_YEARS)


def _jobs(folder: Path) -> Source:
    records = [
        (short, month["month"][:4], float(month[name]) / 200)
        for month in _rows_of(folder / "us-employment.csv")
        for name, short in _SECTORS.items()
        if month["month"][:4] in _JOB_YEARS
    ]
    return _source("jobs", records, tuple(_SECTORS.values()), _JOB_YEARS)

"""Codes with a few errors are found again; those with more are told."""

from __future__ import annotations

import random

import pytest

from dmserver.targets.verity.reed_solomon import correct, solve, syndrome

SIZE = 16


def spoilt(seed: int, places: list[int], codes: list[int]) -> tuple[list[bytes], dict[int, bytes]]:
    """Columns of codes that are all zeroes but for errors, and the errors."""
    chance = random.Random(seed)
    columns = [bytearray(SIZE) for _ in range(255)]
    for place in places:
        for code in codes:
            columns[place][code] = chance.randrange(1, 256)
    return [bytes(column) for column in columns], {place: bytes(columns[place]) for place in places}


@pytest.mark.parametrize("places", [[0], [254], [3, 200], [0, 1, 2, 253, 254], list(range(12))])
def test_errors_in_unknown_places(places: list[int]) -> None:
    columns, errors = spoilt(1, places, [0, 7, 15])
    syndromes = [syndrome(power, columns, SIZE) for power in range(2 * len(places))]
    assert correct(syndromes) == errors


def test_each_code_has_places_of_its_own() -> None:
    columns = [bytearray(SIZE) for _ in range(255)]
    for code in range(SIZE):
        columns[10 * code][code] = code + 1
    syndromes = [syndrome(power, map(bytes, columns), SIZE) for power in (0, 1)]
    assert correct(syndromes) == {10 * code: columns[10 * code] for code in range(SIZE)}


@pytest.mark.parametrize("seed", range(5))
def test_more_errors_than_half_the_roots(seed: int) -> None:
    columns, _ = spoilt(seed, [5, 77, 180], [3])
    found = correct([syndrome(power, columns, SIZE) for power in range(4)])
    assert found is None or len(found) <= 2  # those that lead to another code word


def test_nothing_is_wrong() -> None:
    assert correct([bytes(SIZE)] * 4) == {}


@pytest.mark.parametrize("places", [[9], [1, 250], list(range(100, 124))])
def test_errors_in_known_places(places: list[int]) -> None:
    columns, errors = spoilt(2, places, list(range(SIZE)))
    syndromes = [syndrome(power, columns, SIZE) for power in range(len(places))]
    assert solve(places, syndromes) == list(errors.values())

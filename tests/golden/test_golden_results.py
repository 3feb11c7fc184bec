"""Published records and numbers: what they say, and that tables make the same numbers of them."""

from __future__ import annotations

import math

from tests.golden.program import kept, published_numbers, published_records, record_digests


def test_every_published_record_says_what_it_said() -> None:
    found = {name: record_digests(*record) for name, record in published_records().items()}
    assert len(found) == 306
    assert found == kept("records.json.xz")


def test_every_published_number_is_made_again() -> None:
    """What CSV files of the reports hold, to 1e-12: values, intervals, differences, ablations, costs."""
    found, golden = published_numbers(), kept("numbers.json.xz")
    assert sorted(found) == sorted(golden)
    for table, lines in golden.items():
        assert sorted(found[table]) == sorted(lines), table
        for line, numbers in lines.items():
            assert sorted(found[table][line]) == sorted(numbers), f"{table}: {line}"
            moved = {
                k: (v, found[table][line][k]) for k, v in numbers.items() if differ(v, found[table][line][k])
            }
            assert not moved, f"{table}: {line}"


def differ(first: float, second: float) -> bool:
    return not math.isclose(first, second, rel_tol=1e-12, abs_tol=1e-15)


def test_a_golden_holds_every_number_of_the_published_files() -> None:
    golden = kept("numbers.json.xz")
    assert sum(len(numbers) for lines in golden.values() for numbers in lines.values()) == 25_050

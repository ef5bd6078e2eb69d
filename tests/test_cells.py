"""Tables that are filled cell by cell: nothing is computed twice, nothing finished is lost, nothing foreign is taken."""

import json

import pytest

from holdfast.cli.cells import Cell, fill
from holdfast.runs import RunError


class Counting:
    """A computation that remembers how often it ran, and may be stopped."""

    def __init__(self, stop: bool = False):
        self.runs, self.stop = 0, stop

    def __call__(self):
        self.runs += 1
        if self.stop:
            raise KeyboardInterrupt
        return {"value": float("nan"), "runs": self.runs}


def cells(*computations, steps=100):
    return [Cell(f"task/{i}", {"steps": steps, "seeds": (0, 1)}, each) for i, each in enumerate(computations)]


def test_a_stopped_table_goes_on_with_the_cell_at_which_it_was(tmp_path):
    first, second, third = Counting(), Counting(stop=True), Counting()
    with pytest.raises(KeyboardInterrupt):
        fill(cells(first, second, third), tmp_path)
    assert (first.runs, second.runs, third.runs) == (1, 1, 0)
    assert sorted(path.name for path in tmp_path.rglob("*.*")) == ["0.json"]
    second.stop = False
    said = []
    found = fill(cells(first, second, third), tmp_path, said.append)
    assert (first.runs, second.runs, third.runs) == (1, 2, 1)
    assert said == ["task/1 (2 of 3)", "task/2 (3 of 3)"]
    assert found["task/0"]["value"] != found["task/0"]["value"]  # NaN is kept as NaN
    assert fill(cells(first, second, third), tmp_path).keys() == found.keys()
    assert (first.runs, second.runs, third.runs) == (1, 2, 1)


def test_a_cell_of_other_settings_is_refused_before_anything_is_computed(tmp_path):
    fill(cells(Counting()), tmp_path)
    again, new = Counting(), Counting()
    with pytest.raises(
        RunError, match=r"0\.json was computed with steps = 100, but steps = 200 is asked for: delete it"
    ):
        fill(cells(again, new, steps=200), tmp_path)
    assert again.runs == new.runs == 0


def test_a_setting_that_came_later_had_a_value_before(tmp_path):
    fill([Cell("a", {"steps": 1, "each": {"steps": 1}}, Counting())], tmp_path)
    more = {"steps": 1, "limit": float("inf"), "each": {"steps": 1, "limit": float("inf")}}
    again = Counting()
    assert fill([Cell("a", more, again, {"limit": float("inf")})], tmp_path).keys() == {"a"} and again.runs == 0
    with pytest.raises(RunError, match="was computed with limit = inf, but limit = 2"):
        fill([Cell("a", more | {"limit": 2.0}, again, {"limit": float("inf")})], tmp_path)
    with pytest.raises(RunError, match="was computed with each = "):
        fill([Cell("a", more, again)], tmp_path)


@pytest.mark.parametrize("content", ["{", "[]", json.dumps({"schema": 0, "settings": {}, "numbers": {}})])
def test_a_damaged_cell_is_refused_and_left_alone(tmp_path, content):
    (tmp_path / "task").mkdir()
    (tmp_path / "task" / "0.json").write_text(content)
    with pytest.raises(RunError, match=r"0\.json is n"):
        fill(cells(Counting()), tmp_path)
    assert (tmp_path / "task" / "0.json").read_text() == content

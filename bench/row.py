"""One figure of a benchmark, with the goal it is held against."""

from dataclasses import dataclass


@dataclass
class Row:
    """`goal` reads like "<= 1.10", "== true" or "" where none is set; `met` is None then, and where nothing was measured."""

    part: str
    name: str
    value: float | int | bool | None
    unit: str = ""
    goal: str = ""
    met: bool | None = None

    @classmethod
    def at_most(cls, part: str, name: str, value: float, unit: str, limit: float, why: str = "") -> "Row":
        return cls(part, name, value, unit, f"<= {limit:.4g}" + (f" ({why})" if why else ""), value <= limit)

    @classmethod
    def must_hold(cls, part: str, name: str, value: bool | None) -> "Row":
        return cls(part, name, value, "", "true", value)

"""`--assert "best_auroc.ci_low >= 0.9"`: conditions on a run's facts, so that a run can be a gate in CI.

A condition is a dotted path into the facts, a comparison, and a value: a number, true, false, null, or text (quoted if it has
spaces). Of an unknown (null) fact only `== null` holds, of one that is not there nothing does. Nothing is evaluated as code.

>>> Assertion.parse("nan == 0").holds({"nan": 0})
True
>>> Assertion.parse("best.ci_low >= 0.9").holds({"best": {"ci_low": None}})
False
>>> Assertion.parse("typo != 0").holds({"nan": 0}), Assertion.parse("nan == true").holds({"nan": 1})
(False, False)
"""

from __future__ import annotations

import json
import operator
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from modelscope_app.api import UsageError

_COMPARISONS: Mapping[str, Callable[[Any, Any], bool]] = {
    ">=": operator.ge,
    "<=": operator.le,
    "==": operator.eq,
    "!=": operator.ne,
    ">": operator.gt,
    "<": operator.lt,
}
_CONDITION = re.compile(r"\s*([A-Za-z_][\w\-]*(?:\.[\w\-]+)*)\s*(>=|<=|==|!=|>|<)\s*(.+?)\s*")


@dataclass(frozen=True, slots=True)
class Assertion:
    """One condition."""

    text: str
    path: tuple[str, ...]
    comparison: str
    value: Any

    @classmethod
    def parse(cls, text: str) -> Assertion:
        """Read a condition. Raises UsageError."""
        match = _CONDITION.fullmatch(text)
        if not match:
            raise UsageError(f'--assert {text!r}: write FACT >= VALUE, as in "best_auroc.ci_low >= 0.9" (or <=, ==, !=, >, <)')
        path, comparison, value = match.groups()
        return cls(text.strip(), tuple(path.split(".")), comparison, _literal(value))

    def holds(self, facts: Mapping[str, Any]) -> bool:
        """Whether it holds for these facts. A fact that is not there fulfils nothing, an unknown one only `== null`."""
        if not self._is_there(facts):
            return False
        found = self.found(facts)
        if isinstance(found, Mapping):
            found = found.get("value")
        if found is None or self.value is None:
            return {"==": found is self.value, "!=": found is not None}.get(self.comparison, False)
        if isinstance(found, bool) != isinstance(self.value, bool):
            return False
        try:
            return bool(_COMPARISONS[self.comparison](found, self.value))
        except TypeError:
            return False

    def found(self, facts: Mapping[str, Any]) -> Any:
        """The fact it speaks of; None where there is none, or it is unknown."""
        value: Any = facts
        for name in self.path:
            value = value.get(name) if isinstance(value, Mapping) else None
        return value

    def _is_there(self, facts: Mapping[str, Any]) -> bool:
        value: Any = facts
        for name in self.path:
            if not isinstance(value, Mapping) or name not in value:
                return False
            value = value[name]
        return True

    def explain(self, facts: Mapping[str, Any]) -> str:
        """Why it does not hold."""
        found = self.found(facts)
        if found is None:
            there = ", ".join(facts) or "none"
            missing = "is unknown" if self._is_there(facts) else f"is not among the facts ({there})"
            return f"--assert {self.text}: {'.'.join(self.path)} {missing}"
        return f"--assert {self.text}: does not hold, {'.'.join(self.path)} is {json.dumps(found)}"


def _literal(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text[1:-1] if len(text) > 1 and text[0] == text[-1] == "'" else text

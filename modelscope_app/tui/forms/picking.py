"""Which list opens for which field, and what becomes of what is chosen there."""

from __future__ import annotations

from collections.abc import Sequence

from modelscope_app.tui.forms.choosing import Chooser, Line, run_lines
from modelscope_app.tui.forms.choosing_files import FileChooser
from modelscope_app.tui.forms.fields import Field
from modelscope_app.tui.selections import Selection


def pick(field: Field, selections: Sequence[Selection]) -> None:
    """Choose a value of a field: from the disk, from the runs, or from what the user was on, the latest first."""
    app = field.app
    entry = field.entry

    def chosen(value: str | None) -> None:
        if value is not None:
            field.fill(f"{field.text},{value}" if entry.is_list and field.text else value)

    match entry.pick:
        case "checkpoint" | "series" | "data-file" | "file" as pick:
            app.push_screen(FileChooser(pick, field.text), chosen)
        case "run":
            app.push_screen(Chooser("Choose a run", run_lines, "there is no run yet that is done"), chosen)
        case "selection":
            fitting = [selection for selection in selections if selection.kind in entry.selections]
            if len(fitting) == 1:
                field.fill(fitting[0].value)
            elif fitting:
                lines = [Line(selection.value, selection.label, selection.kind) for selection in fitting]
                app.push_screen(Chooser("Use what you were on", lambda: lines, ""), chosen)
            else:
                app.notify(f"nothing is selected that fits; it takes a {' or '.join(entry.selections)}", markup=False)
        case None if entry.suggestions:
            lines = [Line(value, value) for value in entry.suggestions]
            app.push_screen(Chooser(f"Choose {entry.label}", lambda: lines, ""), chosen)

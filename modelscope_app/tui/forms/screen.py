"""The form of an analysis: its checkpoints, its params, where it runs, what that would need, and the command that does the same.

What stands in it to begin with: the defaults, over them what was used last, over that what it was opened with. What is typed is
checked by the plugin's own params in the thread of plugins, and a job is only handed to the app once nothing is wrong.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from textual import on, work
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical, VerticalScroll
from textual.content import Content
from textual.events import DescendantFocus, ScreenSuspend
from textual.geometry import Offset, Region
from textual.screen import Screen
from textual.widgets import Collapsible, Footer, Input, Static

from modelscope_app.api import MscopeError
from modelscope_app.tui.forms import checking, kept_values
from modelscope_app.tui.forms.checking import CHECKPOINTS, DEVICE, DTYPE, SEED, WHOLE, Asked, Checked, Loaded
from modelscope_app.tui.forms.choosing import Chooser, Line, NameAsked
from modelscope_app.tui.forms.entries import Entry, checkpoint_entries, host_entries, param_entry, sites_of, typed_text
from modelscope_app.tui.forms.estimate_line import EstimateLine, Estimator, ServiceEstimator
from modelscope_app.tui.forms.fields import Field
from modelscope_app.tui.forms.picking import pick
from modelscope_app.tui.messages import JobAsked
from modelscope_app.tui.on_screen import Copied, Explanation
from modelscope_app.tui.plain import plain
from modelscope_app.tui.plugins import Plugins, shared_plugins
from modelscope_app.tui.selections import Selection

if TYPE_CHECKING:
    from modelscope_app.plugin_host import PluginHost

ESTIMATE_AFTER_SECONDS = 0.5
"""From the last change to asking the service."""

_LONGEST = 2000
_TYPED = object()
"""No value is this."""
_TWICE_SECONDS = 2.0
"""A key that was held down too long does not make two jobs."""


class _Lines(VerticalScroll, inherit_bindings=False, can_focus=False):
    """Scrolls to the line the user is on, at once; up and down lead from line to line."""

    def scroll_to_region(self, region: Region, **options: Any) -> Offset:
        """Without animation, which would lay out a long form dozens of times."""
        return super().scroll_to_region(region, **{**options, "animate": False})


class FormScreen(Screen[None]):
    """Fills in the params of one analysis and posts `JobAsked` to the app. Goes with escape, or when the app shows the run."""

    DEFAULT_CSS = """
    FormScreen { layout: vertical; }
    FormScreen #title { height: 1; padding: 0 1; background: $panel; text-style: bold; }
    FormScreen #summary { height: auto; max-height: 2; padding: 0 1; color: $text-muted; }
    FormScreen #fields { height: 1fr; padding: 0 1; }
    FormScreen #state { padding: 1 2; height: 1fr; }
    FormScreen #below { height: auto; padding: 0 1; border-top: solid $primary; }
    FormScreen #about { height: 3; color: $text-muted; }
    FormScreen #whole { display: none; height: auto; max-height: 3; color: $error; }
    FormScreen #command { height: auto; max-height: 3; color: $accent; }
    FormScreen Collapsible { border: none !important; padding: 0; background: transparent; }
    FormScreen Collapsible Contents { padding: 0; }
    FormScreen CollapsibleTitle { padding: 0; width: 100%; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("ctrl+r", "run", "Run", priority=True),
        Binding("f2", "pick", "Choose", priority=True),
        Binding("ctrl+s", "save_preset", "Save preset", priority=True),
        Binding("ctrl+o", "load_preset", "Load", priority=True),
        Binding("ctrl+d", "defaults", "Defaults", priority=True),
        Binding("escape", "leave", "Leave"),
        Binding("down", "next_field", "Next field", show=False),
        Binding("up", "previous_field", "Field above", show=False),
    ]

    def __init__(
        self,
        analysis_id: str,
        checkpoints: Sequence[str] = (),
        params: Mapping[str, Any] | None = None,
        *,
        selections: Sequence[Selection] = (),
        device: str | None = None,
        dtype: str | None = None,
        seed: int | None = None,
        layers: int | None = None,
        plugins: Plugins | None = None,
        estimate: Estimator | None = None,
    ) -> None:
        """`params` by name, as JSON has them. `selections` are what the user was on, the latest first. `layers` is how many the model
        has, for suggestions; without it the config of the first checkpoint says. `plugins` and `estimate` stand in for those of this
        process and for the service."""
        super().__init__()
        self.analysis_id = analysis_id
        self._given_checkpoints = tuple(checkpoints)
        self._given_params = dict(params or {})
        self._given_host = {DEVICE: device, DTYPE: dtype, SEED: None if seed is None else str(seed)}
        self._selections = tuple(selections)
        self._layers = layers
        self._plugins = plugins or shared_plugins()
        self._service = ServiceEstimator()
        self._estimate: Estimator = estimate or self._service
        self._loaded: Loaded | None = None
        self._checked: Checked | None = None
        self._last: Mapping[str, str | bool] = {}
        """What was used last."""
        self._filled_in: Mapping[str, str | bool | None] = {}
        """What it was opened with."""
        self._is_due = False
        """Something has changed since it was checked."""
        self._handed_over: Checked | None = None
        self._handed_over_at = 0.0

    # What is on the screen

    def compose(self) -> ComposeResult:
        yield Static(plain(self.analysis_id, 200), id="title")
        yield Static(id="summary")
        yield Static(plain(f"loading {self.analysis_id} ...", 200), id="state")
        yield _Lines(id="fields")
        with Vertical(id="below"):
            yield Static(id="about")
            yield Static(id="whole")
            yield EstimateLine(id="estimate")
            yield Static(id="command")
        yield Footer()

    def on_mount(self) -> None:
        """Load the plugin."""
        self.query_one("#fields").display = False
        self.query_one("#below").display = False
        self._load()

    async def on_unmount(self) -> None:
        """The connection is not needed any more."""
        await self._service.close()

    @work(exclusive=True, exit_on_error=False, group="load")
    async def _load(self) -> None:
        try:
            loaded, entries, values = await self._plugins.ask(self._looked_up)
        except MscopeError as error:
            self._show_state(plain(str(error), _LONGEST, "$error"))
            return
        await self._show_form(loaded, entries, values)

    def _looked_up(self, host: PluginHost) -> tuple[Loaded, list[Entry], dict[str, str | bool]]:
        """The analysis, its lines, and what stands in them. Called in the thread of plugins."""
        from modelscope_app.plugin_host import param_fields

        bound = host.analysis(self.analysis_id)
        loaded = Loaded(bound, param_fields(bound.analysis.params))
        layers = self._layers
        if layers is None and self._given_checkpoints and any(field.meaning and field.meaning.kind == "site" for field in loaded.fields):
            layers = checking.layers_of(self._given_checkpoints[0])
        entries = [param_entry(field, sites_of(layers or 0)) for field in loaded.fields]
        return loaded, entries, kept_values.last_used(bound.id, bound.analysis.version)

    async def _show_form(self, loaded: Loaded, entries: Sequence[Entry], last: Mapping[str, str | bool]) -> None:
        self._loaded = loaded
        analysis = loaded.bound.analysis
        self.query_one("#title", Static).update(Content.assemble(plain(analysis.title, 60), "  ", plain(loaded.bound.id, 80, "dim")))
        self.query_one("#summary", Static).update(plain(analysis.summary, 300))
        given = {name.replace("-", "_"): value for name, value in self._given_params.items()}
        values: dict[str, str | bool | None] = dict(last)
        values |= {entry.key: typed_text(entry, given[entry.key]) for entry in entries if entry.key in given}
        host_given = {key: value for key, value in self._given_host.items() if value is not None}
        values |= host_given
        fields = self.query_one("#fields")
        given_checkpoints = () if analysis.checkpoints.maximum == 0 else self._given_checkpoints
        await fields.mount(*self._checkpoint_fields(given_checkpoints))
        await fields.mount(*[Field(entry, values.get(entry.key)) for entry in entries])
        if not entries:
            await fields.mount(Static(plain("it takes no options", style="dim")))
        host = [Field(entry, values.get(entry.key)) for entry in host_entries(())]
        await fields.mount(Collapsible(*host, title="where and how", id="host", collapsed=True))
        self._last = last
        self._filled_in = {field.entry.key: field.value for field in self._fields() if field.entry.key in given.keys() | host_given.keys()}
        unknown = sorted(given.keys() - {entry.key for entry in entries})
        if unknown:
            self.notify(f"it has no option {unknown[0]!r}"[:200], severity="warning", markup=False)
        self.query_one("#state").display = False
        fields.display = True
        self.query_one("#below").display = True
        first = next((field for field in self._fields() if not field.value and field.entry.required), next(iter(self._fields()), None))
        if first is not None:
            first.control.focus()
        self._changed()

    def _checkpoint_fields(self, paths: Sequence[str]) -> list[Field]:
        assert self._loaded is not None
        takes = self._loaded.bound.analysis.checkpoints
        entries = checkpoint_entries(takes, len(paths))
        return [Field(entry, paths[position] if position < len(paths) else None) for position, entry in enumerate(entries)]

    def _show_state(self, content: Content) -> None:
        self.query_one("#state", Static).update(content)

    def _fields(self) -> list[Field]:
        return list(self.query(Field))

    def _field(self, key: str) -> Field | None:
        return next((field for field in self._fields() if field.entry.key == key), None)

    def _checkpoint_rows(self) -> list[Field]:
        return [field for field in self._fields() if field.entry.key.startswith(f"{CHECKPOINTS} ")]

    def _param_rows(self) -> list[Field]:
        return [field for field in self._fields() if not field.entry.key.startswith(f"{CHECKPOINTS} ") and not _is_of_host(field)]

    # Changes and checks

    @on(Field.Edited)
    def _edited(self, event: Field.Edited) -> None:
        event.stop()
        self._changed()
        self._offer_another_checkpoint()

    def _changed(self) -> None:
        self._is_due = True
        self._check()

    @work(exclusive=True, exit_on_error=False, group="check")
    async def _check(self) -> None:
        """Checked at once, estimated when nothing has changed for a while."""
        await self._check_now()
        checked = self._checked
        if checked is None or not checked.is_right:
            return
        line = self.query_one(EstimateLine)
        line.say_asking()
        await asyncio.sleep(ESTIMATE_AFTER_SECONDS)
        try:
            line.say(await self._estimate(self.analysis_id, checked))
        except (MscopeError, OSError) as error:
            line.say_failed(error)

    async def _check_now(self) -> None:
        loaded = self._loaded
        if loaded is None:
            return
        asked = self._asked()
        self._is_due = False
        try:
            checked = await self._plugins.ask(lambda host: checking.checked(loaded, asked))
        except MscopeError as error:
            checked = Checked({WHOLE: str(error)})
        except asyncio.CancelledError:
            self._is_due = True
            raise
        self._show_checked(checked)

    def _asked(self) -> Asked:
        values = {field.entry.key: value for field in self._param_rows() if (value := field.value) is not None}
        host = {key: field.text for key in (DEVICE, DTYPE, SEED) if (field := self._field(key)) is not None}
        rows = [field.text for field in self._checkpoint_rows()]
        return Asked(values, rows, host.get(DEVICE) or "auto", host.get(DTYPE) or "auto", host.get(SEED) or "0")

    def _show_checked(self, checked: Checked) -> None:
        self._checked = checked
        for field in self._fields():
            field.say(checked.problems.get(field.entry.key))
        whole = [checked.problems[key] for key in (CHECKPOINTS, WHOLE) if key in checked.problems]
        line = self.query_one("#whole", Static)
        line.display = bool(whole)
        line.update(plain("; ".join(whole), 600))
        self._show_host(checked)
        if checked.is_right:
            self.query_one("#command", Static).update(plain(f"$ {checked.command}", _LONGEST))
        else:
            self.query_one(EstimateLine).say_wrong(len(checked.problems))
            self.query_one("#command", Static).update("")

    def _show_host(self, checked: Checked) -> None:
        """What the folded lines say, in their heading."""
        rows = [field for field in self._fields() if _is_of_host(field)]
        if any(field.entry.key in checked.problems for field in rows):
            sign = "! "
        else:
            sign = "* " if any(field.is_changed for field in rows) else ""
        values = ", ".join(f"{field.entry.label} {field.text or field.entry.default_text}" for field in rows)
        self.query_one("#host", Collapsible).title = plain(f"{sign}where and how: {values}", 100)  # type: ignore[assignment]

    def _offer_another_checkpoint(self) -> None:
        """Where more are taken than there are lines for, there is always an empty one."""
        rows = self._checkpoint_rows()
        if self._loaded is None or not rows or any(not field.text for field in rows):
            return
        takes = self._loaded.bound.analysis.checkpoints
        entries = checkpoint_entries(takes, len(rows))
        if len(entries) > len(rows):
            self.query_one("#fields").mount(Field(entries[-1]), after=rows[-1])

    @on(DescendantFocus)
    def _focused(self) -> None:
        field = self._focused_field()
        about = self.query_one("#about", Static)
        about.update(_lines(field.about()) if field is not None else "", layout=False)  # its height is fixed

    def _focused_field(self) -> Field | None:
        node = self.focused
        while node is not None and node is not self:
            if isinstance(node, Field):
                return node
            node = node.parent  # type: ignore[assignment]
        return None

    # Keys

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """Only what can be done is offered."""
        if action == "pick":
            field = self._focused_field()
            return field is not None and field.entry.is_pickable
        if action in ("run", "save_preset", "load_preset", "defaults"):
            return self._loaded is not None
        return True

    @on(Input.Submitted)
    def _entered(self, event: Input.Submitted) -> None:
        """Enter in a line leads to the one below."""
        event.stop()
        self.focus_next()

    def action_next_field(self) -> None:
        """To the line below."""
        self.focus_next()

    def action_previous_field(self) -> None:
        """To the line above."""
        self.focus_previous()

    @work(exclusive=True, exit_on_error=False, group="run")
    async def action_run(self) -> None:
        """Hand the job to the app, which takes the form away once the service has it; while something is wrong, go there instead."""
        if self._is_due or self._checked is None:
            await self._check_now()
        checked = self._checked
        if checked is None:
            return
        if not checked.is_right:
            self._go_to_first_problem(checked, "run")
            return
        now = time.monotonic()
        if checked == self._handed_over and now - self._handed_over_at < _TWICE_SECONDS:
            return
        self._handed_over, self._handed_over_at = checked, now
        self.keep_typed()
        self.app.post_message(JobAsked(self.analysis_id, checked.checkpoints, checked.params, checked.device, checked.dtype, checked.seed))

    def _go_to_first_problem(self, checked: Checked, doing: str) -> None:
        wrong = next((field for field in self._fields() if field.problem), None)
        sentence = wrong.problem if wrong is not None else "; ".join(checked.problems.values())
        self.notify(f"cannot {doing}: {sentence}"[:400], severity="error", markup=False)
        if wrong is not None:
            if _is_of_host(wrong):
                self.query_one("#host", Collapsible).collapsed = False
            self.call_after_refresh(wrong.control.focus)

    def action_leave(self) -> None:
        """Back; what was typed is there again next time."""
        self.dismiss()

    @on(ScreenSuspend)
    def _left(self) -> None:
        """Another screen is shown, whichever way."""
        self.keep_typed()

    def keep_typed(self) -> None:
        """Remember what differs from the defaults, but for what nobody typed: a tensor of this checkpoint says nothing of the next."""
        if self._loaded is None:
            return
        rows = [field for field in self._fields() if field.entry.pick not in ("checkpoint", "series")]
        values = {field.entry.key: value for field in rows if (value := field.value) is not None and value != field.entry.default}
        for key in [field.entry.key for field in rows if field.value == self._filled_in.get(field.entry.key, _TYPED)]:
            values.pop(key, None)
            if key in self._last:
                values[key] = self._last[key]
        bound = self._loaded.bound
        try:
            kept_values.keep_last_used(bound.id, bound.analysis.version, values)
        except (OSError, MscopeError) as error:
            self.notify(f"what you typed cannot be kept ({error})"[:400], severity="warning", markup=False)

    def action_defaults(self) -> None:
        """Every option as if nobody had typed anything; checkpoints stay."""
        for field in self._fields():
            if not field.entry.key.startswith(f"{CHECKPOINTS} "):
                field.fill(None)

    # Choosing

    @on(Field.PickAsked)
    def _pick_clicked(self, event: Field.PickAsked) -> None:
        event.stop()
        event.field.control.focus()
        pick(event.field, self._selections)

    def action_pick(self) -> None:
        """Choose the value of this line from a list."""
        field = self._focused_field()
        if field is not None:
            pick(field, self._selections)

    # Presets

    @work(exclusive=True, exit_on_error=False, group="preset")
    async def action_save_preset(self) -> None:
        """Under a name, as a file that `mscope run --params` reads."""
        if self._is_due or self._checked is None:
            await self._check_now()
        checked, loaded = self._checked, self._loaded
        if checked is None or loaded is None:
            return
        names = {field.name for field in loaded.fields}
        if names & checked.problems.keys() or WHOLE in checked.problems:
            self._go_to_first_problem(checked, "be saved")
            return
        asked = self._asked()
        try:
            params = await self._plugins.ask(lambda host: checking.changed_params(loaded, asked))
            name = await self.app.push_screen_wait(NameAsked(f"Save these options of {self.analysis_id} as", self._about_name))
            if name is not None:
                path = kept_values.save_preset(self.analysis_id, name, params)
                self.notify(f"saved; mscope run {self.analysis_id} --params '{path}' uses it too", markup=False)
        except MscopeError as error:
            self.notify(str(error)[:400], severity="error", markup=False)

    def _about_name(self, name: str) -> tuple[bool, str]:
        try:
            path = kept_values.preset_path(self.analysis_id, name)
        except MscopeError as error:
            return False, str(error)
        return True, f"{'replaces' if path.exists() else 'becomes'} {path}"

    def action_load_preset(self) -> None:
        """Fill the form from a preset."""
        folder = kept_values.preset_folder(self.analysis_id)
        chooser = Chooser(
            f"Presets of {self.analysis_id}",
            lambda: [Line(name, name) for name in kept_values.presets(self.analysis_id)],
            f"no preset yet; ctrl+s in the form saves one, in {folder}",
            lambda name: kept_values.delete_preset(self.analysis_id, name),
        )
        self.app.push_screen(chooser, self._use_preset)

    def _use_preset(self, name: str | None) -> None:
        if name is None:
            return
        try:
            values = kept_values.read_preset(self.analysis_id, name)
        except MscopeError as error:
            self.notify(str(error)[:400], severity="error", markup=False)
            return
        rows = self._param_rows()
        for field in rows:
            field.fill(typed_text(field.entry, values[field.entry.key]) if field.entry.key in values else None)
        unknown = sorted(values.keys() - {field.entry.key for field in rows})
        if unknown:
            self.notify(f"the preset has an option {unknown[0]!r} that there is not any more"[:200], severity="warning", markup=False)

    # What the app asks of it

    def headless_command(self) -> str | None:
        """What `c` copies: the command that does the same."""
        return self._checked.command if self._checked is not None else None

    def copied(self) -> Copied | None:
        """What `y` copies."""
        command = self.headless_command()
        return None if command is None else Copied(command, "the command")

    def explanation(self) -> Explanation:
        """For `?`."""
        return Explanation(
            "The form of an analysis",
            "Each line is an option: * differs from its default, ! is wrong. Below stand what the option means, whether the job would "
            "fit into memory now, and the command that does the same. Ctrl+r runs it; escape leaves, and what was typed is kept.",
        )


def _is_of_host(field: Field) -> bool:
    return field.entry.key in (DEVICE, DTYPE, SEED)


def _lines(text: str) -> Content:
    return Content("\n").join(plain(line, 500) for line in text.split("\n"))

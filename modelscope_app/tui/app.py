"""The terminal app: which screen is shown, what the service says, and what is done with what widgets ask for.

Widgets post messages (`messages`); the handlers here own the state. Nothing of this imports torch, polars or a plugin until it is
needed, so a checkpoint's overview is on the screen before any of them. What happens when things fail:

- a part of a plugin raises: its error stands in its place (`fence`), the app goes on;
- the service is not there: the bar at the bottom says so, and the first job starts it;
- the terminal goes away or the app is killed: jobs go on, because they are the service's.
"""

from __future__ import annotations

import asyncio
import gc
import select
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from textual.binding import Binding
from textual.keys import Keys, format_key, key_to_character
from textual.message import Message
from textual.reactive import var

from modelscope_app.api import BadInput, ExitCode, MscopeError, neutralised
from modelscope_app.tui.checkpoint.early import EarlyReading, is_run_folder
from modelscope_app.tui.everywhere import EverywhereApp, Severity
from modelscope_app.tui.jobs.snapshot import JobsSnapshot, follow
from modelscope_app.tui.messages import (
    AnalysisChosen,
    CheckpointOpened,
    JobAsked,
    JobCancelled,
    ModelsUnloaded,
    RunOpened,
    RunResumed,
    RunsCompared,
)
from modelscope_app.tui.run.panels import next_panel
from modelscope_app.tui.themes import DEFAULT_THEME, SIXTEEN_COLOURS, THEMES

if TYPE_CHECKING:
    from textual.screen import Screen

    from modelscope_app.api import FinishedRun
    from modelscope_app.jobs.client import AsyncClient
    from modelscope_app.runs.folder import RunFolder
    from modelscope_app.tui.palette import EverythingProvider


@dataclass(frozen=True, slots=True)
class AppSettings:
    """`[tui]` of the settings as the app needs them; reading no file, they cost no import of pydantic."""

    theme: str = "auto"
    mouse: bool = True
    updates_per_second: float = 4.0
    keys: Mapping[str, str] = field(default_factory=dict)


_TERMINAL_SECONDS = 2.0

KEY_IDS = ("help", "palette", "copy", "command", "export", "use", "jobs", "library", "panel", "quit")
"""What `tui.keys` can give other keys."""


_TAKEN_KEYS = frozenset({"escape", "enter", "tab", "shift+tab", "up", "down", "left", "right", "backspace", "space", "ctrl+i", "ctrl+m"})
_MODIFIERS = ("ctrl+", "shift+", "alt+", "super+", "meta+", "hyper+")
_NAMED_KEYS = frozenset(key.value for key in Keys)


def _is_key(key: str) -> bool:
    """Whether a keyboard has it; textual takes every name of a character, U+1F34C BANANA too."""
    while key.startswith(_MODIFIERS):
        key = key.partition("+")[2]
    character = key if len(key) == 1 else key_to_character(key)
    return key in _NAMED_KEYS or (character is not None and character.isprintable() and (character.isascii() or character.isalpha()))


def terminal_is_gone(descriptor: int = 0) -> bool:
    """Whether the other side of a terminal was closed."""
    poll = select.poll()
    poll.register(descriptor, 0)
    return any(happened & (select.POLLHUP | select.POLLERR | select.POLLNVAL) for _, happened in poll.poll(0))


def _provider() -> type[EverythingProvider]:
    from modelscope_app.tui.palette import EverythingProvider

    return EverythingProvider


class ImpatientThreads(ThreadPoolExecutor):
    """Threads that quitting does not wait for: a plugin whose import hangs must not keep the app open."""

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        super().shutdown(wait=False, cancel_futures=True)


class MscopeApp(EverywhereApp):
    """Shows `start`: a checkpoint, a run folder, or the library where it is None."""

    TITLE = "mscope"
    ENABLE_COMMAND_PALETTE = True
    COMMANDS = {_provider}
    BINDINGS = [
        Binding("ctrl+p", "command_palette", "Everything", id="palette", priority=True, show=False),
        Binding("J", "jobs", "Jobs", id="jobs"),
        Binding("L", "library", "Library", id="library"),
        Binding("p", "next_panel", "Panel", id="panel"),
        Binding("ctrl+q", "quit_app", "Quit", id="quit", priority=True),
    ]
    CSS = """
    Screen { layers: base overlay; }
    """

    snapshot: var[JobsSnapshot] = var(JobsSnapshot)
    """What the service said last."""

    class Told(Message):
        """The service was asked for something; this came of it."""

        def __init__(
            self, sentence: str, severity: Severity = "information", run: Path | None = None, instead_of: Screen[Any] | None = None
        ) -> None:
            """`run` is shown where it is given, `instead_of` a screen where that is still on top."""
            self.sentence, self.severity, self.run, self.instead_of = sentence, severity, run, instead_of
            super().__init__()

    def __init__(self, start: str | None = None, settings: AppSettings | None = None, early: EarlyReading | None = None) -> None:
        """`early` is reading `start` already. Raises BadInput for a theme or a key id in the settings that there is none of."""
        super().__init__()
        self.settings = settings or AppSettings()
        self._early = early
        self.animation_level = "none"
        for theme in THEMES:
            self.register_theme(theme)
        self.theme = self._theme_wanted()
        self._use_keys(self.settings.keys)
        self.start = start
        self._nudge = asyncio.Event()
        self._asked_by_panels: set[str] = set()
        """Runs whose end a panel shows."""

    def _theme_wanted(self) -> str:
        if self.settings.theme != "auto":
            if self.settings.theme not in self.available_themes:
                raise BadInput(f"tui.theme = {self.settings.theme!r} in config.toml: there are {', '.join(sorted(self.available_themes))}")
            return self.settings.theme
        return SIXTEEN_COLOURS if self.console.color_system in ("standard", "windows") else DEFAULT_THEME

    def _use_keys(self, keys: Mapping[str, str]) -> None:
        """Instead of `set_keymap`, which comes too late for a key that a text field does not take: J is gone from it by then."""
        if unknown := sorted(set(keys) - set(KEY_IDS)):
            raise BadInput(f"tui.keys.{unknown[0]} in config.toml: there is no such id; there are {', '.join(KEY_IDS)}")
        given = self._normalize_keymap(keys)
        for name, keys_of_it in given.items():
            for key, typed in zip(keys_of_it.split(","), keys[name].split(","), strict=True):
                if not (_is_key(key) or (len(typed.strip()) == 1 and typed.strip().isprintable())):
                    raise BadInput(f"tui.keys.{name} = {keys[name]!r} in config.toml: {key!r} is no key; f5, ctrl+l, J or ? would be some")
                if key in _TAKEN_KEYS:
                    raise BadInput(f"tui.keys.{name} = {keys[name]!r} in config.toml: {key} means something on every screen; take another")
        taken: dict[str, str] = {}
        for key, binding in self._bindings:
            if binding.id not in given and not binding.system:  # f1 and f3 have no id, and mean what ? and c do
                taken[key] = binding.id or {"copy_command": "command"}.get(binding.action, binding.action)
        for name, keys_of_it in given.items():
            for key in keys_of_it.split(","):
                if (other := taken.setdefault(key, name)) != name:
                    raise BadInput(
                        f"tui.keys in config.toml: {format_key(key)} would be both {other} and {name}; give each a key of its own"
                    )
        self._bindings.apply_keymap(given)

    def on_load(self) -> None:
        """Before the terminal is taken."""
        asyncio.get_running_loop().set_default_executor(ImpatientThreads(max_workers=8, thread_name_prefix="mscope"))

    async def on_mount(self) -> None:
        """The first screen, then the service."""
        if self.start is None:
            await self.action_library()
        elif is_run_folder(self.start):
            self.open_run(Path(self.start).absolute())
        else:
            await self._show_checkpoint(self.start, self._early)
        self.call_after_refresh(self._begin_to_follow)

    def _end_without_terminal(self) -> None:
        """Where the terminal is gone and no signal said so, there is nobody to show anything to."""
        if terminal_is_gone():
            self.exit(return_code=ExitCode.HANGUP)

    def _begin_to_follow(self) -> None:
        if not self.is_headless:
            self.set_interval(_TERMINAL_SECONDS, self._end_without_terminal)
        gc.freeze()
        gc.enable()
        self.run_worker(
            follow(self._seen, self._nudge, 1 / self.settings.updates_per_second), group="follow", exclusive=True, exit_on_error=False
        )

    # What the service says

    def _seen(self, snapshot: JobsSnapshot) -> None:
        ended = {job.run for job in snapshot.jobs if job.is_final} & {job.run for job in self.snapshot.active}
        for job in snapshot.jobs:
            if job.run in ended - self._asked_by_panels:
                severity: Severity = "information" if job.state == "done" else "warning"
                said = f": {job.error}" if job.error and job.state != "done" else ""
                self.tell(f"{neutralised(job.analysis)} {job.state}{neutralised(said, 300)}", severity)
        if ended:
            for screen in self.screen_stack:
                refresh = getattr(screen, "refresh_runs", None)
                if refresh is not None:
                    refresh()
        self.snapshot = snapshot

    def watch_snapshot(self, snapshot: JobsSnapshot) -> None:
        """Every screen that shows jobs."""
        for screen in self.screen_stack:
            if hasattr(screen, "snapshot"):
                screen.snapshot = snapshot

    def ask_service(self, question: Callable[[AsyncClient], Coroutine[Any, Any, MscopeApp.Told]]) -> None:
        """Ask in the background; what comes of it is told."""

        async def asked() -> None:
            from modelscope_app.jobs.client import AsyncClient

            try:
                async with AsyncClient() as client:
                    self.post_message(await question(client))
            except MscopeError as error:
                self.post_message(self.Told(str(error), "error"))
            except Exception as error:
                self.post_message(self.Told(f"internal error ({type(error).__name__}: {error})", "error"))
            self._nudge.set()

        self.run_worker(asked(), exit_on_error=False, group="ask")

    def on_mscope_app_told(self, event: Told) -> None:
        """Say it, and show the run."""
        if event.sentence:
            self.tell(event.sentence, event.severity)
        if event.run is not None:
            self.open_run(event.run, event.instead_of)

    # What panels of plugins may ask for (`api.PanelApp`)

    async def submit_job(self, analysis: str, checkpoints: Sequence[str], params: Mapping[str, Any]) -> RunFolder:
        """Give a job to the service; its run, as soon as it is accepted. Raises MscopeError."""
        from modelscope_app.jobs.client import AsyncClient
        from modelscope_app.runs.folder import RunFolder

        try:
            async with AsyncClient() as client:
                job = await client.submit(analysis, checkpoints, params)
        finally:
            self._nudge.set()
        self._asked_by_panels.add(job.run)
        if job.warnings:
            self.tell("; ".join(job.warnings), "warning")
        return await asyncio.to_thread(RunFolder.open, Path(job.folder))

    async def cancel_job(self, run: FinishedRun) -> None:
        """Ask the service to stop it, unless it has ended. Raises MscopeError."""
        from modelscope_app.jobs.answers import Busy, NotRunning, UnknownRun
        from modelscope_app.jobs.client import AsyncClient

        try:
            async with AsyncClient(start=False) as client:
                with suppress(Busy, NotRunning, UnknownRun):
                    await client.cancel(run.id)
        finally:
            self._nudge.set()

    # What widgets ask for

    async def on_checkpoint_opened(self, event: CheckpointOpened) -> None:
        await self._show_checkpoint(event.path)

    def on_run_opened(self, event: RunOpened) -> None:
        self.open_run(event.folder)

    def on_runs_compared(self, event: RunsCompared) -> None:
        from modelscope_app.tui.run.compare import CompareScreen

        self.push_screen(CompareScreen(event.left, event.right))

    def on_analysis_chosen(self, event: AnalysisChosen) -> None:
        self.choose_analysis(event.analysis, event.checkpoints, event.params, device=event.device, dtype=event.dtype, seed=event.seed)

    def on_job_asked(self, event: JobAsked) -> None:
        """Give it to the service; the form goes when it was taken."""
        form = self.screen

        async def submit(client: AsyncClient) -> MscopeApp.Told:
            job = await client.submit(
                event.analysis, event.checkpoints, event.params, device=event.device, dtype=event.dtype, seed=event.seed
            )
            warnings = "; ".join(job.warnings)
            return self.Told(warnings, "warning", Path(job.folder), form)

        self.ask_service(submit)

    def on_job_cancelled(self, event: JobCancelled) -> None:
        """Ask the user first."""
        from modelscope_app.tui.dialogs.question import Question

        async def cancel(client: AsyncClient) -> MscopeApp.Told:
            job = await client.cancel(event.run)
            return self.Told(f"{event.what}: {job.state}")

        def answered(yes: bool | None) -> None:
            if yes:
                self.ask_service(cancel)

        text = f"Cancel {event.what}? What it has saved stays; ctrl+r on its page, or `mscope runs resume`, goes on from there."
        self.push_screen(Question(text, "Cancel the job", "Leave it running"), answered)

    def on_run_resumed(self, event: RunResumed) -> None:
        """It goes on from what it has saved."""

        async def resume(client: AsyncClient) -> MscopeApp.Told:
            job = await client.resume(event.folder)
            return self.Told(f"{event.what}: {job.state} again")

        self.ask_service(resume)

    def on_models_unloaded(self, event: ModelsUnloaded) -> None:
        """Resident models leave their devices; jobs that run keep theirs."""

        async def unload(client: AsyncClient) -> MscopeApp.Told:
            gone = await client.unload()
            return self.Told(f"{gone} resident model{'' if gone == 1 else 's'} unloaded")

        self.ask_service(unload)

    # Screens

    async def _show_checkpoint(self, path: str, early: EarlyReading | None = None) -> None:
        from modelscope_app.tui.workspace import WorkspaceScreen

        await self._only_base()
        await self.push_screen(WorkspaceScreen(path, self.snapshot, early))

    def open_run(self, folder: Path, instead_of: Screen[Any] | None = None) -> None:
        """Show a run, in the place of a screen where that one is on top."""
        from modelscope_app.tui.run.screen import RunScreen

        screen = RunScreen(folder)
        screen.set_reactive(RunScreen.snapshot, self.snapshot)
        if self.screen is instead_of:
            self.switch_screen(screen)
        else:
            self.push_screen(screen)

    def choose_analysis(
        self,
        analysis: str,
        checkpoints: Sequence[str] = (),
        params: Mapping[str, Any] | None = None,
        *,
        device: str | None = None,
        dtype: str | None = None,
        seed: int | None = None,
    ) -> None:
        """Show the form of an analysis; without `checkpoints`, on the open one."""
        from modelscope_app.tui.forms.screen import FormScreen

        given = tuple(checkpoints) or ((self.checkpoint,) if self.checkpoint else ())
        latest = tuple(reversed(self.selected.values()))
        self.push_screen(FormScreen(analysis, given, dict(params or {}), selections=latest, device=device, dtype=dtype, seed=seed))

    async def action_library(self) -> None:
        """The library, whatever is open."""
        from modelscope_app.tui.library.screen import LibraryScreen

        if isinstance(self.screen, LibraryScreen):
            return
        await self._only_base()
        screen = LibraryScreen()
        await self.push_screen(screen)
        if hasattr(screen, "snapshot"):
            screen.snapshot = self.snapshot

    def action_next_panel(self) -> None:
        """The next panel of the run on the screen, its content with the keyboard."""
        from modelscope_app.tui.run.screen import RunScreen

        number = next_panel(self.screen)
        if number is not None and isinstance(self.screen, RunScreen):
            self.screen.action_tab(number)

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """Panels only where there are some."""
        return next_panel(self.screen) is not None if action == "next_panel" else super().check_action(action, parameters)

    def action_jobs(self) -> None:
        """The jobs screen, once."""
        from modelscope_app.tui.jobs.screen import JobsScreen

        if isinstance(self.screen, JobsScreen):
            return
        screen = JobsScreen()
        screen.set_reactive(JobsScreen.snapshot, self.snapshot)
        self.push_screen(screen)

    async def action_back(self) -> None:
        """The screen below; from a checkpoint the library, and from there nothing."""
        if len(self.screen_stack) > 2:
            self.pop_screen()
        else:
            await self.action_library()

    async def _only_base(self) -> None:
        while len(self.screen_stack) > 1:
            await self.pop_screen()

    # The checkpoint that is open

    @property
    def checkpoint(self) -> str | None:
        """Absolute path of the one that is open."""
        for screen in reversed(self.screen_stack):
            path = getattr(screen, "checkpoint_path", None)
            if isinstance(path, str):
                return path
        return None

    def tensor_names(self) -> Iterable[str]:
        """Of the open checkpoint, for the palette."""
        for screen in reversed(self.screen_stack):
            names = getattr(screen, "tensor_names", None)
            if names is not None:
                return tuple(names())
        return ()

    async def show_tensor(self, name: str) -> None:
        """A tensor of the open checkpoint."""
        from modelscope_app.tui.workspace import WorkspaceScreen

        while not isinstance(self.screen, WorkspaceScreen) and len(self.screen_stack) > 2:
            await self.pop_screen()
        if isinstance(self.screen, WorkspaceScreen):
            self.screen.show_tensor(name)

    # Leaving

    def action_quit_app(self) -> None:
        """Jobs go on, and what was typed into a form is there again next time."""
        for screen in self.screen_stack:
            keep = getattr(screen, "keep_typed", None)
            if keep is not None:
                keep()
        self.exit()

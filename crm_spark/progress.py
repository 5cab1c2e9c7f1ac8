"""What a person sees of a run: stages with their times at a terminal, one line a stage in a log file."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn


class RunProgress:
    """Reports stages to standard error; use as a context manager around a whole run."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(file=sys.stderr, highlight=False)
        self._bars = Progress(
            SpinnerColumn(),
            TextColumn("{task.description:<9}"),
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[step]}"),
            console=self._console,
            disable=not self._console.is_terminal,
        )

    def __enter__(self) -> "RunProgress":
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bars.stop()

    @contextmanager
    def stage(self, name: str, step_count: int) -> Iterator["StageProgress"]:
        stage = StageProgress(self._bars, name, step_count)
        started = time.monotonic()
        yield stage
        seconds = time.monotonic() - started
        stage.finish()
        if not self._console.is_terminal:
            self._console.print(f"{name}: {stage.summary()}, {seconds:.1f} s", soft_wrap=True)

    def say(self, text: str) -> None:
        self._console.print(text, soft_wrap=True, markup=False)


class StageProgress:
    """One stage: a bar over its tables."""

    def __init__(self, bars: Progress, name: str, step_count: int) -> None:
        self._bars = bars
        self._bar = bars.add_task(name, total=step_count, step="")
        self._written = self._unchanged = 0
        self._told = ""

    def begin(self, step: str) -> None:
        self._bars.update(self._bar, step=step)

    def end(self, changed: bool) -> None:
        self._written += changed
        self._unchanged += not changed
        self._bars.advance(self._bar)

    def tell(self, text: str) -> None:
        """Say more of what the stage did in its last line."""
        self._told = f"; {text}"

    def finish(self) -> None:
        done = self._written + self._unchanged  # a stage has no tables for entities without a source
        self._bars.update(self._bar, step=self.summary(), total=done)

    def summary(self) -> str:
        return f"{self._written} tables written, {self._unchanged} unchanged{self._told}"

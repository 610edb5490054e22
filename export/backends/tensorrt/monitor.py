"""Shows the phases of an engine's build, and stops it when the user interrupts.

The builder works in a thread of its own and lets Python run meanwhile; the thread that asked shows
progress and gets Ctrl-C.
"""

import queue
import threading
from collections.abc import Callable, Iterator
from typing import Any, Literal, NamedTuple

from compressor.progress import Progress

# Phases nest: the whole build, its steps, and below them what takes the time.
SHOWN_DEPTH = 2


class _Event(NamedTuple):
    kind: Literal["start", "step", "end"]
    phase: str
    total: int = 0


class Monitored:
    """One build whose phases are shown.

    Args:
        trt: the TensorRT package.
        progress: shows the phases.
        label: what is built.
    """

    def __init__(self, trt: Any, progress: Progress, label: str) -> None:
        self._events: queue.SimpleQueue[_Event | None] = queue.SimpleQueue()
        self._progress, self._label = progress, label
        self._stop = threading.Event()
        self.monitor = _monitor(trt, self._events, self._stop)

    def run(self, build: Callable[[], Any]) -> Any:
        """Return what `build` returns.

        Raises:
            KeyboardInterrupt: the user interrupted; the builder was told, and has stopped.
        """
        outcome: list[Any] = []
        failure: list[BaseException] = []

        def work() -> None:
            try:
                outcome.append(build())
            except BaseException as error:  # noqa: BLE001 - raised again where the user waits
                failure.append(error)
            finally:
                self._events.put(None)

        worker = threading.Thread(target=work, name="engine builder")
        worker.start()
        try:
            self._show()
        finally:
            self._stop.set()
            worker.join()
        if failure:
            raise failure[0]
        return outcome[0]

    def _show(self) -> None:
        while (event := self._events.get()) is not None:
            if event.kind == "start":
                steps = self._steps(event.phase)
                label = f"{self._label}: {event.phase.lower()}"
                for _ in self._progress.track(steps, label, event.total):
                    pass

    def _steps(self, phase: str) -> Iterator[_Event]:
        """Yield the steps of one phase; what other phases do meanwhile is not shown."""
        while (event := self._events.get()) is not None:
            if event.phase == phase:
                if event.kind == "end":
                    return
                yield event
        self._events.put(None)  # the build was over in the middle of a phase


def _monitor(trt: Any, events: "queue.SimpleQueue[_Event | None]", stop: threading.Event) -> Any:
    """Return the builder's monitor; the class is made late, because its base needs the package."""

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.depths: dict[str, int] = {}

        def phase_start(self, name: str, parent: str | None, steps: int) -> None:
            self.depths[name] = self.depths.get(parent, 0) + 1 if parent else 0
            if self.depths[name] == SHOWN_DEPTH:
                events.put(_Event("start", name, steps))

        def phase_finish(self, name: str) -> None:
            if self.depths.get(name) == SHOWN_DEPTH:
                events.put(_Event("end", name))

        def step_complete(self, name: str, step: int) -> bool:  # noqa: ARG002
            if self.depths.get(name) == SHOWN_DEPTH:
                events.put(_Event("step", name))
            return not stop.is_set()

    return Monitor()

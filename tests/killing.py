"""A process that has loaded torch once and forks a child for every run that is to be killed.

Reads one JSON request a line: {"run": arguments, "after": seconds or null}. Runs the command line in a
forked child, kills it with SIGKILL after that time, and answers one JSON line: how it ended and how long it
took. A module is traced once (`tests.traced`): more of the kills of an export then hit its work on files.
The parent starts no threads and runs no model, so that forking it is safe. A child that ran to its end
names the modules it has loaded; the parent loads them too, so that the next child does not have to.
"""

import contextlib
import importlib
import json
import os
import signal
import sys
import time
import traceback
from pathlib import Path


def child(arguments: list[str], log: Path, modules: Path) -> None:
    """Run the command line and never return."""
    code = 99
    try:
        with log.open("w") as out:
            os.dup2(out.fileno(), 1)
            os.dup2(out.fileno(), 2)
        import compressor.calibration.run
        from vtcompress.cli.main import run_command

        compressor.calibration.run.SAVE_EVERY_SECONDS = 0.0  # after every sample
        code = run_command(arguments)
        modules.write_text("\n".join(sys.modules))
    except BaseException:  # noqa: BLE001 - a child must never return into the parent's loop
        traceback.print_exc()
        sys.stderr.flush()
    finally:
        os._exit(code)


def wait(pid: int, after: float | None) -> tuple[str, int]:
    """Wait for a child, or kill it after some seconds; return how it ended."""
    end = None if after is None else time.monotonic() + after
    while end is None or time.monotonic() < end:
        done, status = os.waitpid(pid, 0 if end is None else os.WNOHANG)
        if done:
            return "ended", os.waitstatus_to_exitcode(status)
        time.sleep(0.002)
    os.kill(pid, signal.SIGKILL)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return ("killed" if code == -signal.SIGKILL else "ended"), code


def main(scratch: Path, traces: Path) -> None:
    """Answer requests until stdin ends."""
    import torch

    from tests import traced

    traced.install(traces)
    torch.set_num_threads(1)
    log, modules = scratch / "log", scratch / "modules"
    for line in sys.stdin:
        request = json.loads(line)
        start = time.monotonic()
        pid = os.fork()
        if pid == 0:
            child(request["run"], log, modules)
        how, code = wait(pid, request["after"])
        seconds = time.monotonic() - start
        if modules.is_file():
            for name in modules.read_text().splitlines():
                if name not in sys.modules:
                    with contextlib.suppress(Exception):
                        importlib.import_module(name)
            modules.unlink()
        said = log.read_text() if log.is_file() else ""
        answer = {"how": how, "code": code, "seconds": seconds, "said": said[-2000:]}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))

"""`vtcompress serve`: an artifact behind OpenAI's chat completions; a line on stderr for each request."""

from contextlib import suppress
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from compressor.disk.opening import read_bytes
from compressor.errors import VtcompressError
from compressor.schema.arguments import check_threads
from export.server.limits import ServerLimits
from vtcompress.cli.backend_options import loading_options
from vtcompress.cli.generating import loaded
from vtcompress.cli.kinds import FILE, FOLDER, Finite
from vtcompress.console import Output
from vtcompress.terminal import say_line

USUAL = ServerLimits()
KEY_VARIABLE = "VTCOMPRESS_API_KEY"
MOST_KEY_FILE = 8192


@click.command()
@click.argument("artifact", type=FOLDER)
@click.option("--host", default="127.0.0.1", help="Beyond this machine a key is needed.")
@click.option(
    "--port", type=click.IntRange(0, 65535), default=8000, help="0: any that is free; it is told."
)
@click.option("--name", help="Of the model, for clients; by default that of the artifact's folder.")
@click.option(
    "--api-key-file",
    type=FILE,
    metavar="FILE",
    help="Its one line is the key that requests must have.",
)
@click.option(
    "--api-key",
    envvar=KEY_VARIABLE,
    metavar="KEY",
    help=f"The key itself, which others on this machine see; better {KEY_VARIABLE} or a file.",
)
@click.option(
    "--allow-files",
    "folder",
    type=FOLDER,
    metavar="DIR",
    help="Pictures of this folder may be named; links are not followed.",
)
@click.option(
    "--parallel", type=click.IntRange(1, 64), default=USUAL.parallel, help="Answers made at once."
)
@click.option(
    "--queue",
    type=click.IntRange(0, 10_000),
    default=USUAL.queue,
    help="Requests that wait; more get status 429.",
)
@click.option(
    "--max-tokens",
    type=click.IntRange(min=1),
    default=USUAL.max_tokens,
    help="Longest answer that may be asked for, and that of who names no number.",
)
@click.option(
    "--max-images",
    type=click.IntRange(0, 1000),
    default=USUAL.max_images,
    help="Pictures of a request.",
)
@click.option(
    "--max-request-bytes",
    type=click.IntRange(1024, 1 << 30),
    default=USUAL.max_request_bytes,
    help="Of a body, and of a picture's file.",
)
@click.option(
    "--cache-bytes",
    type=click.IntRange(min=0),
    default=USUAL.cache_bytes,
    help="Memory for what is kept of pictures; 0: nothing is.",
)
@click.option(
    "--client-seconds",
    type=Finite(1, 3600),
    default=USUAL.client_seconds,
    help="That a client may take for headers, for a body, to read on.",
)
@click.option(
    "--stop-seconds",
    type=Finite(0, 3600, min_open=True),
    default=USUAL.stop_seconds,
    help="That answers may take to end behind SIGTERM.",
)
@loading_options
@click.pass_obj
def serve(
    out: Output,
    /,
    artifact: Path,
    host: str,
    port: int,
    name: str | None,
    api_key_file: Path | None,
    api_key: str | None,
    folder: Path | None,
    **options: Any,
) -> int:
    """Serve an artifact as OpenAI's chat completions do; needs neither torch nor transformers.

    Ends with SIGTERM or Ctrl-C, when the answers that are being made have ended.
    """
    from vtcompress.stages.serving import run

    check_threads(options["threads"])  # before the port is taken
    source = click.get_current_context().get_parameter_source("api_key")
    given = source is ParameterSource.COMMANDLINE
    if given and api_key_file is not None:
        raise click.UsageError("--api-key and --api-key-file say the same; give one of them")
    if given:
        out.say(f"note: --api-key can be read by who lists processes; {KEY_VARIABLE} cannot")
    limits = {name: options.pop(name) for name in ServerLimits.__dataclass_fields__}
    serving = run.Serving(
        name=name or artifact.resolve().name,
        host=host,
        port=port,
        key=api_key if api_key_file is None else _key_in(api_key_file),
        folder=folder,
        limits=ServerLimits(**limits),
    )
    run.serve(
        artifact,
        lambda: loaded(out, artifact, preload=True, **options),
        serving,
        progress=out,
        said=_say if out.verbosity >= 0 else _say_nothing,
        failed=out.doing.tell,
    )
    return 0


def _say(line: str) -> None:
    with suppress(OSError):  # a terminal that closed: the server goes on
        say_line(line)


def _say_nothing(line: str) -> None:
    del line


def _key_in(file: Path) -> str:
    try:
        content = read_bytes(file, MOST_KEY_FILE).decode("ascii").strip()
    except OSError as error:
        raise VtcompressError(f"{file}: {error.strerror}; give the file of the API key") from None
    except UnicodeDecodeError:
        raise VtcompressError(
            f"{file}: is no text in ASCII; it holds one line, the API key"
        ) from None
    return content

"""The command line: reads options, calls one stage, prints what it returns.

Exit codes: 0 done, 1 an error of input or environment, 2 wrong usage, 3 a check missed a threshold,
130 interrupted.
"""

import logging
import os
import sys
import warnings
from pathlib import Path
from typing import Any

import click

from compressor.errors import ArtifactWarning, ProblemsError, VtcompressError
from compressor.version import __version__
from export.backends.checked_on import CHECKED_ON
from vtcompress.cli.backend_options import OneOfBackends, precision_option
from vtcompress.cli.build import build
from vtcompress.cli.doctor import doctor
from vtcompress.cli.options import files_read, read_recipe, read_settings, recipe_options
from vtcompress.cli.paths import FILE, FOLDER
from vtcompress.cli.report import COMMANDS
from vtcompress.cli.train_gates import train_gates
from vtcompress.console import Output
from vtcompress.last_resort import Doing, discard_output, watched_threads
from vtcompress.stages.export import predicted

EXIT_ERROR, EXIT_USAGE, EXIT_MISSED, EXIT_INTERRUPTED = 1, 2, 3, 130


class ThresholdMissedError(Exception):
    """A check ran and missed a threshold; what it is was printed already."""


class UnforeseenError(Exception):
    """Carries an error through click, which would take it for the user's interrupt; see its cause."""


class Commands(click.Group):
    """The commands; an error inside is handed on as it is."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command that was asked for."""
        try:
            return super().invoke(ctx)
        except EOFError as error:  # of a truncated file, say: nothing here asks the user for lines
            raise UnforeseenError from error


@click.group(
    cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "show_default": True}
)
@click.version_option(__version__, prog_name="vtcompress")
@click.option("-v", "--verbose", count=True, help="Say more; twice: the libraries' own logs too.")
@click.option("-q", "--quiet", is_flag=True, help="Print results only.")
@click.option("--json", "machine", is_flag=True, help="Print results as JSON on stdout.")
@click.pass_context
def cli(context: click.Context, verbose: int, quiet: bool, machine: bool) -> None:
    """Compress the visual-token work of a multimodal LLM and export it, with proof of loss and gain.

    The main job is `vtcompress export --recipe shortv --model MODEL --data QUESTIONS.jsonl --output DIR`;
    the other commands are its stages, each starting from the file of the one before.
    """
    doing = context.obj if isinstance(context.obj, Doing) else Doing()
    doing.command, doing.verbose = context.invoked_subcommand, verbose > 0
    context.obj = Output(verbosity=-1 if quiet else verbose, machine=machine, doing=doing)
    context.obj.interrupts.listen()
    _set_logs(verbose)


def _set_logs(verbose: int) -> None:
    level = logging.WARNING if verbose < 1 else logging.INFO if verbose == 1 else logging.DEBUG
    logging.basicConfig(stream=sys.stderr, level=level, format="%(name)s: %(message)s")


@cli.command()
@recipe_options
@click.option("--output", type=FILE, default="profile.json", help="Profile to write or continue.")
@click.option(
    "--overwrite", is_flag=True, help="Start anew, whatever the profile at --output holds."
)
@click.pass_obj
def calibrate(out: Output, /, output: Path, overwrite: bool, **options: Any) -> None:
    """Measure what the recipe's methods choose by: how much each layer needs visual tokens.

    A profile of the same model and data is continued, also with more --samples.
    """
    import vtcompress
    from vtcompress.cli import brief, show

    profile = vtcompress.calibrate(read_recipe(options), output, overwrite=overwrite, progress=out)
    show.show_profile(out, profile)
    out.line(
        f"{len(profile.samples)} samples; written: {output}, its plot as .png and .svg beside it"
    )
    brief.written(out, output)
    out.result(profile.model_dump(mode="json"))


@cli.command()
@recipe_options
@click.option(
    "--profile", type=FILE, help="What `calibrate` wrote; needed unless layers are listed."
)
@click.option("--output", type=FILE, default="plan.json", help="Plan to write.")
@click.pass_obj
def plan(out: Output, /, profile: Path | None, output: Path, **options: Any) -> None:
    """Decide what visual tokens do in each layer; print the predicted costs."""
    import vtcompress
    from export.artifact.places import check_file
    from vtcompress.cli import brief, show
    from vtcompress.stages.inputs import source_paths

    recipe = read_recipe(options)
    check_file(output, "plan", sources=source_paths(recipe))
    chosen = vtcompress.plan(recipe, profile, progress=out)
    chosen.save(output)
    dtype = recipe.export.dtype
    show.show_plan(out, chosen, dtype)
    brief.planned(out, chosen, dtype)
    out.always(f"written: {output}")
    out.result(
        {
            "plan": chosen.model_dump(mode="json"),
            "predicted": predicted(chosen, dtype).model_dump(mode="json"),
        }
    )


@cli.command()
@recipe_options
@click.option("--plan", "plan_file", type=FILE, required=True, help="What `plan` wrote.")
@click.option("--profile", type=FILE, help="What `calibrate` wrote; stored beside the plan.")
@click.option("--output", type=FOLDER, required=True, help="Folder to write.")
@click.option("--overwrite", is_flag=True, help="Replace what vtcompress wrote at --output.")
@click.pass_obj
def compress(
    out: Output,
    /,
    plan_file: Path,
    profile: Path | None,
    output: Path,
    overwrite: bool,
    **options: Any,
) -> None:
    """Apply a plan: write a folder of safetensors, configuration and plan."""
    import vtcompress
    from compressor.plan.plan import Plan

    folder = vtcompress.compress(
        read_recipe(options),
        Plan.load(plan_file),
        output,
        profile=profile,
        overwrite=overwrite,
        sources=files_read(options, plan_file, profile),
        progress=out,
    )
    out.always(f"written: {folder}")
    out.result({"output": str(folder)})


@cli.command()
@recipe_options
@click.option("--profile", type=FILE, help="Use this calibration instead of measuring.")
@click.option("--compressed", type=FOLDER, help="Start from the folder that `compress` wrote.")
@click.option("--output", type=FOLDER, required=True, help="Folder of the artifact.")
@click.option("--overwrite", is_flag=True, help="Replace what vtcompress wrote at --output.")
@click.option(
    "--dtype", type=click.Choice(["float32", "float16", "bfloat16"]), help="Of weights and graphs."
)
@click.option("--validate-data", type=FILE, help="Held-out questions (jsonl) for compression loss.")
@click.option("--validate-samples", type=click.IntRange(min=1), help="How many of them.")
@click.option("--bench-rounds", type=click.IntRange(min=0), default=15, help="0: no timing.")
@click.option(
    "--threads", type=click.IntRange(min=1), default=1, help="Of one operator, in timing."
)
@click.pass_obj
def export(
    out: Output,
    /,
    profile: Path | None,
    compressed: Path | None,
    output: Path,
    overwrite: bool,
    dtype: str | None,
    validate_data: Path | None,
    validate_samples: int | None,
    bench_rounds: int,
    threads: int,
    **options: Any,
) -> None:
    """Run all stages: calibrate, plan, compress, export to ONNX, check against the original, time."""
    import vtcompress
    from compressor.plan.plan import Plan
    from export.report.words.engine_facts import engine_facts
    from vtcompress.cli import brief, show

    recipe = read_recipe(
        options,
        {
            "export.dtype": dtype,
            "validate.data": validate_data,
            "validate.samples": validate_samples,
        },
    )
    manifest = vtcompress.export(
        recipe,
        output,
        profile=profile,
        compressed=compressed,
        overwrite=overwrite,
        sources=files_read(options, profile),
        bench_rounds=bench_rounds,
        threads=threads,
        progress=out,
    )
    chosen = Plan.load(output / "plan.json")
    show.show_plan(out, chosen, manifest.dtype)
    show.show_checks(out, manifest, chosen, engine_facts(output, manifest))
    brief.timed(out, manifest.measured)
    brief.checked(out, manifest.fidelity, manifest.loss)
    out.always(f"written: {output} (report: {output / 'report.html'})")
    out.result(manifest.model_dump(mode="json"))
    _raise_if_missed(manifest.failures)


def _raise_if_missed(failures: tuple[str, ...]) -> None:
    if failures:
        for line in failures:
            click.echo(f"missed: {line}", err=True)
        raise ThresholdMissedError


@cli.command()
@click.argument("artifact", type=FOLDER)
@click.option(
    "--data",
    type=FILE,
    help="The artifact's own questions (jsonl), for their pictures; others need --model.",
)
@click.option(
    "--model", help="The original, hub id or folder: measure it and export fidelity anew."
)
@click.option("--gates", type=FILE, help="The gates' weights, if the plan has gates; with --model.")
@click.option(
    "--trust-remote-code",
    is_flag=True,
    help="Let the repository of --model run its own Python code.",
)
@click.option(
    "--set",
    "settings",
    multiple=True,
    metavar="KEY=VALUE",
    help="Judge by another limit, e.g. --set validate.loss.min_agreement=0.9; may be repeated.",
)
@click.option(
    "--backend",
    type=OneOfBackends(),
    help="Compare this backend with ONNX Runtime on the CPU instead; without --model, --gates.",
)
@precision_option
@click.option(
    "--device", type=click.IntRange(min=0), default=0, help="Number of the GPU; with --backend."
)
@click.option("--threads", type=click.IntRange(min=1), help="Of one operator.")
@click.pass_obj
def validate(
    out: Output,
    /,
    artifact: Path,
    data: Path | None,
    model: str | None,
    gates: Path | None,
    trust_remote_code: bool,
    settings: tuple[str, ...],
    backend: str | None,
    precision: str,
    device: int,
    threads: int | None,
) -> None:
    """Check an artifact against the original's stored answers, or against the original itself."""
    import vtcompress
    from compressor.plan.plan import Plan
    from export.artifact.artifact import PLAN_FILE
    from export.checks.stored import why_unmeasured
    from vtcompress.cli import brief, show
    from vtcompress.stages.validate_backend import validate_backend

    limits = read_settings(settings)
    if backend is not None:
        if model is not None or gates is not None or trust_remote_code:
            raise click.UsageError(
                "--backend needs no original: leave out --model, --gates, --trust-remote-code"
            )
        parity = validate_backend(
            artifact,
            backend,
            data=data,
            precision=precision,
            threads=threads,
            device=device,
            limits=limits,
            progress=out,
        )
        show.show_parity(out, parity, "" if parity.loss else why_unmeasured(artifact))
        brief.compared_backend(out, parity)
        out.result(parity.model_dump(mode="json"))
        _raise_if_missed(parity.failures)
        return
    outcome = vtcompress.validate(
        artifact,
        data=data,
        model=model,
        gates=gates,
        limits=limits,
        threads=threads,
        trust_remote_code=trust_remote_code,
        progress=out,
    )
    if outcome.rewrite is not None:
        show.show_rewrite(out, outcome.rewrite)
    show.show_fidelity(out, outcome.fidelity)
    show.show_loss(out, outcome.loss, "" if outcome.loss else why_unmeasured(artifact))
    show.show_exits(out, Plan.load(artifact / PLAN_FILE), outcome.loss)
    brief.checked(out, outcome.fidelity, outcome.loss)
    out.result(
        {
            "fidelity": outcome.fidelity and outcome.fidelity.model_dump(mode="json"),
            "loss": outcome.loss and outcome.loss.model_dump(mode="json"),
            "rewrite": outcome.rewrite and outcome.rewrite.model_dump(mode="json"),
            "verdict": outcome.verdict,
        }
    )
    _raise_if_missed(outcome.failures)


@cli.command()
@click.argument("artifact", type=FOLDER)
@click.option("--images", type=click.IntRange(min=1), default=1, help="In the prompt.")
@click.option("--text", type=click.IntRange(min=1), help="Text rows; default: the plan's.")
@click.option("--rounds", type=click.IntRange(min=1), default=15, help="How often each is timed.")
@click.option("--threads", type=click.IntRange(min=1), default=1, help="Of one operator.")
@click.pass_obj
def bench(
    out: Output, /, artifact: Path, images: int, text: int | None, rounds: int, threads: int
) -> None:
    """Time the compressed decoder beside the original one, in one process and in turns."""
    import vtcompress
    from compressor.plan.plan import Plan
    from export.artifact.artifact import PLAN_FILE, Artifact
    from vtcompress.cli import brief, show

    report = vtcompress.bench(
        artifact, images=images, text=text, rounds=rounds, threads=threads, progress=out
    )
    dtype = Artifact.open(artifact, verify=False).manifest.dtype
    show.show_bench(out, report, Plan.load(artifact / PLAN_FILE), dtype)
    brief.timed(out, report)
    out.result(report.model_dump(mode="json"))


@cli.command()
@click.argument("artifact", type=FOLDER)
@click.option("--image", "images", metavar="FILE", multiple=True, help="Picture; may be repeated.")
@click.option("--prompt", help="The question; with --chat the first one.")
@click.option(
    "--chat", is_flag=True, help="Several turns, a line of stdin each; /image PATH, /quit."
)
@click.option("--max-new-tokens", type=click.IntRange(min=1), default=64, help="Longest answer.")
@click.option("--temperature", type=click.FloatRange(min=0), default=0.0, help="0: greedy.")
@click.option(
    "--top-p", type=click.FloatRange(0, 1, min_open=True), default=1.0, help="Draw from this share."
)
@click.option("--seed", type=click.IntRange(min=0), default=0, help="Of the draws.")
@click.option(
    "--generation-config/--no-generation-config",
    default=True,
    help="Bar and punish tokens (repetition_penalty ...) as the model's generation_config.json asks for.",
)
@click.option(
    "--stats",
    is_flag=True,
    help="Times, KV bytes, exit layer and memory: to stderr, or into the JSON.",
)
@click.option(
    "--backend", type=OneOfBackends(), default=CHECKED_ON.name, help="What runs the graphs."
)
@precision_option
@click.option(
    "--mapped", is_flag=True, help="Leave weights in the mapped file: less memory, slower."
)
@click.option("--threads", type=click.IntRange(min=1), help="Of one operator.")
@click.option("--device", type=click.IntRange(min=0), default=0, help="GPU, where one is used.")
@click.option("--no-verify", is_flag=True, help="Do not compare the files' sha256 first.")
@click.pass_obj
def generate(
    out: Output,
    /,
    artifact: Path,
    images: tuple[str, ...],
    prompt: str | None,
    chat: bool,
    stats: bool,
    backend: str,
    precision: str,
    mapped: bool,
    threads: int | None,
    device: int,
    no_verify: bool,
    **options: Any,
) -> int:
    """Ask an artifact about pictures, once or in a chat; needs neither torch nor transformers."""
    from compressor.samples.pictures import pictures_of
    from export.artifact.artifact import Artifact
    from export.backends.compared import uncompared
    from export.checks.memory import resident_bytes
    from export.runtime.runtime import Runtime
    from vtcompress.cli.generating import Generation, say_shortcoming

    if prompt is None and not chat:
        raise click.UsageError("give --prompt, or --chat")
    pictures_of(images)  # names that are none are told before anything is loaded
    if no_verify:
        out.say("files are not verified")
    with warnings.catch_warnings():
        # Said below, in a line of our own.
        warnings.simplefilter("ignore", ArtifactWarning)
        runtime = Runtime.load(
            artifact,
            threads=threads,
            verify=not no_verify,
            backend=backend,
            precision=precision,
            preload=stats,
            mapped=mapped,
            device=device,
        )
    if prompt is not None:
        runtime.check_question(prompt, "--prompt")
    opened = Artifact.open(artifact, verify=False)
    say_shortcoming(out, opened.manifest)
    if (words := uncompared(opened, runtime.session, backend, precision)) is not None:
        out.warn(words)
    generation = Generation(out, runtime, options, stats, resident_bytes())
    if chat or prompt is None:
        return 0 if generation.chat(prompt, images) else EXIT_ERROR
    generation.ask_once(prompt, images)
    return 0


@cli.command()
@click.argument("path")
@click.pass_obj
def inspect(out: Output, /, path: str) -> None:
    """Tell what a model folder, compressed folder, artifact, plan or profile is; loads no weights."""
    import vtcompress
    from vtcompress.cli import brief, show

    facts = vtcompress.inspect(path)
    out.result(facts)
    problems = facts.pop("problems", ())
    out.table(path, ("fact", "value"), show.flat_rows(facts))
    brief.facts(out, show.flat_rows(facts))
    for problem in problems:
        out.always(f"problem: {problem}")


@cli.command()
@click.argument("name", required=False)
@click.pass_obj
def recipes(out: Output, /, name: str | None) -> None:
    """List the shipped recipes, or explain and print one."""
    from vtcompress.shipped import find_recipe, shipped_recipes

    shipped = shipped_recipes()
    if name is None:
        rows = [(r.name, r.title, r.model) for r in shipped]
        out.table("Shipped recipes", ("name", "what it does", "model"), rows)
        out.brief("\n".join(r.name for r in shipped))
        out.line("`vtcompress recipes NAME` prints one with its explanation")
        out.result([{"name": r.name, "title": r.title, "model": r.model} for r in shipped])
        return
    text = find_recipe(name).read_text(encoding="utf-8")
    out.always(text.rstrip("\n"))
    out.result({"name": name, "text": text})


@cli.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print a shell's completion script, e.g. `vtcompress completion bash >> ~/.bashrc`."""
    from click.shell_completion import get_completion_class

    maker = get_completion_class(shell)
    if maker is None:
        raise VtcompressError(f"{shell}: no completion for this shell")
    click.echo(maker(cli, {}, "vtcompress", "_VTCOMPRESS_COMPLETE").source())


for command in (build, train_gates, doctor, *COMMANDS):
    cli.add_command(command)


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit with its code."""
    code = run(arguments)
    if code == EXIT_INTERRUPTED:
        # Under `python -m`, CPython kills itself by SIGINT when an interrupt, even a handled one, passed
        # through exec() of a string (dataclasses do that); leaving without its shutdown keeps the code.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def run(arguments: list[str] | None = None) -> int:
    """Run the command line; return its exit code. Errors that nobody foresaw end in one line as well."""
    doing = Doing()
    try:
        with watched_threads(doing):
            code = _run(arguments, doing)
        sys.stdout.flush()
    except BrokenPipeError:  # whoever read what we print has left
        discard_output()
        return EXIT_ERROR
    except Exception as error:  # noqa: BLE001 - the last resort
        cause = error.__cause__ if isinstance(error, UnforeseenError) else None
        doing.tell(error if cause is None else cause)
        return EXIT_ERROR
    return EXIT_ERROR if doing.failed and code == 0 else code


def spoken(problem: str, command: str | None) -> str:
    """Return a problem in the words of a command: some write something and have no `--output`."""
    found = cli.commands.get(command or "")
    if found is None or any("--output" in option.opts for option in found.params):
        return problem
    return problem.replace("another --output", "another place")


def _run(arguments: list[str] | None, doing: Doing) -> int:
    try:
        result = cli.main(arguments, prog_name="vtcompress", standalone_mode=False, obj=doing)
    except ThresholdMissedError:
        return EXIT_MISSED
    except VtcompressError as error:
        for problem in error.problems if isinstance(error, ProblemsError) else (str(error),):
            click.echo(f"error: {spoken(problem, doing.command)}", err=True)
        return EXIT_ERROR
    except click.UsageError as error:
        error.show()
        return EXIT_USAGE
    except click.ClickException as error:
        error.show()
        return EXIT_ERROR
    except (click.Abort, KeyboardInterrupt):
        click.echo("interrupted", err=True)
        return EXIT_INTERRUPTED
    return result if isinstance(result, int) else 0

"""The command line. Heavy imports happen inside the commands, so that ``--help`` answers at once."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from advbench import __version__
from advbench.cli.choices import BenchName, OutputsChoice, Scale, TableFormat
from advbench.cli.completion import kinds_and_names, names_of
from advbench.cli.options import (
    Address,
    Budget,
    DataDir,
    Fresh,
    Jobs,
    KnownNoise,
    SlotsPerDevice,
    TimeLimit,
    UnitTest,
    UnitTestImages,
    Visited,
)
from advbench.cli.pilot_commands import work
from advbench.cli.record_commands import baseline, check, evidence, gc, history, publish, report
from advbench.cli.terminal import complain, fail, print_plan, print_result, print_verdicts, refuse, say, watcher
from advbench.engine.ending import as_ctrl_c
from advbench.errors import DEBUG
from advbench.registry.schemes import targets
from advbench.results.matrices import RANKED

if TYPE_CHECKING:
    from advbench.engine.engine import Engine
    from advbench.plan.plan import Plan

app = typer.Typer(
    name="advbench",
    help="Benchmark and leaderboard harness for adversarial robustness.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


def main() -> None:
    """Run the command line; bad input, and files that cannot be written, end with one clear line and exit code 2."""
    with as_ctrl_c():
        try:
            code = app(standalone_mode=False)
            sys.stdout.flush()
        except KeyboardInterrupt:
            code = 130
        except Exception as error:
            code = complain(error.format_message()) if hasattr(error, "format_message") else fail(error)
    sys.exit(code)


def _version(wanted: bool) -> None:
    if wanted:
        print(f"advbench {__version__}")
        raise typer.Exit


def _debug(wanted: bool) -> bool:
    """Have tracebacks shown, by the processes that are started as well."""
    if wanted:
        os.environ[DEBUG] = "1"
    return wanted


_Debug = Annotated[
    bool, typer.Option("--debug", callback=_debug, is_eager=True, help="Show the whole traceback of whatever fails.")
]


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
    debug: _Debug = False,
) -> None:
    pass


@app.command()
def run(
    config: Annotated[Path | None, typer.Argument(help="A TOML file with the same settings; flags override it.")] = None,
    matrix: Annotated[str | None, typer.Option(help=f"{', '.join(RANKED)} or all. \\[default: all]")] = None,
    dataset: Annotated[
        str | None,
        typer.Option(
            help="A data set's name, npz:PATH or folder:PATH. \\[default: digits]", autocompletion=names_of("datasets")
        ),
    ] = None,
    data_dir: DataDir = None,
    architecture: Annotated[
        str | None,
        typer.Option(
            help="Architectures, such as gu2014/convnet,sgr2018/mnist-cnn.", autocompletion=names_of("architectures")
        ),
    ] = None,
    defense: Annotated[
        str | None, typer.Option(help="Defenses, such as none,pgd-linf(steps=10).", autocompletion=names_of("defenses"))
    ] = None,
    attack: Annotated[
        str | None, typer.Option(help="Attacks, such as fgsm,pgd(steps=100).", autocompletion=names_of("attacks"))
    ] = None,
    substitute: Annotated[
        str | None,
        typer.Option(
            help="Architectures of the black-box attacker's substitute model.", autocompletion=names_of("architectures")
        ),
    ] = None,
    norm: Annotated[str | None, typer.Option(help="linf, l2 or l1, or none for corruptions. \\[default: linf]")] = None,
    epsilon: Annotated[
        str | None,
        typer.Option(help="One radius or several, such as 8/255 or 0.1,0.2. \\[default: the data set's usual one]"),
    ] = None,
    clip: Annotated[
        bool | None, typer.Option("--clip/--no-clip", help="Clip adversarial images to the pixel range. \\[default: clip]")
    ] = None,
    outputs: Annotated[
        OutputsChoice | None, typer.Option(help="What your own architectures, own:TARGET, return. \\[default: logits]")
    ] = None,
    seed: Annotated[str | None, typer.Option(help="Training seeds, such as 0,1,2. \\[default: 0]")] = None,
    n_examples: Annotated[int | None, typer.Option(help="Number of test images to score. \\[default: all]")] = None,
    train_examples: Annotated[int | None, typer.Option(help="Number of training images. \\[default: all]")] = None,
    epochs: Annotated[int | None, typer.Option(help="Training epochs. \\[default: set by the data set]")] = None,
    unit_test: UnitTest = False,
    unit_test_images: UnitTestImages = None,
    budget: Budget = None,
    visited: Visited = False,
    known_noise: KnownNoise = False,
    device: Annotated[
        str | None, typer.Option(help="auto, cpu, cuda, xpu, mps, or cuda:0,cuda:1. \\[default: auto]")
    ] = None,
    jobs: Jobs = None,
    backend: Annotated[str | None, typer.Option(help="Processes (loky) or threads (threading). \\[default: loky]")] = None,
    slots_per_device: SlotsPerDevice = None,
    engine: Annotated[
        str | None, typer.Option(help="Where tasks run: local, dask, pilots or slurm. \\[default: local]")
    ] = None,
    address: Address = None,
    pilots: Annotated[
        int | None, typer.Option(help="Number of Slurm jobs; only with --engine slurm. \\[default: 1]")
    ] = None,
    slurm: Annotated[
        str | None, typer.Option(help="Parameters of Slurm jobs, such as partition=gpu,gpus_per_node=1,timeout_min=600.")
    ] = None,
    time_limit: TimeLimit = None,
    out: Annotated[Path | None, typer.Option(help="Output directory. \\[default: advbench-out]")] = None,
    compile: Annotated[
        bool, typer.Option("--compile", help="Attack compiled models; scoring always uses the uncompiled model.")
    ] = False,
    precision: Annotated[
        str | None,
        typer.Option(help="Precision of attacked models: float32, tf32 or bfloat16; scores are always of float32."),
    ] = None,
    fresh: Fresh = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan without running it.")] = False,
    debug: _Debug = False,
) -> None:
    """Run every attack against every defense and write a leaderboard.

    Without arguments: all three matrices on the embedded digits with the default suite. Finished work is kept: after an
    interruption, run the same command to continue.

    Exit codes: 0 all cells scored, 1 at least one cell failed (the table says which), 2 bad input or a full disk,
    130 interrupted.
    """
    flags = {"compile": compile, "fresh": fresh, "unit_test": unit_test, "visited": visited, "known_noise": known_noise}
    given = {name: value for name, value in locals().items() if name not in ("config", "dry_run", "debug", "flags")}
    given["outputs"] = outputs.value if outputs else None
    settings = given | {name: value or None for name, value in flags.items()}
    try:
        from advbench.api import coordinated
        from advbench.config import make_config
        from advbench.engine.pilots import preview
        from advbench.plan.plan import make_plan

        checked, watching = make_config(config, **settings), None
        if checked.engine in ("pilots", "slurm"):
            plan, watching = (preview(checked), None) if dry_run else coordinated(checked, say)
        else:
            plan = make_plan(checked, measure=not dry_run)
    except Exception as error:
        refuse(error)
    if dry_run:
        print_plan(plan)
        return
    raise typer.Exit(_run(plan, watching))


@app.command()
def evaluate(
    target: Annotated[str, typer.Argument(help=f"{targets()}.", metavar="TARGET")],
    dataset: Annotated[
        str, typer.Option(help="A data set's name, npz:PATH or folder:PATH.", autocompletion=names_of("datasets"))
    ],
    data_dir: DataDir = None,
    norm: Annotated[str | None, typer.Option(help="linf, l2 or l1, or none for corruptions. \\[default: linf]")] = None,
    epsilon: Annotated[
        str | None, typer.Option(help="The radius, such as 8/255. \\[default: the data set's usual one]")
    ] = None,
    attack: Annotated[
        str | None,
        typer.Option(
            help="Attacks, such as auto,pgd(steps=100),foolbox/LinfPGD. \\[default: auto]",
            autocompletion=names_of("attacks"),
        ),
    ] = None,
    n_examples: Annotated[int | None, typer.Option(help="Number of test images to score. \\[default: all]")] = None,
    weights: Annotated[
        str | None,
        typer.Option(
            help="A safetensors file, a state dict, or a torchvision weights name such as DEFAULT.", metavar="FILE"
        ),
    ] = None,
    mean: Annotated[str | None, typer.Option(help="Per-channel mean of the model's input normalisation.")] = None,
    std: Annotated[
        str | None, typer.Option(help="Per-channel standard deviation of the model's input normalisation.")
    ] = None,
    outputs: Annotated[
        OutputsChoice | None,
        typer.Option(help="What the model returns. \\[default: probabilities where all rows sum to 1, else logits]"),
    ] = None,
    stochastic: Annotated[bool, typer.Option("--stochastic", help="The model's output is random.")] = False,
    curve: Annotated[
        bool,
        typer.Option("--curve/--no-curve", help="Add a minimum-norm attack for the robustness curve, unless one is named."),
    ] = True,
    seed: Annotated[int | None, typer.Option(help="Random seed of the attacks. \\[default: 0]")] = None,
    unit_test: UnitTest = False,
    unit_test_images: UnitTestImages = None,
    budget: Budget = None,
    visited: Visited = False,
    known_noise: KnownNoise = False,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda, xpu, mps or cuda:N. \\[default: auto]")] = None,
    jobs: Jobs = None,
    slots_per_device: SlotsPerDevice = None,
    engine: Annotated[str | None, typer.Option(help="Where tasks run: local or dask. \\[default: local]")] = None,
    address: Address = None,
    time_limit: TimeLimit = None,
    out: Annotated[Path | None, typer.Option(help="Output directory. \\[default: advbench-out]")] = None,
    json: Annotated[
        Path | None, typer.Option(help="Write all results, including per-example ones, to this JSON file.")
    ] = None,
    fresh: Fresh = False,
    debug: _Debug = False,
) -> None:
    """Attack your own model and report its robustness.

    TARGET's factory returns an nn.Module: images in [0, 1] -> logits. It runs the attack `auto`, or those named, and a
    minimum-norm attack for the robustness curve. Weights are loaded without pickle. Finished work is kept.

    Exit codes: 0 all attacks scored, 1 at least one failed (the table says which), 2 bad input or a full disk,
    130 interrupted.
    """
    settings = {name: value for name, value in locals().items() if name not in ("target", "json", "debug")}
    settings |= {name: settings[name] or None for name in ("fresh", "unit_test", "visited", "known_noise")}
    settings |= {"outputs": outputs.value if outputs else None}
    notes: list[str] = []
    try:
        from advbench.user_models.target import plan_target, run_target

        plan = plan_target(target, say=notes.append, **settings)
    except Exception as error:
        refuse(error)
    for note in notes:
        print(f"advbench: note: {note}", file=sys.stderr, flush=True)
    from rich.console import Console

    with watcher(Console(), len(plan.pending())) as watch:
        result = run_target(plan, watch, notes)
    print(f"\n{result}\n")
    try:
        if json is not None:
            json.parent.mkdir(parents=True, exist_ok=True)
            json.write_text(result.to_json() + "\n", encoding="utf-8")
    except OSError as error:
        refuse(error)
    if result.interrupted:
        print("interrupted: finished work is kept; run the same command to continue")
    for path in (*result.reports, *([json] if json is not None else [])):
        print(path)
    raise typer.Exit(result.exit_code)


@app.command()
def conformance(
    attack: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[NAME]...",
            help="Attacks, such as pgd or torchattacks/CW(steps=50), architectures, such as own:net.py:make, and data sets, "
            "such as npz:FILE. \\[default: all registered attacks]",
            autocompletion=names_of("attacks"),
        ),
    ] = None,
    data_dir: DataDir = None,
    format: Annotated[TableFormat, typer.Option(help="Output format.")] = TableFormat.text,
) -> None:
    """Check that attacks meet the attack contract: budget, batches, seeds, few classes, pixels at 0 and 1, and more.

    Attacks run on a small random network, with fewer iterations unless you set them. Of architectures, logits, their
    dependence on the batch, seeds and gradients are checked; of data sets, values, labels and whether test images are among
    the training images. A failed check says what went wrong; one that does not apply is n/a.

    Exit codes: 0 no check failed, 1 at least one failed, 2 bad input.
    """
    from rich.console import Console

    try:
        from advbench import clocks
        from advbench import component_checks as checks

        console = Console(stderr=True)
        verdicts = list[list[checks.Verdict]]()
        with clocks.single_thread(), console.status("") as status:
            for kind, spec in checks.in_order(attack):
                status.update(str(spec))
                found = checks.examine(kind, spec, data_dir)
                verdicts.append(found)
                if not console.is_terminal:
                    holds = sum(verdict.status == "holds" for verdict in found)
                    print(f"{spec}: {holds} of {len(found)} hold", file=sys.stderr, flush=True)
    except (ValueError, OSError) as error:
        refuse(error)
    print_verdicts(verdicts, format)
    raise typer.Exit(1 if any(map(checks.lines, verdicts)) else 0)


@app.command("list")
def list_components(
    kind: Annotated[
        str | None,
        typer.Argument(
            help="A kind (attacks, defenses, parts, architectures, datasets), or a component's name, such as pgd. "
            "\\[default: all kinds]",
            metavar="[KIND|NAME]",
            autocompletion=kinds_and_names,
        ),
    ] = None,
) -> None:
    """List the registered components, one per line, with the paper each comes from.

    Of a name: what it is, its arguments with their defaults, the norms that it knows, and a command line.
    """
    from advbench.registry import explain, registry, schemes

    if kind is not None and kind not in schemes.KINDS:
        try:
            print(explain.explained(kind))
        except ValueError as error:
            refuse(error)
        return
    kinds = schemes.KINDS if kind is None else tuple(each for each in schemes.KINDS if each == kind)
    for each in kinds:
        rows = registry.of(each).listing()
        width = max((len(name) for name, _ in rows), default=0)
        if len(kinds) > 1:
            print(f"{each}:")
        for name, description in rows:
            print(f"{name:{width}}  {description}")
        if each != kinds[-1]:
            print()


@app.command()
def new(
    name: Annotated[str, typer.Argument(help="The name of the package, such as my-attacks; a folder of that name is made.")],
) -> None:
    """Write a package with an attack, two defenses, a data set and an architecture of your own, ready to install.

    Exit codes: 0 written, 2 the name cannot be one, or something is in the way.
    """
    try:
        from advbench.plugin_package import write_package

        files = write_package(name, Path.cwd())
    except (ValueError, OSError) as error:
        refuse(error)
    for file in files:
        print(file)
    print(f"next: pip install -e {name} && advbench conformance {name}-attack && advbench list {name}-attack")


@app.command()
def reproduce(
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="[PAPER[.TABLE]]", help="A paper or one of its tables, such as gu2014 or gu2014.table1. \\[default: all]"
        ),
    ] = None,
    scale: Annotated[
        Scale,
        typer.Option(
            help="smoke: digits; small: short training; medium: hours on a CPU, some tables; full: the papers', needs a GPU."
        ),
    ] = Scale.small,
    seed: Annotated[str, typer.Option(help="Training seeds; a verdict on a claim needs at least three.")] = "0,1,2",
    data_dir: DataDir = None,
    device: Annotated[
        str | None, typer.Option(help="auto, cpu, cuda, xpu, mps, or cuda:0,cuda:1. \\[default: auto]")
    ] = None,
    jobs: Jobs = None,
    out: Annotated[Path, typer.Option(help="Output directory.")] = Path("advbench-reproduction"),
) -> None:
    """Run a paper's experiments and compare its tables with ours.

    Every claim gets a verdict over training seeds and test images: holds, fails, or undecided, with the scale that it was
    tested at. Finished work is kept: after an interruption, run the same command to continue.

    Exit codes: 0 complete, regardless of the verdicts; 1 some part could not be run, 2 bad input, 130 interrupted.
    """
    from rich.console import Console

    console = Console()
    try:
        from advbench.config import make_config
        from advbench.reproduction.engine import reproduce as run_studies
        from advbench.reproduction.terminal import print_reproduction

        seeds = make_config(seed=seed).seed
        with watcher(console) as watch:
            result = run_studies(
                name,
                scale=scale.value,
                out=out,
                seeds=seeds,
                watch=watch,
                announce=lambda run: console.print(f"running {run}", highlight=False),
                data_dir=data_dir,
                device=device,
                jobs=jobs,
            )
    except (ValueError, OSError) as error:
        refuse(error)
    print_reproduction(result, console)
    raise typer.Exit(result.exit_code)


for _command in (work, report, publish, evidence, check, history, baseline, gc):
    app.command()(_command)


@app.command()
def bench(
    name: Annotated[BenchName | None, typer.Argument(help="Which benchmark. \\[default: all]")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, xpu, mps or cuda:N.")] = "auto",
) -> None:
    """Benchmark the defenses' kernels and training, and the engine, against their limits, on one CPU thread or a GPU.

    Prints a table of ratios. For reliable figures, run it on an otherwise idle machine.

    Exit codes: 0 all limits met, 1 at least one limit missed, 2 bad input.
    """
    try:
        from advbench import clocks
        from advbench.benches import bench

        chosen = clocks.resolve_devices(device)[0]
        rows = []
        with clocks.single_thread():
            for each in BenchName if name is None else [name]:
                for row in bench.run(each.value, chosen):
                    print(f"{row.case}, {row.measure}: {row.ratio:.3g} x {row.against}", file=sys.stderr, flush=True)
                    rows.append(row)
    except (ValueError, OSError) as error:
        refuse(error)
    print(f"{clocks.device_name(chosen)}\n\n{bench.table(rows)}")
    raise typer.Exit(0 if all(row.holds for row in rows) else 1)


def _run(plan: Plan, engine: Engine | None) -> int:
    """Run a plan with progress, print the leaderboard, and return the exit code."""
    from rich.console import Console

    from advbench.api import finish

    console = Console()
    with watcher(console, len(plan.pending())) as watch:
        result = finish(plan, engine, watch=watch)
    print_result(plan, result, console)
    return result.exit_code

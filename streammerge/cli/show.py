"""What a person sees of plans and results, and the same as JSON for programs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict

from rich.markup import escape
from rich.table import Table

from streammerge.api import Prepared
from streammerge.cli.console import grid, open_console, print_json
from streammerge.errors import printable
from streammerge.forecast import Forecast
from streammerge.outputs import Pushed
from streammerge.report import Result
from streammerge.tensors import TensorInfo, format_size
from streammerge.wording import methods_in_words, part_in_words, step_in_words

_FEW = 6


def plan(prepared: Prepared, facts: Forecast, verbose: bool, to_stderr: bool = False) -> None:
    """Print a plan."""
    console = open_console(to_stderr)
    console.print(_models(prepared))
    console.print()
    console.print(_summary(prepared, facts))
    if verbose:
        console.print()
        console.print(_plan_tensors(prepared))
    for note in prepared.plan.notes:
        console.print(f"[yellow]note[/] {escape(printable(note))}")
    console.print()


def _models(prepared: Prepared) -> Table:
    the_plan = prepared.plan
    shares = all(model.coefficient is not None for model in the_plan.inputs)
    heading = ">coefficient" if shares else methods_in_words(the_plan)
    table = grid(heading, ">tensors", ">size", "dtype", "model")
    for index, checkpoint in enumerate(prepared.checkpoints):
        model, tensors = the_plan.inputs[index], list(checkpoint.tensors.values())
        table.add_row(
            part_in_words(the_plan, index),
            f"{len(tensors):,}",
            format_size(sum(tensor.nbytes for tensor in tensors)),
            _dtypes(tensors),
            escape(printable(model.pinned or model.label)),
        )
    return table


def _summary(prepared: Prepared, facts: Forecast) -> Table:
    the_plan = prepared.plan
    files = [shard.file for shard in the_plan.shards]
    shown = ", ".join(files) if len(files) <= 2 else f"{files[0]} … {files[-1]}"
    counts = Counter(the_plan.steps[tensor.step].action for tensor in the_plan.tensors)
    names = {"merge": "merged", "equal": "copied as equal", "copy": "copied from one model"}
    coverage = ", ".join(f"{n:,} {names[action]}" for action, n in counts.items())
    sent = prepared.output.bytes_to_send(the_plan)
    table = grid("", "")
    table.show_header = False
    rows = {
        "output": f"{prepared.output.label}: {shown}",
        "contents": f"{the_plan.parameters:,} parameters in {len(the_plan.tensors):,} tensors, "
        f"{_dtypes([tensor.info for tensor in the_plan.tensors])}",
        "coverage": coverage,
        "traffic": f"{format_size(facts.bytes_read)} to read, "
        f"{format_size(facts.bytes_written)} to write"
        + (f", {format_size(sent)} to send" if sent else ""),
        "download": f"{format_size(facts.bytes_downloaded)} into the cache, before the merge",
        "reading": facts.reading,
        "memory": f"{prepared.layout.describe()}; "
        f"peak about {format_size(prepared.layout.peak, binary=True)}",
        "device": facts.device,
    }
    if not facts.bytes_downloaded:
        del rows["download"]
    for name, text in rows.items():
        table.add_row(f"[bold]{name}[/]", escape(printable(text)))
    return table


def _plan_tensors(prepared: Prepared) -> Table:
    table = grid("tensor", "dtype", "shape", "what happens")
    for tensor in prepared.plan.tensors:
        step = prepared.plan.steps[tensor.step]
        what = {
            "merge": step_in_words(step),
            "equal": "copied, all equal",
            "copy": f"copied from {prepared.plan.inputs[step.sources[0]].label}",
        }[step.action]
        table.add_row(
            escape(printable(tensor.name)), tensor.dtype, str(list(tensor.shape)), escape(what)
        )
    return table


def _dtypes(tensors: list[TensorInfo]) -> str:
    sizes: Counter[str] = Counter()
    for tensor in tensors:
        sizes[tensor.dtype] += tensor.nbytes
    return " + ".join(dtype for dtype, _ in sizes.most_common())


def plan_as_json(prepared: Prepared, facts: Forecast) -> None:
    """Print a plan as one JSON object."""
    the_plan = prepared.plan
    print_json(
        {
            "out": prepared.output.label,
            "fingerprint": the_plan.fingerprint(),
            "coefficients": {model.label: model.coefficient for model in the_plan.inputs},
            "parameters": the_plan.parameters,
            **asdict(facts),
            "bytes_sent": prepared.output.bytes_to_send(the_plan),
            "layout": asdict(prepared.layout),
            "plan": the_plan.model_dump(mode="json"),
        }
    )


def result(done: Result, facts: Forecast, known: Sequence[str]) -> None:
    """Print what was written, and the notes that are not known yet."""
    console = open_console()
    rate = (facts.bytes_read + facts.bytes_written) / max(done.seconds, 1e-9)
    how = ", ".join(f"{count} {mode}" for mode, count in sorted(done.read_modes.items()))
    how = f"; files read: {how}" if how else ""
    console.print(
        f"{escape(str(done.out))}: {done.parameters:,} parameters, "
        f"{format_size(facts.bytes_written)} in {done.seconds:.1f} s "
        f"({format_size(rate)}/s read and written{how})"
    )
    if done.kept == len(done.shards):
        console.print("  an interrupted run had merged all of it already")
    elif done.kept:
        console.print(f"  {done.kept} finished shards of an interrupted run were kept")
    for shard in done.shards[:_FEW]:
        console.print(f"  {shard.file}  {format_size(shard.bytes)}  sha256 {shard.sha256}")
    if len(done.shards) > _FEW:
        console.print(f"  … and {len(done.shards) - _FEW} more in streammerge.json")
    if done.pushed is not None:
        pushed(done.pushed)
    for label, count in sorted(done.nonfinite_inputs.items()):
        console.print(f"  [yellow]{count:,} NaN or Inf[/] read from {escape(printable(label))}")
    for name, count in sorted(done.nonfinite.items()):
        console.print(f"  [yellow]{count:,} NaN or Inf[/] in {escape(printable(name))}")
    for note in done.notes:
        if note not in known:
            console.print(f"[yellow]note[/] {escape(printable(note))}")


def pushed(done: Pushed) -> None:
    """Print where a model is on the Hub now."""
    where = f"{done.repo}@{done.branch}"
    what = "pushed in one commit" if done.new else "was there already, and nothing was sent"
    open_console().print(f"{escape(where)}: {what}, {escape(done.url)}")


def pushed_as_json(done: Pushed) -> None:
    """Print where a model is on the Hub as one JSON object."""
    print_json(asdict(done))


def result_as_json(done: Result) -> None:
    """Print what was written as one JSON object."""
    print_json({**asdict(done), "out": str(done.out)})

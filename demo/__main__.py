"""Merge a sentence model with its fine-tune and compare the result with both: `python -m demo`.

It gets both models (once), prints the plan, merges, loads the result and lets all three models
find the answers to a few questions.
"""

import os
import shlex
import subprocess
import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table

from demo.models import DEMO, fetch

MERGED = DEMO / "output" / "merged"

console = Console(highlight=False, soft_wrap=True)


def main() -> int:
    step("Two models: all-MiniLM-L6-v2, and a fine-tune of it for site reliability engineering")
    models = fetch()
    for model in models:
        console.print(f"  {shown(model)}")

    # --overwrite: the folder may hold the result of an earlier run.
    merge = ["average", *map(shown, models), "-o", shown(MERGED), "--memory", "512MiB"]
    step("The plan, from the headers alone")
    streammerge(*merge, "--overwrite", "--dry-run")

    step("The merge, quiet because its plan stands above")
    streammerge(*merge, "--overwrite", "--quiet")

    # Imported late, so that the demo does not begin with seconds of silence.
    from demo import retrieval

    step("Loaded by transformers")
    problems = retrieval.loading_problems(MERGED)
    for kind, found in problems.items():
        console.print(f"  {kind}: {', '.join(found) or 'none'}")

    step("Which answer belongs to which question?")
    table = Table("model", box=None, padding=(0, 2))
    for column in ("right at once", "mean reciprocal rank", "mean margin"):
        table.add_column(column, justify="right")
    for model in (*models, MERGED):
        score = retrieval.score(model)
        right = f"{score.first} of {score.questions}"
        table.add_row(model.name, right, f"{score.reciprocal_rank:.3f}", f"{score.margin:+.3f}")
    console.print(table)
    console.print("[dim]  the pairs of demo/pairs.json: an illustration, no benchmark[/dim]")

    console.print(f"\nThe merged model lies in [bold]{shown(MERGED)}[/bold]")
    return 1 if any(problems.values()) else 0


def step(title: str) -> None:
    console.print(f"\n[bold cyan]{title}[/bold cyan]")


def shown(path: Path) -> str:
    """The path as one would type it here."""
    return os.path.relpath(path)


def streammerge(*arguments: str) -> None:
    """Run the command line tool as a user would, on this terminal."""
    line = shlex.join(arguments).replace(" -o ", " \\\n      -o ")
    console.print(f"[dim]$ streammerge {line}[/dim]")
    sys.stdout.flush()  # or a pipe would get the command's lines before ours
    subprocess.run([sys.executable, "-m", "streammerge", *arguments], check=True)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except subprocess.CalledProcessError as error:
        # The command has said what is wrong; a traceback of the demo would bury it.
        sys.exit(error.returncode)
    except KeyboardInterrupt:
        sys.exit(130)

"""``fl-split check``: holds a part, yours or ours, to the laws of its kind."""

from __future__ import annotations

from typing import Annotated

import typer

from simulations.cli.terminal import complain, door, out, quiet
from simulations.runs.paths import expanded

app = typer.Typer()

SPEC = typer.Argument(help="The part: [b]my_pkg.codecs:MyCodec(ratio=0.1)[/b].", metavar="SPEC")
PLUGINS = typer.Option("--plugin", help="Python file that has it; its name is the module's.")


@app.command()
def check(spec: Annotated[str, SPEC], plugins: Annotated[list[str] | None, PLUGINS] = None) -> None:
    """Hold a codec, channel, model, strategy, skew or engine to the laws that ours are held to.

    Example: [b]fl-split check "my_parts:MyCodec(ratio=0.1)" --plugin my_parts.py[/b]
    """
    with quiet(), door():
        from fl_split.foreign import plug_in
        from simulations.api import checks

        plug_in([str(expanded(file)) for file in plugins or []])
        try:
            kind = checks.check(spec)
        except AssertionError as broken:
            complain(f"{spec} breaks a law: {broken}")
            raise typer.Exit(1) from None
    out.print(f"{spec}: keeps the laws of a {kind}", markup=False, highlight=False, soft_wrap=True)

"""Command `infer`: a trained run answers its test images, on the device or by the server."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from simulations.cli.data_view import counting
from simulations.cli.terminal import door, err, existing, out, quiet
from simulations.runs.paths import expanded

if TYPE_CHECKING:
    from simulations.inference.outcome import Inference

app = typer.Typer()


@app.command()
def infer(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of a finished run.")],
    policy: Annotated[
        list[str] | None,
        typer.Option(
            "--policy",
            "-p",
            metavar="SPEC",
            help="When an image leaves; may be repeated. Default: threshold(tau=0.9).",
        ),
    ] = None,
    system: Annotated[
        str | None,
        typer.Option("--system", "-s", metavar="SPEC", help="Devices and network, for seconds."),
    ] = None,
    codec: Annotated[
        str | None,
        typer.Option(metavar="SPEC", help="Another codec than the run's."),
    ] = None,
    channel: Annotated[
        str | None, typer.Option(metavar="SPEC", help="What payloads go over; default: the run's.")
    ] = None,
    price: Annotated[
        float | None,
        typer.Option(
            help="Fit thresholds to held-out rows: accuracy less this times bytes.",
        ),
    ] = None,
    delay_price: Annotated[
        float | None,
        typer.Option(
            help="Fit to held-out rows: accuracy less this times seconds, the return.",
        ),
    ] = None,
    carry: Annotated[
        bool,
        typer.Option("--carry", help="The server mixes in the answer of the last exit passed."),
    ] = False,
    rate: Annotated[
        float | None,
        typer.Option(help="Share of patches that go on, if the run selects some."),
    ] = None,
    rates: Annotated[
        str,
        typer.Option(
            metavar="R, ...", help="Sweep these shares of patches; controllers choose among them."
        ),
    ] = "",
    codecs: Annotated[
        str,
        typer.Option(
            metavar="SPEC; ...", help="Sweep these codecs; controllers choose among them."
        ),
    ] = "",
    output: Annotated[
        str | None, typer.Option("--out", metavar="DIR", help="Default: DIR/infer.")
    ] = None,
) -> None:
    r"""Let a trained run answer its test images one by one, with exits as with a server.

    Each image leaves at an exit of the device, or is sent to the server, as the policy says.
    Beside the policies: all at the last exit, all sent, an oracle, a split without codec, exits
    and selection, JPEG and WebP files of the images.
    Thresholds are swept to a frontier, against a random mixture at equal bytes.

    The controllers [b]lyapunov[/b] and [b]gate[/b] send every image, and choose its share of
    patches and its codec. [b]threshold() | gate()[/b] lets images leave, and does so for the rest.

    Example: [b]fl-split infer runs/a -p "threshold(tau=0.8)" -s "devices('pi5') | lte()"[/b]
    """
    with door():
        folder = existing(folder)
        target = expanded(output) if output else folder / "infer"
    with quiet():
        from simulations.inference.inference import infer as inferred
        from simulations.inference.outcome import check_new, write
    with door(), counting(err) as progress:
        check_new(target)
        found = inferred(
            folder,
            policy or "threshold()",
            system=system,
            codec=codec,
            channel=channel,
            price=price,
            delay_price=delay_price,
            carry=carry,
            rate=rate,
            rates=_numbers(rates),
            codecs=[word.strip() for word in codecs.split(";") if word.strip()],
            progress=progress,
        )
        files = write(found, target)
    _show(found, files)


def _show(found: Inference, files: Sequence[Path]) -> None:
    """Print the table, where images left, notes and names of files."""
    from simulations.report.text_table import text_table

    titles, rows, spare = found.lines()
    caption = (
        "Means over test images. mix.: all local and all sent at random, at equal bytes; of a "
        "controller its random mixture of constants. file: JPEG or WebP of no more bytes."
    )
    out.print(text_table(titles, rows, out.width, caption=caption, spare=spare))
    for name, counts in found.histograms.items():
        told = ", ".join(f"{key} {count}" for key, count in counts.items())
        out.print(f"{name}: {told}", markup=False, highlight=False, soft_wrap=True)
    for note in found.notes:
        out.print(f"note: {note}", markup=False, highlight=False, soft_wrap=True)
    text = f"Written: {', '.join(map(str, files))}"
    out.print(text, markup=False, highlight=False, soft_wrap=True)


def _numbers(text: str) -> list[float]:
    """Read numbers with commas between; ValueError if one is none."""
    words = [word.strip() for word in text.split(",") if word.strip()]
    try:
        return [float(word) for word in words]
    except ValueError:
        raise ValueError(f"rates must be numbers with commas between, got {text!r}") from None

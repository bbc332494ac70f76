"""Task graphs of finished rounds on disk: a Parquet file a round, below ``tasks.parquet``.

A row is a task, and its number is its place in the file. Columns: `round`; `kind` as
:data:`~strategies.server.tasks.Kind` lists them; `client`, -1 for the server; `step`, the
client's step of the round; `amount`, bytes of what crosses, operations of what computes,
microseconds of waits; `after`, the numbers of the tasks of this round that it waited for. Rounds
follow each other.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from io import BytesIO
from pathlib import Path

import numpy as np
import pyarrow as pa
from pyarrow import parquet

from simulations.runs.files import DamagedError, write_whole
from simulations.system.graph import KINDS, Graph
from strategies.server.tasks import Task

FOLDER = "tasks.parquet"

SCHEMA = pa.schema(
    {
        "round": pa.int32(),
        "kind": pa.dictionary(pa.int8(), pa.string()),
        "client": pa.int32(),
        "step": pa.int32(),
        "amount": pa.int64(),
        "after": pa.list_(pa.int32()),
    }
)


def file_of(folder: Path, number: int) -> Path:
    """Return where the graph of a round is in the folder of a run."""
    return folder / FOLDER / f"round-{number:06d}.parquet"


def write(folder: Path, number: int, tasks: Sequence[Task]) -> Path:
    """Write the graph of a round; return the file. WriteError if it cannot be written."""
    found, path = Graph.of(tasks), file_of(folder, number)
    kinds = pa.DictionaryArray.from_arrays(pa.array(found.kinds, pa.int8()), list(KINDS))
    columns = [
        pa.array(np.full(len(tasks), number), pa.int32()),
        kinds,
        pa.array(found.clients, pa.int32()),
        pa.array(found.steps, pa.int32()),
        pa.array(found.amounts, pa.int64()),
        pa.ListArray.from_arrays(
            pa.array(found.bounds, pa.int32()), pa.array(found.after, pa.int32())
        ),
    ]
    table, file = pa.Table.from_arrays(columns, schema=SCHEMA), BytesIO()
    parquet.write_table(table, file, compression="zstd", write_statistics=False)
    write_whole(path, file.getvalue())
    return path


def read(folder: Path, rounds: int) -> Iterator[Graph]:
    """Yield the graphs of the first `rounds` rounds of a run.

    Raises
    ------
    DamagedError
        A file is missing, torn or no graph.
    """
    for number in range(1, rounds + 1):
        yield read_round(folder, number)


def read_round(folder: Path, number: int) -> Graph:
    """Return the graph of one round; raise as :func:`read` does."""
    path = file_of(folder, number)
    try:
        return _graph(parquet.read_table(path, partitioning=None).combine_chunks())
    except FileNotFoundError:
        raise DamagedError(f"{path} is missing") from None
    except (OSError, ValueError, KeyError) as error:  # pyarrow's own are among these
        raise DamagedError(f"{path} is torn or no task graph: {error}") from None


def _graph(table: pa.Table) -> Graph:
    names = table["kind"].cast(pa.string()).to_pylist()
    places = {str(kind): place for place, kind in enumerate(KINDS)}
    after = table["after"].combine_chunks()
    after = after.chunk(0) if isinstance(after, pa.ChunkedArray) else after
    clients, steps, amounts = (
        table[key].to_numpy().astype(np.int64) for key in ("client", "step", "amount")
    )
    return Graph(
        np.array([places[name] for name in names], np.int64),
        clients,
        steps,
        amounts,
        after.flatten().to_numpy().astype(np.int64),
        after.offsets.to_numpy().astype(np.int64),
    )

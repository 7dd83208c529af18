"""`python -m tests.notebook` executes quickstart.ipynb and keeps its outputs in it."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

REPO = Path(__file__).resolve().parents[1]
NOTEBOOK = REPO / "quickstart.ipynb"
_NEEDS = ("recipes/quickstart", "cache/quickstart.pack")
# Of no machine, and without the time of each cell.
_METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}


def execute(folder: Path) -> Any:
    """The notebook with the outputs that it gives in `folder`, which gets what the notebook reads and
    an empty cache. Raises nbclient's CellExecutionError."""
    import nbformat
    from nbclient import NotebookClient

    for name in _NEEDS:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        copy = shutil.copytree if (REPO / name).is_dir() else shutil.copyfile
        copy(REPO / name, folder / name)
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    client = NotebookClient(
        notebook,
        kernel_name="python3",
        resources={"metadata": {"path": str(folder)}},
        extra_arguments=["--log-level=ERROR"],  # a warning that it listens on TCP, on this machine alone
        record_timing=False,
    )
    ours = {"MINICOLLAB_CACHE": str(folder / "cache/store"), "IPYTHONDIR": str(folder / ".ipython")}
    paths = os.pathsep.join([str(REPO), *filter(None, [os.environ.get("PYTHONPATH")])])
    client.execute(env=os.environ | ours | {"PYTHONPATH": paths})
    notebook.metadata = {**_METADATA, "minicollab": {"sources": sources(notebook)}}
    for cell in notebook.cells:
        cell.metadata = {}
    return notebook


def sources(notebook: Mapping[str, Any]) -> str:
    """Names what the code cells say: outputs kept with other sources are not theirs."""
    code = ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]
    return hashlib.sha256(json.dumps(code).encode()).hexdigest()


def main() -> None:
    import nbformat

    begin = time.monotonic()
    with TemporaryDirectory(prefix="minicollab-") as folder:
        notebook = execute(Path(folder))
    nbformat.write(notebook, NOTEBOOK)
    print(f"{NOTEBOOK.name} executed in {time.monotonic() - begin:.0f} s", file=sys.stderr)


if __name__ == "__main__":
    main()

"""A user's structures as a table of chains: a table, one file, or a folder of files."""

from __future__ import annotations

import logging
from pathlib import Path

from domains.proteins.collect import table_from_chains, table_from_folder
from domains.proteins.ensembles import read_ensemble
from domains.proteins.table import ChainTable

__all__ = ["own_table"]


def own_table(source: Path) -> ChainTable:
    """The chains of ``source``; what is left out is logged.

    Args:
        source: a table (.npz), a PDB or mmCIF file with one or many models, or a folder of them.

    Raises:
        InputError: it cannot be read, or no chain of it can be used.
    """
    if source.suffix == ".npz":
        return ChainTable.load(source)
    if source.is_dir():
        table, dropped = table_from_folder(source)
    else:
        result = read_ensemble(source)
        table, dropped = table_from_chains(result.chains, source)
        dropped = [*result.dropped, *dropped]
    if dropped:
        log = logging.getLogger(__name__)
        log.warning("%s: %d left out; the first: %s", source, len(dropped), dropped[0])
    return table

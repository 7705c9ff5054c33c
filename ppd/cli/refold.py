"""`ppd refold`."""

from pathlib import Path
from typing import Annotated

import typer

from ppd.cli.app import BundleArgument, app, bar


@app.command()
def refold(
    bundle: BundleArgument,
    tree: Annotated[
        str,
        typer.Argument(metavar="TREE", help="A tree file, hand-made (a small tree), or none (never draft)."),
    ],
) -> None:
    """Fold another tree into a bundle; the weights are not touched."""
    from ppd.bundle import open_bundle
    from ppd.changes import refold_tree
    from ppd.planning.hand_made import hand_made_tree
    from ppd.tree import Tree, load_tree

    manifest = open_bundle(bundle, verify=False).manifest
    known = {"hand-made": hand_made_tree, "none": Tree.none}
    if tree in known:
        new, source = known[tree](manifest.num_distances, by_heads=manifest.guess_heads is not None), tree
    else:
        new, source = load_tree(Path(tree)), Path(tree).name
    with bar() as show:
        folded = refold_tree(bundle, new, source=source, told=lambda line: show(line, None))
    rows = ", ".join(f"state {state}: {n}" for state, n in folded.manifest.tree.num_rows.items())
    print(f"{bundle}: folded {folded.manifest.tree.source} (rows per state: {rows})")

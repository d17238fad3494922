"""The files of the source tree that are made from the typed model and the reasons, and the command that writes them."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

from semipd_operator.crd import chart_template, custom_resource_definition, to_yaml
from semipd_operator.docs import conditions, reference

FILES: dict[str, Callable[[], str]] = {
    "crds/semipdservices.semipd.io.yaml": lambda: to_yaml(custom_resource_definition()),
    "charts/semipd-operator/templates/crds/semipdservices.semipd.io.yaml": chart_template,
    "docs/crd.md": reference,
    "docs/conditions.md": conditions,
}
"""Path below the root of the source tree -> content."""


def source_tree() -> Path:
    """The root of the checkout that this module runs from."""
    root = Path(__file__).resolve().parents[2]
    if not (root / "crds").is_dir():
        sys.exit("semipd_operator.generated: this is an installed package: run it from a source tree (make crd)")
    return root


def main() -> None:
    """``--print`` shows the CRD instead of writing files."""
    if "--print" in sys.argv[1:]:
        sys.stdout.write(to_yaml(custom_resource_definition()))
        return
    root = source_tree()
    for name, content in FILES.items():
        (root / name).write_text(content())
        print(name)


if __name__ == "__main__":
    main()

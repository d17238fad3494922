"""`python -m hack.generate` writes the files that are made from the typed model and the reasons."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

from hack.generate.assumptions import assumptions
from hack.generate.failures import failures
from hack.generate.reference import conditions, reference
from semipd_operator.crd import chart_template, custom_resource_definition, to_yaml

ROOT = Path(__file__).resolve().parents[2]
FILES: dict[str, Callable[[], str]] = {
    "crds/semipdservices.semipd.io.yaml": lambda: to_yaml(custom_resource_definition()),
    "charts/semipd-operator/templates/crds/semipdservices.semipd.io.yaml": chart_template,
    "docs/crd.md": reference,
    "docs/conditions.md": conditions,
    "docs/gpu/assumptions.md": assumptions,
    "docs/gpu/failures.md": failures,
}
"""Path below the root of the source tree -> content."""


def main() -> None:
    """``--print`` shows the CRD instead of writing files."""
    if "--print" in sys.argv[1:]:
        sys.stdout.write(to_yaml(custom_resource_definition()))
        return
    for name, content in FILES.items():
        (ROOT / name).write_text(content())
        print(name)


if __name__ == "__main__":
    main()

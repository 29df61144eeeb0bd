"""Pins every package the running environment has for this project: `constraints.txt`, for CI.

    .venv-test/bin/python scripts/lock.py > constraints.txt

Run it in an environment in which the tests have just passed. The pins hold for its Python version
and for no other, because JAX and Flax differ between them.
"""

from __future__ import annotations

import sys
from importlib.metadata import PackageNotFoundError, distribution

from packaging.requirements import Requirement

EXTRAS = ("test", "eval")


def pins(project: str = "malt-jax") -> dict[str, str]:
    """Version by package, of all that the project and its extras need, directly or not."""
    found: dict[str, str] = {}
    owed = [(project, EXTRAS)]
    seen = set()
    while owed:
        name, extras = owed.pop()
        try:
            package = distribution(name)
        except PackageNotFoundError:
            continue
        if name != project:
            # A local suffix such as +cpu names a build, not a version.
            found[name.lower().replace("_", "-")] = package.version.partition("+")[0]
        for line in package.requires or ():
            need = Requirement(line)
            wanted = any(
                need.marker is None or need.marker.evaluate({"extra": extra})
                for extra in ("", *extras)
            )
            key = (need.name.lower(), tuple(sorted(need.extras)))
            if wanted and key not in seen:
                seen.add(key)
                owed.append(key)
    return found


if __name__ == "__main__":
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    print(f"# Written by scripts/lock.py: what CI installs on Python {version}.")
    for name, pin in sorted(pins().items()):
        print(f'{name}=={pin} ; python_version == "{version}"')

"""Prints the version of every package that the project needs in this environment, for CI.

    .venv-test/bin/python scripts/lock.py > constraints.txt

Run it in an environment in which the tests have just passed. The versions hold for its Python
version only, because JAX and Flax differ between Python versions.
"""

from __future__ import annotations

import sys
from importlib.metadata import PackageNotFoundError, distribution

from packaging.requirements import Requirement

EXTRAS = ("test", "eval")


def installed_versions(project: str = "malt-jax") -> dict[str, str]:
    """The version of every package that the project and its extras need, directly or indirectly."""
    found: dict[str, str] = {}
    pending = [(project, EXTRAS)]
    seen = set()
    while pending:
        name, extras = pending.pop()
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
                pending.append(key)
    return found


if __name__ == "__main__":
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    print(f"# Written by scripts/lock.py: what CI installs on Python {version}.")
    for name, pinned in sorted(installed_versions().items()):
        print(f'{name}=={pinned} ; python_version == "{version}"')

"""Whether this Python can run the chapters: ``python -m svdgrad.check_env`` prints OK, or what to do."""

import importlib.metadata
import re
import sys
from collections.abc import Callable

#: what the chapters import, and the oldest version that pyproject.toml admits
NEEDED = {
    "numpy": "2",
    "torch": "2.11",
    "jax": "0.10",
    "scipy": "1.15",
    "python-flint": "0.8",
    "tqdm": "4.66",
    "matplotlib": "3.10",
    "scikit-learn": "1.9",
    "networkx": "3.6",
    "ipykernel": "7.2",
}


def numbers(version: str) -> tuple[int, ...]:
    """The leading numbers of a version, which compare as versions do.

    >>> numbers("2.13.0+cpu"), numbers("2.9") < numbers("2.11")
    ((2, 13, 0), True)
    """
    found = re.match(r"\d+(?:\.\d+)*", version)
    return tuple(map(int, found[0].split("."))) if found else ()


def faults(version_of: Callable[[str], str] = importlib.metadata.version) -> list[str]:
    """What the chapters lack here, in sentences."""
    found = []
    for name, oldest in NEEDED.items():
        try:
            version = version_of(name)
        except importlib.metadata.PackageNotFoundError:
            found.append(f"{name} is not installed")
            continue
        if numbers(version) < numbers(oldest):
            found.append(f"{name} {version} is installed, {oldest} or newer is needed")
    return found


def main() -> None:
    """Print OK and the versions; or what is missing, and the command that brings it."""
    lacking = faults()
    if lacking:
        wanted = " ".join(f"'{name}>={oldest}'" for name, oldest in NEEDED.items() if any(name in x for x in lacking))
        raise SystemExit(
            "\n".join(lacking)
            + "\nThe likely cause is another Python than the one that the project was installed for. Either run\n"
            + f"    {sys.executable} -m pip install {wanted}\n"
            + "or, in a clone of the project, `make lab`, which makes an environment of its own."
        )
    import torch

    from svdgrad.lab import device

    print(f"OK: Python {sys.version.split()[0]}, PyTorch {torch.__version__}, the chapters will use {device()}")


if __name__ == "__main__":
    main()

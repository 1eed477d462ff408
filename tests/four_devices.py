"""A program in a process of its own, where JAX sees four devices of the CPU."""

import os
import subprocess
import sys


def output_on_four_devices(program: str, *arguments: str) -> str:
    """What the program prints, or the end of its errors."""
    flags = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=4"
    run = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        capture_output=True,
        text=True,
        env=os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
    )
    return run.stdout or run.stderr[-3000:]

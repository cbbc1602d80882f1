"""What importing kldm must not import."""

import subprocess
import sys


def test_the_compiler_is_not_imported_before_it_is_used() -> None:
    """It takes more than a second, which every command would wait for."""
    program = (
        "import sys, torch; from kldm.registry import SHELVES; [shelf.names() for shelf in SHELVES.values()]; "
        "sys.exit(any(name.startswith(('torch._dynamo', 'torch._inductor')) for name in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0

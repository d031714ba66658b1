"""What a process leaves behind in llama.cpp."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ONE_AFTER_ANOTHER = """
import gc, sys
from pathlib import Path
import llama_cpp
from inference.llama import LlamaContext

model = Path(sys.argv[1])
context = LlamaContext(model, slots=1, size=128, threads=1, memory_bytes=4 << 30)
del context
gc.collect()
junk = [bytes(100 + number % 400) for number in range(100_000)]
options = llama_cpp.llama_model_default_params()
options.vocab_only = True
print("loaded" if llama_cpp.llama_model_load_from_file(str(model).encode(), options) else "refused")
"""


@pytest.mark.model
def test_a_context_that_has_gone_leaves_nothing_that_the_library_would_call(default_model: Path) -> None:
    command = [sys.executable, "-c", ONE_AFTER_ANOTHER, str(default_model)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stdout) == (0, "loaded\n"), done.stderr[-500:]

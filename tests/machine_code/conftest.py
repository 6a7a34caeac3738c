import os

NEED_A_COMPILER = ["calls", "catalogue", "compile", "inspection", "launches"]

if os.environ.get("TRITON_INTERPRET") == "1":  # leaves nothing to record or to compile
    collect_ignore = [f"test_{name}.py" for name in NEED_A_COMPILER]

"""Rows of the suite with invented figures."""

from benchmarks.suite.cases import SuiteCase

WIDE = (768, 3072)


def timing(name, us, speedup=1.0, q75=None, fraction=0.5):
    return {
        "name": name,
        "median_seconds": us * 1e-6,
        "speedup_median": speedup,
        "speedup_q75": speedup if q75 is None else q75,
        "tflops": 123.45,
        "gigabytes_per_second": 678.9,
        "roofline_fraction": fraction,
        "launched": False,
    }


def row(case, *timings, **failed):
    return {"case": case.to_dict(), "timings": {t["name"]: t for t in timings}, "failed": failed}


def low_rank(tokens=8192, rank=64, **changes):
    return SuiteCase(*WIDE, f"r{rank}", "fused", tokens, **changes)


def sparse(percent=10, tokens=8192):
    return SuiteCase(*WIDE, f"128x16-d{percent}", tokens=tokens)

from benchmarks.readme.embeddings import quality_table

SIZES = {"linears_bytes": 2e6, "model_bytes": 3e6, "cosine_mean": 0.5, "spearman": 0.25}


def test_models_without_times_are_named_under_the_table_with_the_reason():
    comparison = {
        "label": "1x16",
        "timings": [{"name": "dense", "speedup_median": 1.0}],
        "missing": {"int8": "output is off"},
    }
    models = [{"name": name, **SIZES} for name in ("dense", "int8")]
    shown = quality_table({"models": models, "comparisons": [comparison] * 2})
    assert shown.splitlines()[2:] == [
        "| dense | 2.0 | 3.0 | 0.500 | 0.250 | 1.00 | 1.00 |",
        "| int8 | 2.0 | 3.0 | 0.500 | 0.250 | - | - |",
        "",
        "Missing: int8 (output is off).",
        "",
    ]


def test_chosen_models_alone_have_rows():
    models = [{"name": name, **SIZES} for name in ("dense", "int8")]
    shown = quality_table({"models": models, "comparisons": []}, names=("int8",))
    assert shown.splitlines()[2:] == ["| int8 | 2.0 | 3.0 | 0.500 | 0.250 |"]

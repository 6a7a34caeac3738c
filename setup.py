from setuptools import setup

# `kernels/` is a source root, not a package: Hugging Face ships an import package named `kernels`
# that transformers probes for, so ours must never be importable under that name.
setup(
    package_dir={"lada_kernels": "kernels/lada_kernels", "lada_ops": "lada_ops"},
    packages=[
        "lada_kernels",
        "lada_ops",
        "lada_ops.compress",
        "lada_ops.latency",
        "lada_ops.machine_code",
        "lada_ops.modules",
        "lada_ops.ops",
        "lada_ops.tune",
    ],
    package_data={"lada_ops": ["py.typed"], "lada_kernels": ["py.typed", "configs/*/*.json"]},
)

"""Maps the top-level folders patches/ and eval/ to qm_vllm.patches and qm_vllm.eval.

Everything else about the build stands in pyproject.toml.
"""

from setuptools import find_packages, setup

MAPPED = {"qm_vllm.patches": "patches", "qm_vllm.eval": "eval"}

packages = find_packages(include=["qm_vllm", "qm_vllm.*"])
for name, folder in MAPPED.items():
    packages += [name, *(f"{name}.{inner}" for inner in find_packages(folder))]

setup(
    packages=packages,
    package_dir=MAPPED,
    package_data={
        "qm_vllm": ["calibrations/*.json"],
        "qm_vllm.eval.tasks": ["questions.json"],
        "qm_vllm.eval.datasets": ["micro_booksum.json"],
    },
)

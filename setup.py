"""What pyproject.toml cannot say: the demo is a run of the checkout, and package data of the wheel."""

from setuptools import find_namespace_packages, setup

SHIPPED_RUNS = "moe_core.runs.shipped"

setup(
    packages=[
        *find_namespace_packages(include=["moe_core*", "data_gen*", "app*"], exclude=["*__pycache__*"]),
        SHIPPED_RUNS,
    ],
    package_dir={SHIPPED_RUNS: "checkpoints"},
    package_data={
        SHIPPED_RUNS: ["demo/**/*"],
        "moe_core.experiments.shipped": ["*.json"],
        "moe_core.reports": ["templates/*.j2"],
        "app": ["icon.svg", ".streamlit/config.toml"],
        "app.components": ["*.html", "*.css", "*.js"],
    },
    exclude_package_data={SHIPPED_RUNS: ["**/*.lock", "**/train.log", "**/stop"]},
)

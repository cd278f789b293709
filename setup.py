"""Packaging of d2_plugins; imports setuptools only, since build isolation hides torch."""

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent
CONFIG_PACKAGES = ["d2_plugins.configs"]


def read_version() -> str:
    """Return the version of the package without importing it."""
    text = (ROOT / "d2_plugins" / "__init__.py").read_text()
    match = re.search(r'^__version__ = "([^"]+)"', text, re.MULTILINE)
    if match is None:
        raise RuntimeError("no __version__ in d2_plugins/__init__.py")
    return match.group(1)


setup(
    name="d2_plugins",
    version=read_version(),
    description="CSPNet, CBAM/ECA, Cascade RPN, Double-Head and Inverted Attention for detectron2",
    long_description=(ROOT / "README.md").read_text(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.10",
    classifiers=[
        "Development Status :: 4 - Beta",
        "Intended Audience :: Science/Research",
        "Operating System :: POSIX :: Linux",
        "Operating System :: MacOS",
        *(f"Programming Language :: Python :: 3.{minor}" for minor in (10, 11, 12, 13)),
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
    packages=find_packages(include=["d2_plugins", "d2_plugins.*"]) + CONFIG_PACKAGES,
    package_dir={"d2_plugins.configs": "configs"},
    # The command's entry point is a module of its own, see its docstring.
    py_modules=["d2_plugins_command"],
    entry_points={"console_scripts": ["d2-plugins = d2_plugins_command:main"]},
    package_data={
        "d2_plugins": ["py.typed"],
        "d2_plugins.hub": ["*.jinja"],
        "d2_plugins.report": ["*.jinja"],
        "d2_plugins.configs": ["*.yaml", "*/*.yaml", "lazy/*.py"],
    },
    # detectron2 is not listed: PyPI does not have it under its own name, and an installed one must
    # not be replaced. d2_plugins/__init__.py says how to get it.
    install_requires=[
        "torch>=2.4",
        "torchvision>=0.19",
        "numpy",
        "fvcore",
        "iopath",
        "jinja2",
        "pycocotools>=2.0.7",
        "faster-coco-eval>=1.6",
        "timm>=1.0.9",
        "matplotlib",
        "omegaconf",
        "pillow",
        "pyyaml",
        "tabulate",
        "tqdm",
    ],
    extras_require={
        "export": ["onnx", "onnxruntime", "onnxscript"],
        "track": ["trackers>=2.6"],
        "dev": [
            "filelock",
            "hypothesis",
            "import-linter",
            "markdown-it-py",
            "mypy",
            "pytest",
            "pytest-randomly",
            "pytest-socket",
            "pytest-timeout",
            "pytest-xdist",
            "ruff",
            "types-PyYAML",
            "types-tabulate",
            "types-tqdm",
        ],
    },
    zip_safe=False,
)

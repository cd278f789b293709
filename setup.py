"""Packaging of d2_plugins; imports setuptools only, since build isolation hides torch."""

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent
CONFIG_PACKAGES = ["d2_plugins.configs"]
# A package index shows README without the checkout around it.
LOCAL_PICTURE = re.compile(r"^!\[[^\]]*\]\((?!\w+:)[^)]*\)\n+(\*[^*]+\*\n+)?", re.MULTILINE)
LOCAL_LINK = re.compile(r"\[([^\]]*)\]\((?!\w+:)([^)#]+)(#[^)]*)?\)")


def read_version() -> str:
    """Return the version of the package without importing it."""
    text = (ROOT / "d2_plugins" / "__init__.py").read_text(encoding="utf-8")
    match = re.search(r'^__version__ = "([^"]+)"', text, re.MULTILINE)
    if match is None:
        raise RuntimeError("no __version__ in d2_plugins/__init__.py")
    return match.group(1)


def read_description() -> str:
    """Return README without local pictures and their captions, and with paths for local links."""

    def path_of(link: re.Match[str]) -> str:
        label, path = link[1], link[2]
        return f"`{path}`" if Path(path).stem == label else f"{label} (`{path}`)"

    text = (ROOT / "README.md").read_text(encoding="utf-8")
    return LOCAL_LINK.sub(path_of, LOCAL_PICTURE.sub("", text))


setup(
    name="d2_plugins",
    version=read_version(),
    description="CSPNet, CBAM/ECA, Cascade RPN, Double-Head and Inverted Attention for detectron2",
    long_description=read_description(),
    long_description_content_type="text/markdown",
    author="The d2_plugins maintainers",
    keywords=[
        *("detectron2", "object detection", "instance segmentation", "PyTorch"),
        *("CSPNet", "CBAM", "ECA", "Cascade RPN", "Double-Head R-CNN", "Inverted Attention"),
    ],
    license="Apache-2.0",
    python_requires=">=3.11,<3.14",
    classifiers=[
        "Development Status :: 4 - Beta",
        "Intended Audience :: Science/Research",
        "License :: OSI Approved :: Apache Software License",
        "Operating System :: POSIX :: Linux",
        "Operating System :: MacOS",
        "Programming Language :: Python :: 3 :: Only",
        *(f"Programming Language :: Python :: 3.{minor}" for minor in (11, 12, 13)),
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Topic :: Scientific/Engineering :: Image Recognition",
        "Typing :: Typed",
    ],
    packages=find_packages(include=["d2_plugins", "d2_plugins.*"]) + CONFIG_PACKAGES,
    package_dir={"d2_plugins.configs": "configs"},
    # The command's entry point is a module of its own, see its docstring.
    py_modules=["d2_plugins_command"],
    entry_points={"console_scripts": ["d2-plugins = d2_plugins_command:main"]},
    package_data={
        "d2_plugins": ["py.typed"],
        "d2_plugins.hub": ["*.jinja"],
        "d2_plugins.report": ["*.jinja", "*.json"],
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
        # The dependencies of a detectron2 that was installed without them. OpenCV, which its
        # visualizer imports, is not among install_requires: its four packages overwrite each
        # other's files, and only the user knows which one is installed.
        "detectron2": [
            "black",
            "cloudpickle",
            "hydra-core",
            "opencv-python-headless",
            "packaging",
            "tensorboard",
            "termcolor",
            "yacs",
        ],
        "export": ["onnx", "onnxruntime", "onnxscript"],
        "wandb": ["wandb"],
        "mlflow": ["mlflow"],
        "track": ["trackers>=2.6"],
        "dev": [
            "filelock",
            "hypothesis",
            "import-linter",
            "markdown-it-py",
            "mkdocs-material",
            "mkdocstrings-python",
            "mypy",
            "packaging",
            "pytest",
            "pytest-randomly",
            "pytest-socket",
            "pytest-timeout",
            "pytest-xdist",
            "ruff",
            "scipy",
            "types-PyYAML",
            "types-tabulate",
            "types-tqdm",
        ],
    },
    zip_safe=False,
)

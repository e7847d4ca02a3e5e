"""``farout doctor``: what this machine has, and what is missing."""

from __future__ import annotations

import typer

EXTRAS = {
    "torch": ("torch", "safetensors"),
    "llm": ("transformers", "tokenizers", "compressed_tensors"),
    "vision": ("PIL", "timm"),
    "audio": ("soundfile",),
    "dist": ("dask", "distributed"),
    "onnx": ("onnx", "onnxruntime"),
}


def add(app: typer.Typer) -> None:
    """Add the verb to the program."""
    app.command()(doctor)


def doctor() -> None:
    """Show versions, extras, data folder and hardware; exit 1 where a needed package does not load."""
    import os
    import platform
    from importlib import import_module, metadata, util
    from pathlib import Path

    import farout

    print(f"farout {farout.__version__}, Python {platform.python_version()}, {platform.system()} {platform.machine()}")
    print(f"{os.cpu_count()} cores")
    broken = 0
    for package in ("numpy", "scipy", "sklearn", "polars", "pyarrow", "narwhals", "rich", "plotly", "jinja2", "skops"):
        try:
            module = import_module(package)
            print(f"  {package:12} {getattr(module, '__version__', None) or metadata.version(package)}")
        except Exception as error:
            broken += 1
            print(f"  {package:12} does not load: {error}")
    for extra, packages in EXTRAS.items():
        absent = [package for package in packages if util.find_spec(package) is None]
        state = f"missing {', '.join(absent)}: pip install 'farout[{extra}]'" if absent else "installed"
        print(f"  extra {extra:6} {state}")
    folder = os.environ.get("FAROUT_DATA")
    found = "not set" if not folder else folder if Path(folder).is_dir() else f"'{folder}' is no folder"
    print(f"  FAROUT_DATA  {found}")
    if util.find_spec("torch"):
        import torch

        print(f"  GPU          {torch.cuda.get_device_name() if torch.cuda.is_available() else 'none'}")
    if broken:
        raise typer.Exit(1)

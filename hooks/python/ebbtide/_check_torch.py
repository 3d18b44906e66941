"""Refuses a torch that the compiled part was not built with: torch keeps its C++ interface only within a minor version."""

from ebbtide import _build


def _major_minor(version: str) -> str:
    return ".".join(version.split("+")[0].split(".")[:2])


def check_torch() -> None:
    """Raises ImportError, saying what to do, when torch is missing or its major.minor is not the one of the build.

    Called before the compiled module is loaded: with another torch that would fail with an undefined symbol, or crash.
    """
    try:
        import torch
    except ImportError as error:
        raise ImportError(
            f"ebbtide needs torch {_major_minor(_build.torch_version)}, which it was built with, "
            f"and torch could not be imported ({error}): pip install 'torch=={_major_minor(_build.torch_version)}.*'"
        ) from error
    built, found = _major_minor(_build.torch_version), _major_minor(str(torch.__version__))
    if built != found:
        raise ImportError(
            f"ebbtide {_build.version} was built with torch {built}, but torch {torch.__version__} is installed. Either build "
            f"ebbtide again with this torch, in its source folder: pip install . --no-build-isolation --force-reinstall --no-deps; "
            f"or install the torch that it knows: pip install 'torch=={built}.*'"
        )

"""The error for what the user can correct, and the words for a package that is not installed."""

EXTRAS = {
    "skimage": "experiments",
    "sklearn": "experiments",
    "torch": "torch",
    "faiss": "retrieval",
    "gradio": "explore",
    **dict.fromkeys(("fsspec", "gcsfs", "s3fs"), "cloud"),
}
"""The extra of pyproject.toml that brings a package; all other packages come with `train`."""


class UsageError(ValueError):
    """Something that the user can correct; the message says what is wrong, what is accepted and what to do."""


def missing_package(error: ModuleNotFoundError) -> str:
    """Says which extra to install for a package that is missing.

    Raises:
      ModuleNotFoundError: the error itself, if a module of this project is missing.
    """
    package = (error.name or "").split(".")[0]
    if package in ("", "alexnet_jax"):
        raise error
    extra = EXTRAS.get(package, "train")
    return (
        f"the package {package} is not installed. Install the extra that brings it: "
        f'pip install "alexnet-jax[{extra}]", or in a checkout pip install -e ".[{extra}]".'
    )

"""Which package each tracker needs."""

from __future__ import annotations

from importlib.util import find_spec

from apt_ds.config.errors import UserError

PACKAGES = {"tensorboard": "tensorboard", "wandb": "wandb", "mlflow": "mlflow-skinny"}


def check_installed(names: tuple[str, ...]) -> None:
    """Check that the package of each tracker is installed. Imports none of them.

    Raises:
        UserError: a package is missing.
    """
    for name in names:
        if find_spec(name) is None:
            raise UserError(
                f"--report_to {name} needs the package {PACKAGES[name]}: pip install 'apt_ds[tracking]', "
                f"or remove {name} from --report_to"
            )

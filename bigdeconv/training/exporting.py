"""Export of a checkpoint to a model file with its card."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from bigdeconv import models
from bigdeconv.errors import OutputExistsError
from bigdeconv.storage import weights as files
from bigdeconv.training import checkpoints
from bigdeconv.training.data import measured_part, training_volumes
from bigdeconv.training.evaluation import evaluate
from bigdeconv.training.loop import torch_device
from bigdeconv.training.regularizer import Regularizer

if TYPE_CHECKING:
    from bigdeconv.numerics.priors.weights import WcrrWeights
    from bigdeconv.training.config import TrainingConfig

_STEPS = (0, 15, 100, 500)


def export(
    folder: str | Path,
    path: str | Path,
    *,
    config: TrainingConfig | None = None,
    compared_with: WcrrWeights | None = None,
    device: str = "cpu",
) -> WcrrWeights:
    """Write the model of a checkpoint to a file and return it.

    The card of the model contains its training data, its settings, and its PSNR on the brightest parts of the held-out volumes
    after several numbers of denoising steps.

    Parameters
    ----------
    folder : str or Path
        Folder of the training.
    path : str or Path
        Model file, which must not exist.
    config : TrainingConfig, optional
        Configuration with other values of ``kappa`` and ``sigma_default``; all settings that decide the training must be those
        of the checkpoint.
    compared_with : WcrrWeights, optional
        Another model whose PSNR on the same volumes goes into the card.
    device : str
        ``cpu``, ``cuda`` or ``auto``.

    Returns
    -------
    WcrrWeights

    Raises
    ------
    InvalidInputError
        If the folder contains no readable checkpoint, or one of another configuration, or there is no such device.
    OutputExistsError
        If the file exists.
    StoreError
        If the file cannot be written.
    """
    path = Path(path)
    if path.exists():
        raise OutputExistsError(f"output: {str(path)!r} exists; give another path.")
    trained, state = checkpoints.load(Path(folder))
    config = config or trained
    checkpoints.check_same(config, trained, Path(folder))
    regularizer = Regularizer(config)
    regularizer.load_state_dict(state["regularizer"])
    plain = regularizer.weights(config, {})
    _, held_out = training_volumes(config, Path(folder))
    parts = [measured_part(volume) for volume in held_out]

    def psnr_db(model: WcrrWeights) -> dict[str, dict[str, float]]:
        table = evaluate(model, config.checked_sigmas, parts, steps=_STEPS, device=torch_device(device))
        return {f"σ {sigma:g}/255": {_label(k): round(v, 2) for k, v in row.items()} for sigma, row in table.items()}

    card = {
        "name": config.name,
        "about": "weakly convex ridge regulariser, trained at the fixed point of Gaussian denoising",
        "data": _data(config),
        "psnr_db": psnr_db(plain),
        "steps_trained": int(state["step"]),
        "seed": config.seed,
        "digest": models.digest(plain),
        "settings": config.model_dump(mode="json"),
    }
    if compared_with is not None:
        other = compared_with.card.get("name", models.digest(compared_with))
        card["compared_with"] = {"name": other, "psnr_db": psnr_db(compared_with)}
    finished = regularizer.weights(config, card)
    files.save(path, finished)
    return finished


def _label(steps: int) -> str:
    return f"{steps} steps" if steps else "noisy"


def _data(config: TrainingConfig) -> dict[str, Any]:
    data = config.data
    if config.volumes is not None:
        return {"volumes": Path(config.volumes).name, "scale": "maximum 1"}
    ratio, blur = data.axial_ratio, data.blur_um
    noise = f"Gaussian, standard deviation 0 to {config.sigma_max:g}/255"
    if config.noise_blur:
        noise += f", in every other crop correlated over up to {config.noise_blur:g} voxels"
    return {
        "volumes": f"{data.volumes} simulated volumes of curved hollow tubes, {data.held_out} held out",
        "scale": "maximum 1",
        "voxel_zyx_um": [
            _range(data.lateral_um[0] * ratio[0], data.lateral_um[1] * ratio[1]),
            *[_range(*data.lateral_um)] * 2,
        ],
        "axial_to_lateral": _range(*ratio),
        "outer_radius_um": _range(*data.outer_radius_um),
        "blur_standard_deviation_um": _range(*blur),
        "blur_standard_deviation_voxels_yx": _range(blur[0] / data.lateral_um[1], blur[1] / data.lateral_um[0]),
        "noise": noise,
    }


def _range(low: float, high: float) -> str:
    return f"{low:.3g} to {high:.3g}"

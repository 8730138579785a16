"""What a network predicts, and whether its noise ends at zero SNR: by the marks of trainers.

`v_pred` and `ztsnr` are empty tensors that ComfyUI, Forge and the web UI look for; `modelspec.…` is
Stability's specification of metadata, and `ss_…` is what kohya's trainer writes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from models.backbones.importing.single_file.checkpoint import Checkpoint
from models.backbones.importing.source import CannotImport
from models.diffusion.parameterization import PREDICTION_TYPES

V_PRED, ZERO_SNR = "v_pred", "ztsnr"
NAMES = {
    "epsilon": "epsilon", "eps": "epsilon", "v": "v_prediction", "v_prediction": "v_prediction",
    "v-prediction": "v_prediction", "vpred": "v_prediction", "sample": "sample",
}  # fmt: skip
SD2_NORM = "model.diffusion_model.output_blocks.11.1.transformer_blocks.0.norm1.bias"
SD2_LIMIT = 0.09
"""Released SD 2 models that predict v have biases there that spread further than this."""
EDM = ("edm_mean", "edm_std", "edm_vpred.sigma_max")


@dataclass(frozen=True)
class Prediction:
    """`zero_snr` rescales the betas until x_T is noise alone; `why` says what showed it."""

    prediction_type: str
    zero_snr: bool
    why: str

    def changes(self) -> dict[str, Any]:
        """Of a scheduler's configuration."""
        found: dict[str, Any] = {"prediction_type": self.prediction_type}
        if self.zero_snr:
            found["rescale_betas_zero_snr"] = True
        if self.zero_snr and self.prediction_type != "epsilon":
            # Made for it: the first step is then at the timestep of noise alone.
            found["timestep_spacing"] = "trailing"
        return found

    def note(self) -> str:
        """A sentence for people."""
        snr = ", zero terminal SNR" if self.zero_snr else ""
        return f"prediction_type: {self.prediction_type}{snr}: {self.why}"


def find_prediction(checkpoint: Checkpoint, asked: str | None, sd2: bool) -> Prediction:
    """What a checkpoint's network predicts. Raises CannotImport where its process is another."""
    if found := next((name for name in EDM if name in checkpoint.outlines), None):
        raise CannotImport(
            f"{checkpoint.path}: {found} marks EDM's preconditioning over a continuous σ, which is "
            "not supported"
        )
    kind, why = _kind(checkpoint, sd2)
    if asked is not None:
        kind, why = asked, "as --prediction-type says"
    return Prediction(kind, _zero_snr(checkpoint), why)


def _kind(checkpoint: Checkpoint, sd2: bool) -> tuple[str, str]:
    metadata = checkpoint.metadata
    if V_PRED in checkpoint.outlines:
        return "v_prediction", f"the file has {V_PRED}"
    key = "modelspec.prediction_type"
    if said := metadata.get(key):
        if said.lower() not in NAMES:
            raise CannotImport(
                f"{checkpoint.path}: {key} is {said!r} in its metadata, not one of "
                f"{', '.join(sorted(PREDICTION_TYPES))}: give --prediction-type"
            )
        return NAMES[said.lower()], f"its metadata says so ({key})"
    key = "ss_v_parameterization"
    if key in metadata:
        said = "v_prediction" if metadata[key].lower() == "true" else "epsilon"
        return said, f"its metadata says so ({key})"
    if sd2 and SD2_NORM in checkpoint.outlines:
        spread = float(checkpoint.read([SD2_NORM])[SD2_NORM].float().std(unbiased=False))
        if spread > SD2_LIMIT:
            return "v_prediction", f"an SD 2 model, with a spread of {spread:.2f} in {SD2_NORM}"
    return "epsilon", "nothing in the file says otherwise (--prediction-type overrides)"


def _zero_snr(checkpoint: Checkpoint) -> bool:
    if ZERO_SNR in checkpoint.outlines:
        return True
    if checkpoint.metadata.get("ss_zero_terminal_snr", "").lower() == "true":
        return True
    name = "alphas_cumprod"
    if name in checkpoint.outlines and checkpoint.outlines[name].ndim == 1:
        return float(checkpoint.read([name])[name][-1]) < 1e-6
    return False

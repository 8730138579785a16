"""A bundle on a terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from service.cli.common import say

if TYPE_CHECKING:
    from models.bundles.bundle import Bundle

HEX = len("sha256:") + 12
BYTES_OF = {"float32": 4, "bfloat16": 2, "float16": 2}


def size(count: float) -> str:
    """Bytes in words: 1.3 GB."""
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.2f} GB"


def memory(parameters: int) -> str:
    """What so many parameters take, by dtype."""
    return ", ".join(f"{dtype} {size(parameters * bytes_)}" for dtype, bytes_ in BYTES_OF.items())


def show_bundle(bundle: Bundle) -> None:
    """Print what a verified bundle holds."""
    manifest, backbone = bundle.manifest, bundle.manifest.backbone
    record = backbone.training

    def line(what: str, text: object) -> None:
        say(f"{what:14} {text}")

    line("name", manifest.name)
    line("description", manifest.description)
    line("licence", manifest.licence)
    line("images", f"{backbone.height} × {backbone.width} × {backbone.channels}")
    if backbone.other_sizes:
        others = (f"{height} × {width}" for height, width in backbone.other_sizes)
        line("other sizes", ", ".join(others))
    if backbone.kind == "pipeline":
        line("runs as", "a whole pipeline of diffusers': rejection alone")
    else:
        line("x_t", " × ".join(str(side) for side in bundle.x_t_shape))
    line("inputs", _inputs(bundle))
    line("runtimes", "torch" if backbone.onnx is None else "onnx, torch")
    line("rewards", ", ".join(manifest.rewards) or "none: train one from labels at /feedback")
    parameters = 0
    for name, part in record.get("components", {}).items():
        parameters += part["parameters"]
        line(name, f"{part['class']}, {part['parameters'] / 1e6:.2f} M {part['dtype']}, "
                   f"{size(part['bytes'])}")  # fmt: skip
    for lora in record.get("loras", []):
        line("LoRA", f"{lora['file']} × {lora['scale']:g}, {lora['sha256'][:HEX]}")
    if parameters:
        line("in memory", memory(parameters))
    if check := record.get("check"):
        line("check", f"{check['step_s']:g} s a step, {check['nfe_per_s']:g} NFE/s, "
                     f"{size(check['peak_bytes'])} at the most, on {check['device']} in "
                     f"{check['dtype']}")  # fmt: skip
    say("\nfiles, all as the manifest says")
    for name, file in manifest.files.items():
        say(f"  {bundle.sha256(name)[:HEX]}  {size(file.bytes):>8}  {name}")


def _inputs(bundle: Bundle) -> str:
    inputs = bundle.manifest.backbone.inputs
    if inputs.kind == "none":
        return "none"
    if inputs.kind == "text":
        at_a_time = " at a time" if inputs.chunked else ""
        read = "" if inputs.max_tokens is None else f" (read {inputs.max_tokens} tokens{at_a_time})"
        return f"a prompt{read}, guidance_scale {inputs.guidance_scale:g}"
    names = ", ".join(inputs.class_names[:5])
    more = ", …" if len(inputs.class_names) > 5 else ""
    null = "no null class" if inputs.null_class is None else f"null class {inputs.null_class}"
    return (
        f"one of {len(inputs.class_names)} classes ({names}{more}), {null}, guidance_scale "
        f"{inputs.guidance_scale:g}"
    )

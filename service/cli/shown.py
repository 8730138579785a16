"""How a bundle is shown on a terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from service.cli.common import console

if TYPE_CHECKING:
    from models.bundle import Bundle

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
    """Name, kind, sizes, inputs, components, files and rewards of a bundle that was verified."""
    manifest, backbone = bundle.manifest, bundle.manifest.backbone
    record = backbone.training

    def say(what: str, text: object) -> None:
        console.print(f"{what:14} {text}", markup=False, soft_wrap=True)

    say("name", manifest.name)
    say("description", manifest.description)
    say("licence", manifest.licence)
    say("images", f"{backbone.height} × {backbone.width} × {backbone.channels}")
    say("x_t", " × ".join(str(side) for side in bundle.x_t_shape))
    say("inputs", _inputs(bundle))
    say("runtimes", "torch" if backbone.onnx is None else "onnx, torch")
    say("rewards", ", ".join(manifest.rewards) or "none: train one from labels at /feedback")
    parameters = 0
    for name, part in record.get("components", {}).items():
        parameters += part["parameters"]
        say(name, f"{part['class']}, {part['parameters'] / 1e6:.2f} M {part['dtype']}, "
                  f"{size(part['bytes'])}")  # fmt: skip
    if parameters:
        say("in memory", memory(parameters))
    if check := record.get("check"):
        say("check", f"{check['step_s']:g} s a step, {check['nfe_per_s']:g} NFE/s, "
                     f"{size(check['peak_bytes'])} at the most, on {check['device']} in "
                     f"{check['dtype']}")  # fmt: skip
    console.print("\nfiles, all as the manifest says", markup=False)
    for name, file in manifest.files.items():
        short = bundle.sha256(name)[:HEX]
        console.print(f"  {short}  {size(file.bytes):>8}  {name}", markup=False, soft_wrap=True)


def _inputs(bundle: Bundle) -> str:
    inputs = bundle.manifest.backbone.inputs
    if inputs.kind == "none":
        return "none"
    if inputs.kind == "text":
        return f"a prompt of {inputs.max_tokens} tokens, guidance_scale {inputs.guidance_scale:g}"
    names = ", ".join(inputs.class_names[:5])
    more = ", …" if len(inputs.class_names) > 5 else ""
    null = "no null class" if inputs.null_class is None else f"null class {inputs.null_class}"
    return (
        f"one of {len(inputs.class_names)} classes ({names}{more}), {null}, guidance_scale "
        f"{inputs.guidance_scale:g}"
    )

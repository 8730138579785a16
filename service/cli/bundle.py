"""`winnow bundle`: make a bundle of a model of one's own, and look at one."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from service.cli.bundle_view import memory, show_bundle, size
from service.cli.classifier import classifier
from service.cli.common import BundleArgument, Threads, bars, say

if TYPE_CHECKING:
    from models.backbones.importing.bundle_folder import Made
    from models.bundles.manifest import Manifest
    from models.diffusion.condition import Size
    from service.config import BackboneSettings
    from service.offline.import_check import DrawnImage

app = typer.Typer(help="Make a bundle of a model, or look at one.", no_args_is_help=True)
ONNX = "backbone/unet.onnx"
SAMPLE = "sample.png"

app.command()(classifier)


@app.command("import")
def import_(
    source: Annotated[
        str,
        typer.Argument(
            help="A pipeline's folder in diffusers' format, a checkpoint in one file "
            "(.safetensors), or an id on the hub."
        ),
    ],
    out: Annotated[Path, typer.Option(help="The bundle's folder, which is made.")],
    name: Annotated[str | None, typer.Option(help="The model's name; default: OUT's.")] = None,
    variant: Annotated[str | None, typer.Option(help="Take these weights, e.g. fp16.")] = None,
    revision: Annotated[str | None, typer.Option(help="Of the hub's repository.")] = None,
    base: Annotated[
        Path | None,
        typer.Option(
            help="A pipeline's folder, for what a single file lacks: tokenizers, encoders."
        ),
    ] = None,
    prediction_type: Annotated[
        str | None, typer.Option(help="epsilon, v_prediction or sample, if it is not found right.")
    ] = None,
    image_size: Annotated[
        list[str] | None,
        typer.Option(
            "--size", help="HxW, if not the model's own; more of them, by commas or again."
        ),
    ] = None,
    pixel_shuffle: Annotated[
        int, typer.Option(min=1, max=8, help="r: the U-Net sees r × r pixels as channels.")
    ] = 1,
    class_names: Annotated[
        str | None, typer.Option(help="A file with one a line, or a,b,c.")
    ] = None,
    null_class: Annotated[int | None, typer.Option(help="The label of no class.")] = None,
    guidance_scale: Annotated[
        float | None, typer.Option(help="The default of policies that name none.")
    ] = None,
    lora: Annotated[
        list[str] | None, typer.Option(help="FILE or FILE:SCALE to fuse in; may be given again.")
    ] = None,
    whole: Annotated[
        bool, typer.Option("--whole", help="Run its pipeline as it is: rejection alone.")
    ] = False,
    licence: Annotated[
        str | None, typer.Option(help="If not as its model card or LICENSE says.")
    ] = None,
    description: Annotated[str | None, typer.Option(help="A sentence for its users.")] = None,
    onnx: Annotated[
        bool, typer.Option("--onnx", help="Export a UNet2DModel for ONNX Runtime on CPUs too.")
    ] = False,
    device: Annotated[str, typer.Option(help="cpu or cuda: checks the model there.")] = "cpu",
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16.")] = "float32",
    threads: Threads = 1,
    steps: Annotated[
        int | None,
        typer.Option(min=1, max=1000, help="num_inference_steps of the policies, if not its own."),
    ] = None,
    check_steps: Annotated[int, typer.Option(min=2, max=1000, help="Of the check's image.")] = 10,
    prompt: Annotated[str | None, typer.Option(help="Of the check's image.")] = None,
    config: Annotated[
        Path | None, typer.Option(help="Write the configuration here; default: beside OUT.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a bundle in OUT.")] = False,
) -> None:
    """Make a bundle of a diffusion model, check it, and write a configuration that serves it.

    Nothing is written unless the model draws an image, twice the same, through the engine that
    serves. Pickled weights and code are never read.
    """
    from models.backbones.importing.bundle_folder import Options
    from models.backbones.importing.inputs import InputOptions, read_names
    from models.backbones.importing.lora import Asked
    from models.backbones.importing.reference import open_source
    from models.backbones.importing.weight_checks import quietly
    from models.bundles import bundle as bundles
    from service.config.serve_file import read
    from service.offline.import_check import PROMPT
    from service.offline.import_configuration import configuration, write_configuration
    from service.policies.seeding import configured_policies

    out = out.resolve()  # what a link leads to is what is replaced
    called = _name(name, out)
    written = config or out.parent / f"{called}.yaml"
    _refuse_taken(out, written, force, given=config is not None)
    names = None if class_names is None else read_names(class_names)
    options = Options(
        name=called,
        size=",".join(image_size) if image_size else None,
        pixel_shuffle=pixel_shuffle,
        inputs=InputOptions(names, null_class, guidance_scale),
        licence=licence,
        description=description,
        steps={"--steps": steps or 1, "--check-steps": check_steps},
        loras=tuple(Asked.parse(text) for text in lora or ()),
        whole=whole,
    )
    settings = _settings(device, dtype, threads, onnx)
    out.parent.mkdir(parents=True, exist_ok=True)
    with _beside(out) as scratch, _beside(written) as scratch_of_config:
        (scratch / "source").mkdir()
        found = open_source(
            source,
            variant,
            revision,
            base=base,
            prediction_type=prediction_type,
            scratch=scratch / "source",
        )
        folder, file = scratch / "bundle", scratch_of_config / written.name
        with bars() as start, quietly():
            made, checked = _make(
                found, folder, options, settings, check_steps, prompt or PROMPT, start
            )
        manifest = bundles.read_manifest(folder)
        # The bundle is still in `folder`; the configuration names its final place.
        document = configuration(
            bundles.Bundle(out, manifest),
            settings,
            steps or made.sampling.num_inference_steps,
            checked.step_s,
            written.resolve().with_suffix(".state"),
            made.sampling.policy,
        )
        write_configuration(file, document, written)
        configured_policies(read(file).settings, {called: bundles.Bundle(folder, manifest)})
        if out.exists():
            out.rename(scratch / "before")
        folder.rename(out)
        if written.exists():
            # Somebody may have edited it.
            written.replace(written.with_name(f"{written.name}.old"))
        file.rename(written)
    _report(made, checked, settings, out, written, document)


@app.command()
def show(bundle: BundleArgument) -> None:
    """Verify a bundle, and tell what is in it."""
    from models.bundles import bundle as bundles

    show_bundle(bundles.load(bundle))


def _make(
    source: Any,
    folder: Path,
    options: Any,
    settings: BackboneSettings,
    check_steps: int,
    prompt: str,
    start: Callable[[str, int], Callable[..., None]],
) -> tuple[Made, DrawnImage]:
    """Make the bundle in `folder`, with its graph if wanted, its sample and its check."""
    from models.backbones.importing.bundle_folder import make
    from models.backbones.importing.onnx import export
    from models.bundles import bundle as bundles
    from models.diffusion.method import Method
    from service.errors import InvalidValue
    from service.images.encode import to_png
    from service.offline.import_check import SEED, draw_twice

    made = make(source, folder, options, start)
    if settings.runtime == "onnx":
        if made.manifest.backbone.sizes:
            raise ValueError("--onnx: a graph draws one size alone: give one --size, or leave out")
        graph = folder.parent / "unet.onnx"
        difference = export(bundles.Bundle(folder, bundles.read_manifest(folder)), graph)
        record = {"onnx": {"difference_from_torch": difference}}
        _add(folder, ONNX, graph, record, onnx=ONNX)
    loaded = bundles.Bundle(folder, bundles.read_manifest(folder))
    sizes = _checked_sizes(loaded.manifest)
    advance = start("draw an image, twice", 2 * len(sizes) * check_steps)
    try:
        method = Method(check_steps, sampler=made.sampling.sampler)
        checked = draw_twice(loaded, settings, method, prompt, advance, sizes)
    except InvalidValue as error:
        raise ValueError(f"--{error.param}: {error}") from None
    sample = folder.parent / SAMPLE
    sample.write_bytes(to_png(checked.pixels))
    check = {
        "seed": SEED,
        "num_inference_steps": checked.steps,
        # Not the prompt: whoever gets the bundle would read it.
        "class_label": checked.condition.class_label,
        "guidance_scale": checked.condition.guidance_scale,
        "runtime": settings.runtime,
        "device": settings.device,
        "dtype": settings.dtype,
        "step_s": round(checked.step_s, 4),
        "nfe_per_s": round(checked.nfe_per_s, 2),
        "peak_bytes": checked.peak_bytes,
    }
    _add(folder, SAMPLE, sample, {"check": check})
    bundles.load(str(folder))  # all of it, as the service will
    return made, checked


def _checked_sizes(manifest: Manifest) -> list[Size]:
    """The smallest and the largest, which comes last; the model's own where it has no other."""
    backbone = manifest.backbone
    own = (backbone.height, backbone.width)
    rising = sorted(backbone.sizes or [own], key=lambda size: size[0] * size[1])
    ends = list(dict.fromkeys([rising[0], rising[-1]]))
    return [None if size == own else size for size in ends]


def _add(folder: Path, name: str, file: Path, record: dict[str, Any], **fields: Any) -> None:
    """Add a file to a bundle, a record of it to `backbone.training`, and fields to `backbone`."""
    from models.bundles import bundle as bundles

    def change(manifest: Manifest) -> Manifest:
        update = fields | {"training": manifest.backbone.training | record}
        return manifest.model_copy(update={"backbone": manifest.backbone.model_copy(update=update)})

    bundles.add_files(folder, {name: file}, change)


def _report(
    made: Made,
    checked: DrawnImage,
    settings: BackboneSettings,
    out: Path,
    config: Path,
    document: dict[str, Any],
) -> None:
    backbone = made.manifest.backbone
    say(
        f"\n{made.manifest.name}: {made.kind}, images of {backbone.height} × "
        f"{backbone.width} × {backbone.channels}; licence: {made.manifest.licence}"
    )
    if backbone.other_sizes:
        others = ", ".join(f"{height} × {width}" for height, width in backbone.other_sizes)
        say(f"  other sizes: {others}; the smallest and the largest were drawn")
    for name, part in made.weights.items():
        say(f"  {name:16} {size(part.bytes):>9}  {part.parameters / 1e6:10.2f} M {part.dtype}")
    parameters = sum(part.parameters for part in made.weights.values())
    total = size(sum(part.bytes for part in made.weights.values()))
    say(f"  {'in all':16} {total:>9}  {parameters / 1e6:10.2f} M")
    say(f"  weights in memory: {memory(parameters)}")
    where = "of the GPU's memory" if settings.device.startswith("cuda") else "resident"
    say(
        f"  one image, {checked.steps} steps on {settings.device} ({settings.runtime}, "
        f"{settings.dtype}): {checked.step_s:.3f} s a step, {checked.nfe_per_s:.1f} NFE/s, "
        f"{size(checked.peak_bytes)} {where} at the most; drawn twice, same bytes"
    )
    for note in made.notes:
        say(f"  - {note}")
    port = document["http_options"]["port"]
    say(
        f"\n{out}: the bundle; look at {out / SAMPLE}\n{config}: its configuration\n\n"
        f"Next:\n  winnow serve {config}\n"
        f"  then label at http://127.0.0.1:{port}/feedback (goal: three minutes), press “Train a "
        "reward”, look at its card, and promote it as `screened`:\n  until then `screened` refuses "
        "every request. Unscreened images go to the admin key, by the policy `none`, and to\n  "
        "whoever labels: in this configuration anybody on this machine, who also chooses what "
        "they are of."
    )


def _settings(device: str, dtype: str, threads: int, onnx: bool) -> BackboneSettings:
    import torch
    from pydantic import ValidationError

    from service.config import BackboneSettings

    if device.startswith("cuda") and not torch.cuda.is_available():
        raise ValueError(f"--device: {device} is not there: torch sees no GPU on this machine")
    runtime: Literal["onnx", "torch"] = "onnx" if onnx else "torch"
    given = {"runtime": runtime, "device": device, "dtype": dtype, "threads": threads}
    try:
        return BackboneSettings.model_validate(given | {"max_batch": 1, "decode_batch": 1})
    except ValidationError as error:
        fault = error.errors()[0]
        where = ".".join(str(part) for part in fault["loc"])
        raise ValueError(f"--{where or 'onnx'}: {fault['msg']}") from None


@contextmanager
def _beside(path: Path) -> Iterator[Path]:
    """A temporary folder beside `path`, from which a rename to `path` is atomic."""
    with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as scratch:
        yield Path(scratch)


def _name(name: str | None, out: Path) -> str:
    from service.config import NAME, NAME_IN_WORDS

    called = out.resolve().name.lower() if name is None else name
    if not re.fullmatch(NAME, called):
        raise ValueError(f"--name: {called!r} must be {NAME_IN_WORDS}")
    return called


def _refuse_taken(out: Path, config: Path, force: bool, given: bool) -> None:
    from models.bundles.bundle import MANIFEST

    if given and (out in config.resolve().parents or config.is_dir()):
        raise ValueError(f"--config: {config} must be a file, and not in the bundle's folder")
    if given and not config.parent.is_dir():
        raise ValueError(f"--config: {config.parent} is no folder: make it first")
    if config.exists() and not force:
        option = "" if given else ", or --config FILE"
        raise ValueError(f"{config}: exists already: give --force to write over it{option}")
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if not (out / MANIFEST).is_file():
        raise ValueError(f"--out: {out} holds something that is no bundle: it is not replaced")
    if not force:
        raise ValueError(f"--out: {out} is a bundle already: give --force to replace it")

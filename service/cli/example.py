"""`winnow example`: train a small model on real data, to be imported like a user's own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from models.zoo.mnist import DIGITS_COMMAND, FASHION, FASHION_COMMAND
from service.cli.common import Advance, bars, console, faults, losses

if TYPE_CHECKING:
    from models.zoo.evaluation.features import FeatureRecipe
    from models.zoo.mnist import Images

app = typer.Typer(
    help="Train a small example on real data: a diffusers folder, OUT/model, such as you would "
    "bring of your own, and beside it OUT/referee.safetensors, which knows the real classes.",
    no_args_is_help=True,
)

Out = Annotated[Path, typer.Option(help="Work folder; the model will stand in OUT/model.")]
Threads = Annotated[int, typer.Option(min=1, help="CPU threads.")]
Steps = Annotated[int, typer.Option(min=1, help="Training steps of the diffusion model in all.")]
DigitsFolder = Annotated[
    Path,
    typer.Option("--digits", help=f"Folder of MNIST's four IDX files, from `{DIGITS_COMMAND}`."),
]
FashionFolder = Annotated[
    Path,
    typer.Option(
        "--images", help=f"Folder of Fashion-MNIST's four IDX files, from `{FASHION_COMMAND}`."
    ),
]


@app.command()
def digits(folder: DigitsFolder, out: Out, steps: Steps = 6000, threads: Threads = 2) -> None:
    """All ten handwritten digits, by class. Stop it and run it again: it goes on.

    Half an hour on a free core. Classes 0 to 9 are the digits, 10 is none (for classifier-free
    guidance); the images are folded by 2, which diffusers' folder cannot say.
    """
    import torch

    from models.zoo import mnist
    from models.zoo.examples.digits import RECIPE, train_digits
    from models.zoo.examples.referee import DIGITS

    torch.set_num_threads(threads)
    with faults(), bars() as start:
        train, held_out = mnist.digits(folder), mnist.digits(folder, "t10k")
        recipe = replace(RECIPE, steps=steps)
        train_digits(train, out, recipe, losses(start("train the diffusion model", steps)))
        _referee(train, held_out, DIGITS, out, start)
    console.print(f"Diffusers folder: {out / 'model'}", markup=False, soft_wrap=True)


@app.command()
def fashion(
    out: Out,
    folder: FashionFolder = FASHION,
    steps: Steps = 5000,
    autoencoder_steps: Annotated[
        int, typer.Option(min=1, help="Training steps of the autoencoder in all.")
    ] = 1500,
    threads: Threads = 2,
) -> None:
    """Clothes and bags, drawn in an autoencoder's latents. Stop it and run it again: it goes on.

    Half an hour on a free core. diffusers' LDMPipeline draws from the folder.
    """
    import torch

    from models.zoo import mnist
    from models.zoo.examples.fashion import AUTOENCODER, RECIPE, train_fashion
    from models.zoo.examples.referee import FASHION as REFEREE

    torch.set_num_threads(threads)
    with faults(), bars() as start:
        train, held_out = mnist.fashion(folder), mnist.fashion(folder, "t10k")
        train_fashion(
            train,
            out,
            replace(RECIPE, steps=steps),
            replace(AUTOENCODER, steps=autoencoder_steps),
            losses(start("train the autoencoder", autoencoder_steps)),
            losses(start("train the diffusion model", steps)),
        )
        _referee(train, held_out, REFEREE, out, start)
    console.print(f"Diffusers folder: {out / 'model'}", markup=False, soft_wrap=True)


def _referee(
    train: Images,
    held_out: Images,
    recipe: FeatureRecipe,
    out: Path,
    start: Callable[[str, int], Advance],
) -> None:
    """Make `out/referee.safetensors`, unless the record beside it says that this is done."""
    from models.zoo.evaluation.features import steps
    from models.zoo.examples.referee import make_referee
    from models.zoo.work_folder import write_record

    record = out / "referee.json"
    if record.exists():
        return
    bar = start("train the referee", steps(train, recipe))
    path = out / "referee.safetensors"
    made = make_referee(train, held_out, recipe, path, lambda _: bar(1))
    write_record(record, made)
    console.print(f"Referee: {path}, wrong about {made['error']:.1%} of the test images")

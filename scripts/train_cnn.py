"""Trains a convolutional network on MNIST with hand-written backward rules.

    python scripts/train_cnn.py
    python scripts/train_cnn.py --channels 32 64 --convolutions 2 2 --epochs 5 --out runs/wide
    python scripts/train_cnn.py --rules both --out runs/both        # and with JAX's autodiff

The training options and the output files are those of `train_mnist.py`, and so is what happens to
a run that is stopped.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import jax
import train_mnist
from command_line import command
from process import leave

from funcnet.layers import Layer, chain
from funcnet.models import cnn


@dataclasses.dataclass(frozen=True)
class Config(train_mnist.Training):
    """Trains a convolutional network with Batch Normalization on MNIST."""

    dropout: float = 0.2
    """Dropout probability at the input of the output layer."""
    shift: int = 2
    """Training images are shifted randomly by up to this number of pixels along each axis."""
    epochs: int = 6
    """Number of passes over the training images."""
    batch_size: int = 100
    """Number of images in a minibatch."""
    out: Path = Path("runs/cnn")
    """Folder for checkpoints and output files; a run in it that was stopped is continued."""
    channels: tuple[int, ...] = (16, 32, 64)
    """Number of channels of each stage; the image size is halved between stages."""
    convolutions: tuple[int, ...] = (1, 2, 2)
    """Number of convolutions of each stage."""


def image(bytes_: jax.Array) -> jax.Array:
    """Converts bytes to numbers in [0, 1], with one channel."""
    return bytes_[..., None].astype(float) / 255


def make_model(config: Config) -> Layer:
    """Makes the network, which maps bytes of shape (n, 28, 28) to logits of shape (n, 10)."""
    return chain(
        train_mnist.Shift(config.shift),
        image,
        cnn(
            *config.channels,
            classes=train_mnist.CLASSES,
            convolutions=config.convolutions,
            dropout=config.dropout,
        ),
    )


@command("train_cnn")
def main(argv: Sequence[str] | None = None) -> int:
    """Runs the program; see `train_mnist.main`."""
    return train_mnist.run(Config, make_model, argv)


if __name__ == "__main__":
    leave(main())

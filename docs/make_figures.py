"""Draw the pictures of the README: ``make figures``."""

from pathlib import Path

import numpy as np

from figures import viv_curve
from figures.style import save
from latentlab import load_tokenizer, measure, open_data
from latentlab.analyze import subject_of_tokenizer
from latentlab.runtime import prepare_threads
from mind.generate import sample_images
from mind.open_generator import open_generator
from mind.output import write_grid

FOLDER = Path(__file__).parent / "figures"


def main() -> None:
    """Draw every picture."""
    prepare_threads()
    velocity_curves()
    mind_samples()


def mind_samples(rows: int = 4) -> None:
    """Sample the embedded MIND: a column for each class, samples number 0, 1, ... as they come."""
    generator = open_generator("fashion32")
    labels = np.tile(np.arange(generator.num_classes), rows)
    write_grid(FOLDER / "mind_samples.png", sample_images(generator, labels), generator.num_classes)


def velocity_curves() -> None:
    """Measure three embedded tokenizers on the Fashion-MNIST test set and overlay the curves."""
    images = open_data("fashion:test")
    curves = {}
    for name in ("ae", "ibq", "kl"):
        subject = subject_of_tokenizer(load_tokenizer(name, release="fashion32"), images)
        curves[name] = measure("viv", store=subject.latents).details
    save(viv_curve.draw(curves), FOLDER / "viv_curve")


if __name__ == "__main__":
    main()

"""Draw the pictures of the README: ``make figures``."""

from pathlib import Path

from figures import viv_curve
from figures.style import save
from latentlab import load_tokenizer, measure, open_data
from latentlab.analyze import subject_of_tokenizer
from latentlab.runtime import prepare_threads
from latentlab.tokenizers.embedded import embedded_names

FOLDER = Path(__file__).parent / "figures"


def main() -> None:
    """Measure every embedded tokenizer on the Fashion-MNIST test set and overlay the curves."""
    prepare_threads()
    images = open_data("fashion:test")
    curves = {}
    for name in embedded_names():
        subject = subject_of_tokenizer(load_tokenizer(name, release="fashion32"), images)
        curves[name] = measure("viv", store=subject.latents).details
    save(viv_curve.draw(curves), FOLDER / "viv_curve")


if __name__ == "__main__":
    main()

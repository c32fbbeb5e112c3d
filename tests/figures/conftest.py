"""Real inputs for the figures: smooth synthetic latents of four classes, measured with numpy, scipy and scikit-learn."""

import numpy as np
import pytest
import scipy.fft
from sklearn.mixture import GaussianMixture

N, C, SIDE, CLASSES = 400, 2, 4, 4


@pytest.fixture(scope="session")
def labels() -> np.ndarray:
    return np.arange(N) % CLASSES


@pytest.fixture(scope="session")
def latents(labels: np.ndarray) -> np.ndarray:
    """[n,c,h,w]: white noise, blurred over the grid, with a mean per class; standardised per channel."""
    rng = np.random.default_rng(0)
    blur = 0.6 ** np.abs(np.subtract.outer(np.arange(SIDE), np.arange(SIDE)))
    noise = np.einsum("gh,ncgw,vw->nchv", blur, rng.standard_normal((N, C, SIDE, SIDE)), blur)
    z = noise + rng.standard_normal((CLASSES, C, SIDE, SIDE))[labels]
    return (z - z.mean((0, 2, 3), keepdims=True)) / z.std((0, 2, 3), ddof=1, keepdims=True)


@pytest.fixture(scope="session")
def viv_details(latents: np.ndarray, labels: np.ndarray) -> dict:
    """Mean over classes of lambda / ((1-t)^2 + t^2 lambda), with the range over classes as its band."""
    t = np.linspace(0, 1, 51)
    covariances = [np.cov(latents[labels == k].reshape(-1, C * SIDE**2).T) for k in range(CLASSES)]
    spectra = np.array([np.linalg.eigvalsh(covariance)[::-1] for covariance in covariances])
    lam = spectra[:, None, :]
    curves = (lam / ((1 - t[:, None]) ** 2 + t[:, None] ** 2 * lam)).mean(-1)
    return {
        "t": t,
        "curve": curves.mean(0),
        "curve_low": curves.min(0),
        "curve_high": curves.max(0),
        "eigenvalues": spectra.mean(0),
        "ranks": np.arange(1, spectra.shape[1] + 1),
    }


@pytest.fixture(scope="session")
def sec_details(latents: np.ndarray) -> dict:
    energy = (scipy.fft.dctn(latents, axes=(2, 3), norm="ortho") ** 2).mean((0, 1))
    return {"energy": energy / energy.sum()}


@pytest.fixture(scope="session")
def gmm_details(latents: np.ndarray) -> dict:
    """Three mixtures of the first two dimensions; the last fit is recorded as not converged."""
    points = latents.reshape(N, -1)[:, :2]
    train, heldout = points[: N // 2], points[N // 2 :]
    fits = [GaussianMixture(k, random_state=0).fit(train) for k in (1, 4, 16)]
    return {
        "components": [1, 4, 16],
        "train_nll": [-fit.score(train) for fit in fits],
        "heldout_nll": [-fit.score(heldout) for fit in fits],
        "bic": [fit.bic(train) for fit in fits],
        "converged": [True, True, False],
        "dims": 2,
    }

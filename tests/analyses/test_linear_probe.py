"""The probe's classifiers against closed forms, scikit-learn and scipy; its splits, refusals and reported numbers."""

import numpy as np
import pytest
from scipy.optimize import minimize
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.preprocessing import StandardScaler

from analyses import classifiers, linear_probe
from analyses.classifiers import bn_adamw, dino_sgd, logistic, ridge
from latentlab.errors import UserError
from latentlab.latents import ArrayLatents
from latentlab.registry import measure


def blobs(n, classes=4, d=5, spread=1.0, seed=0):
    rng = np.random.default_rng(99)
    means = rng.standard_normal((classes, d))
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % classes
    return means[labels] + spread * rng.standard_normal((n, d)), labels


def latents_of(features, labels, cells=4, seed=0):
    """Latents [n,d,2,2] whose mean over cells is ``features``."""
    noise = np.random.default_rng(seed).standard_normal((*features.shape, cells))
    noise -= noise.mean(2, keepdims=True)
    return ArrayLatents((features[:, :, None] + noise).reshape(*features.shape, 2, 2), labels=labels)


def all_logits(fitted, x):
    return np.concatenate(list(fitted.logits(x)))


@pytest.mark.parametrize("d", [6, 80])
def test_ridge_is_the_closed_form(d):
    """Both the primal and the dual solution solve the least squares problem with the penalty written as extra rows."""
    x, labels = blobs(60, d=d)
    x += 3  # the intercept matters
    targets = np.eye(4)[labels]
    design = np.block([[x, np.ones((60, 1))], [np.sqrt(2.5) * np.eye(d), np.zeros((d, 1))]])
    solution = np.linalg.lstsq(design, np.concatenate([targets, np.zeros((d, 4))]), rcond=None)[0]
    fitted = ridge(x, labels, penalty=2.5)
    np.testing.assert_allclose(all_logits(fitted, x), x @ solution[:-1] + solution[-1], atol=1e-10)


def test_ridge_measurement_equals_scikit_learn():
    x, y = blobs(200, spread=1.5)
    x_test, y_test = blobs(120, spread=1.5, seed=1)
    result = measure("linear_probe", store=latents_of(x, y), test=latents_of(x_test, y_test), classifier="ridge")
    scaler = StandardScaler().fit(x)
    peer = Ridge(alpha=1.0).fit(scaler.transform(x), np.eye(4)[y]).predict(scaler.transform(x_test))
    correct = peer.argmax(1) == y_test
    assert 0.4 < result.value < 0.95
    assert result.value == pytest.approx(correct.mean(), abs=1e-12)
    for label in range(4):
        assert result.details["per_class"][label] == pytest.approx(correct[y_test == label].mean())


def test_logistic_minimises_the_penalised_loss():
    """The objective written out, minimised by scipy: sum of cross-entropies + |W|^2 / (2 C), intercepts free."""
    x, y = blobs(90, classes=3, d=2)

    def objective(v):
        logits = x @ v[:6].reshape(3, 2).T + v[6:]
        logits -= logits.max(1, keepdims=True)
        return (np.log(np.exp(logits).sum(1)) - logits[np.arange(90), y]).sum() + v[:6] @ v[:6] / (2 * 0.5)

    best = minimize(objective, np.zeros(9), options={"gtol": 1e-6}).x
    expected = x @ best[:6].reshape(3, 2).T + best[6:]
    found = all_logits(logistic(x, y, c=0.5), x)
    np.testing.assert_allclose(found - found.mean(1)[:, None], expected - expected.mean(1)[:, None], atol=2e-3)


def test_default_equals_scikit_learn():
    x, y = blobs(400, classes=7, spread=1.2)
    x_test, y_test = blobs(210, classes=7, spread=1.2, seed=1)
    result = measure("linear_probe", store=latents_of(x, y), test=latents_of(x_test, y_test))
    scaler = StandardScaler().fit(x)
    peer = LogisticRegression(max_iter=5000, tol=1e-6).fit(scaler.transform(x), y)
    assert result.value == pytest.approx(peer.score(scaler.transform(x_test), y_test), abs=0.01)
    assert result.companions["train"].value == pytest.approx(peer.score(scaler.transform(x), y), abs=0.01)
    ranked = np.argsort(-peer.predict_proba(scaler.transform(x_test)), axis=1)[:, :5]
    assert result.companions["top-5"].value == pytest.approx((ranked == y_test[:, None]).any(1).mean(), abs=0.01)
    assert result.interval[0] < result.value < result.interval[1]
    assert result.n == 210
    assert result.details["n_train"] == 400
    assert not result.warnings


def test_two_classes():
    x, y = blobs(200, classes=2, spread=1.5)
    fitted = logistic(x, y)
    peer = LogisticRegression().fit(x, y)
    logits = all_logits(fitted, x)
    np.testing.assert_allclose(logits[:, 1] - logits[:, 0], peer.decision_function(x), atol=1e-9)
    assert "top-5" not in measure("linear_probe", store=latents_of(x, y)).companions


@pytest.mark.parametrize("recipe", [dino_sgd, bn_adamw])
def test_recipes_depend_on_the_seed_only(recipe):
    x, y = blobs(300)
    fitted, again, other = (recipe(x, y, seed) for seed in (0, 0, 1))
    np.testing.assert_array_equal(fitted.weight, again.weight)
    np.testing.assert_array_equal(fitted.bias, again.bias)
    assert not np.array_equal(fitted.weight, other.weight)


def test_dino_sgd_comes_near_the_optimum():
    """300 steps on standardised data: within 0.03 of logistic regression."""
    x, y = blobs(700, d=10, spread=1.2)  # the last batch of an epoch is short
    x = StandardScaler().fit_transform(x)
    best = (all_logits(logistic(x, y), x).argmax(1) == y).mean()
    assert 0.7 < best < 0.97
    assert (all_logits(dino_sgd(x, y), x).argmax(1) == y).mean() == pytest.approx(best, abs=0.03)


def test_bn_adamw_normalises_and_learns():
    """500 steps over 200 features, enough to leave the random start; the norm folded into the weights undoes any unit."""
    x, y = blobs(12800, d=200, spread=2)
    x_scaled = x * np.exp(np.random.default_rng(0).standard_normal(200)) + 20
    assert (all_logits(bn_adamw(x_scaled, y), x_scaled).argmax(1) == y).mean() > 0.9  # chance is 0.25


def test_bn_adamw_on_few_images_is_flagged():
    x, y = blobs(300)
    result = measure("linear_probe", store=latents_of(x, y), classifier="bn_adamw")
    assert any("10 steps" in warning for warning in result.warnings)


def test_a_batch_of_one_image_is_no_error():
    x, y = blobs(257)
    assert np.isfinite(bn_adamw(x, y).weight).all()


@pytest.mark.parametrize("feature", ["avgpool", "maxpool", "avgmaxpool", "flatten"])
@pytest.mark.parametrize("classifier", ["logistic", "ridge", "dino_sgd"])
def test_every_feature_and_classifier(feature, classifier):
    x, y = blobs(300, spread=0.3)
    result = measure("linear_probe", store=latents_of(x, y), feature=feature, classifier=classifier)
    assert result.value > 0.7  # chance is 0.25
    assert feature in result.variant
    assert result.n == 60


def test_flatten_sees_what_averages_hide():
    """The class is in where the signal sits, not in how much there is: only the flattened latent can tell."""
    rng = np.random.default_rng(0)
    y = np.arange(400) % 2
    z = 0.1 * rng.standard_normal((400, 2, 1, 2))
    z[np.arange(400), :, 0, y] += 1
    assert measure("linear_probe", z, y, feature="flatten").value == 1
    assert measure("linear_probe", z, y).value < 0.75


def test_split_is_stratified_seeded_and_disjoint():
    labels = np.repeat([3, 5, 9, 11], [50, 10, 2, 1])
    latents = ArrayLatents(np.random.default_rng(0).standard_normal((63, 2, 2, 2)), labels=labels)
    warnings = []
    split = linear_probe._split(latents, 0.2, 0, warnings)
    again, other = (linear_probe._split(latents, 0.2, seed, []) for seed in (0, 1))
    assert np.bincount(labels[split.test_indices], minlength=12)[[3, 5, 9, 11]].tolist() == [10, 2, 1, 0]
    np.testing.assert_array_equal(np.sort(np.concatenate([split.train_indices, split.test_indices])), np.arange(63))
    np.testing.assert_array_equal(split.test_indices, again.test_indices)
    assert not np.array_equal(split.test_indices, other.test_indices)
    assert warnings == ["1 classes have a single image: they are trained on but not tested"]


def test_train_and_test_are_not_swapped():
    """Statistics and weights come from the training side: test latents in another unit must ruin the accuracy."""
    x, y = blobs(400, spread=0.2)
    x_test, y_test = blobs(200, spread=0.2, seed=1)
    test = latents_of(x_test + 50, y_test)
    assert measure("linear_probe", store=latents_of(x, y), test=latents_of(x_test, y_test)).value > 0.95
    assert measure("linear_probe", store=latents_of(x, y), test=test).value < 0.5


def test_constant_features_are_harmless():
    x, y = blobs(200, spread=0.3)
    expected = measure("linear_probe", store=latents_of(x, y)).value
    z = latents_of(x, y).take(slice(None)).numpy()
    wide = np.concatenate([z, np.full((200, 1, 2, 2), 0.3)], axis=1)
    assert measure("linear_probe", wide, y).value == expected
    with pytest.raises(UserError, match="collapsed"):
        measure("linear_probe", np.full((200, 3, 2, 2), 0.3, np.float32), y)


def test_uninformative_classifier_is_not_right():
    """Equal logits for all classes are a miss, not a hit for whichever class comes first."""
    fitted = classifiers.LinearClassifier(np.zeros((6, 2)), np.zeros(6))
    hit, in_top5 = linear_probe._hits(fitted, np.ones((4, 2)), np.array([0, 1, 2, 5]))
    assert not hit.any()
    assert not in_top5.any()


def test_no_convergence_is_reported(monkeypatch):
    monkeypatch.setattr(classifiers, "MAX_ITERATIONS", 1)
    x, y = blobs(200)
    assert any("did not converge" in w for w in measure("linear_probe", store=latents_of(x, y)).warnings)


def test_refusals():
    x, y = blobs(40)
    train = latents_of(x, y)
    with pytest.raises(UserError, match="same set"):
        measure("linear_probe", store=train, test=latents_of(x, y))
    with pytest.raises(UserError, match=r"1 test classes have no training image \(first: label 7\)"):
        measure("linear_probe", store=train, test=latents_of(x + 1, np.where(y == 2, 7, y)))
    with pytest.raises(UserError, match="encode them alike"):
        measure("linear_probe", store=train, test=ArrayLatents(np.ones((4, 3, 2, 2)), labels=np.arange(4)))
    with pytest.raises(UserError, match="test latents have none"):
        measure("linear_probe", store=train, test=ArrayLatents(np.ones((4, 5, 2, 2))))
    with pytest.raises(UserError, match="at least 2 classes"):
        measure("linear_probe", store=latents_of(x, np.zeros(40, int)))
    with pytest.raises(UserError, match="no class has 2 images"):
        measure("linear_probe", store=latents_of(x, np.arange(40)))
    with pytest.raises(UserError, match="instance of Latents"):
        measure("linear_probe", store=train, test=x)
    with pytest.raises(UserError, match="needs labels"):
        linear_probe.linear_probe(ArrayLatents(np.ones((4, 3, 2, 2))))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"feature": "avg"}, "Did you mean avgpool"),
        ({"classifier": "svm"}, "unknown classifier"),
        ({"regularization": 0.0}, "regularization must be a positive number"),
        ({"test_fraction": 1.0}, "test_fraction must lie between 0 and 1"),
    ],
)
def test_bad_parameters_are_refused(change, message):
    x, y = blobs(40)
    with pytest.raises(UserError, match=message):
        measure("linear_probe", store=latents_of(x, y), **change)


def test_too_little_memory_is_refused(monkeypatch):
    class Scarce:
        available = 1 << 12

    monkeypatch.setattr(linear_probe.psutil, "virtual_memory", lambda: Scarce)
    x, y = blobs(300)
    with pytest.raises(UserError, match=r"feature='flatten'.*GiB are free: use feature='avgpool'"):
        measure("linear_probe", store=latents_of(x, y), feature="flatten")


def test_bad_latents_are_refused():
    x, y = blobs(40)
    x[3, 0] = np.inf
    with pytest.raises(UserError, match="1 of 40 latents contain NaN or infinity"):
        measure("linear_probe", np.repeat(x[:, :, None], 2, axis=2)[..., None], y)


def test_test_latents_that_were_trained_on_are_refused_and_arrays_are_accepted():
    rng = np.random.default_rng(0)
    z, labels = rng.normal(size=(80, 4, 2, 2)), np.arange(80) % 4
    for overlap in (z[:30], z[::-1]):
        with pytest.raises(UserError, match=rf"{len(overlap)} of {len(overlap)} test latents are training latents too"):
            measure("linear_probe", z, labels, test=(overlap, np.arange(len(overlap)) % 4))
    other = rng.normal(size=(20, 4, 2, 2))
    as_arrays = measure("linear_probe", z, labels, test=(other, np.arange(20) % 4))
    assert as_arrays.value == measure("linear_probe", z, labels, test=ArrayLatents(other, np.arange(20) % 4)).value


def test_equal_codes_of_different_images_are_no_overlap():
    """A discrete encoder may give two test images the latent of a training image."""
    z, labels = np.random.default_rng(0).normal(size=(40, 2, 1, 1)).round(), np.arange(40) % 2
    test = np.concatenate([z[:1], z[:1]])
    assert 0 <= measure("linear_probe", z, labels, test=(test, [0, 1])).value <= 1

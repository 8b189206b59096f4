"""Check the metrics: distances rank spoilt sounds last, and no headline metric prefers them."""

import numpy as np
import pytest

from evaluation.embedders.base import Classifier, MelStatistics, RandomConvolution, embed_all
from evaluation.embedders.mel_images import efficientnet_lite0
from evaluation.metrics.class_accuracy import hits, wanted_probability
from evaluation.metrics.density_coverage import coverage, inside
from evaluation.metrics.frechet import frechet_distance
from evaluation.metrics.kernel import kernel_distance
from tests.support.evaluation_sounds import KINDS, RATE, collection, muffled, noisy, shuffled

pytestmark = pytest.mark.slow


PER_KIND = 7
EMBEDDERS = {"melstats": MelStatistics(), "random-conv": RandomConvolution()}
DISTANCES = {"FAD": frechet_distance, "KAD": kernel_distance}


def flat(x):
    return x.reshape(-1, x.shape[-1])


@pytest.fixture(scope="module")
def sounds():
    return collection(PER_KIND, seed=0)[0]


@pytest.fixture(scope="module")
def others():
    return collection(PER_KIND, seed=1)[0]


def bad_sounds(kind, others):
    rng = np.random.default_rng(5)
    return {
        "silence": [np.zeros(RATE, np.float32) for _ in others],
        "white noise": [(0.1 * rng.standard_normal(RATE)).astype(np.float32) for _ in others],
        "one clip again and again": [others[0] for _ in others],
    }[kind]


BAD = ("silence", "white noise", "one clip again and again")


@pytest.mark.parametrize("embedder", EMBEDDERS.values(), ids=EMBEDDERS)
def test_a_set_is_near_itself_and_its_kind(embedder, sounds, others):
    same, near, far = (embed_all(embedder, s) for s in (sounds, others, noisy(others, 0.3)))
    assert frechet_distance(flat(same), flat(same)) == pytest.approx(0, abs=1e-6)
    assert abs(kernel_distance(flat(same), flat(same))) < 1
    for metric in DISTANCES.values():
        assert metric(flat(near), flat(same)) < 0.1 * metric(flat(far), flat(same))
    assert coverage(inside(same.mean(1), same.mean(1))) == 1


@pytest.mark.parametrize("embedder", EMBEDDERS.values(), ids=EMBEDDERS)
@pytest.mark.parametrize(
    ("spoil", "amounts"),
    [(noisy, (0.02, 0.08, 0.3)), (muffled, (3000, 1500, 600)), (shuffled, (4, 16, 64))],
    ids=["noise", "low-pass", "time-swap"],
)
def test_distances_rise_with_the_damage(spoil, amounts, embedder, sounds, others):
    real, *embeds = (
        flat(embed_all(embedder, s)) for s in (sounds, others, *(spoil(others, a) for a in amounts))
    )
    for metric in DISTANCES.values():
        found = [metric(x, real) for x in embeds]
        assert found == sorted(found)
        assert len(set(found)) == 4


@pytest.mark.parametrize("bad", BAD)
def test_no_distance_favours_silence_noise_or_one_clip(bad, sounds, others, judge):
    heard = bad_sounds(bad, others)
    for embedder in (*EMBEDDERS.values(), Classifier(judge)):
        real, good, poor = (embed_all(embedder, s) for s in (sounds, others, heard))
        for metric in DISTANCES.values():
            assert metric(flat(poor), flat(real)) > 10 * max(metric(flat(good), flat(real)), 0.01)
        assert (
            coverage(inside(poor.mean(1), real.mean(1)))
            < 0.4
            < 0.8
            < coverage(inside(good.mean(1), real.mean(1)))
        )


@pytest.mark.parametrize("bad", BAD)
def test_no_class_accuracy_favours_silence_noise_or_one_clip(bad, others, judge):
    asked = [kind for kind in KINDS for _ in range(PER_KIND)]
    good, poor = (judge.probabilities(s) for s in (others, bad_sounds(bad, others)))
    assert hits(good, judge.labels, asked).mean() > 0.8
    for measure in (hits, wanted_probability):
        assert measure(poor, judge.labels, asked).mean() <= 1 / len(KINDS) + 0.05


def test_fid_does_not_favour_silence_noise_or_one_clip(sounds, others):
    network = efficientnet_lite0()
    some = slice(None, None, 4)
    real, good = (flat(embed_all(network, s[some])) for s in (sounds, others))
    for bad in BAD:
        poor = bad_sounds(bad, others)[some]
        poor = (
            flat(embed_all(network, poor[:1])).repeat(len(real), 0)
            if bad != "white noise"
            else flat(embed_all(network, poor))
        )
        assert frechet_distance(poor, real) > 2 * frechet_distance(good, real)

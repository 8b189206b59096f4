import numpy as np
import pytest
from scipy.linalg import sqrtm
from sklearn.metrics.pairwise import rbf_kernel

from evaluation.metrics.bootstrap import bootstrap, difference, draw_picks, figure, gap_closed, mean_figure
from evaluation.metrics.class_accuracy import hits, per_class, read_phrases, wanted_probability
from evaluation.metrics.density_coverage import coverage, density, inside
from evaluation.metrics.frechet import frechet_distance, frechet_infinity
from evaluation.metrics.kernel import SCALE, kernel_distance, median_bandwidth
from evaluation.report.memorisation import TRAIN, memorisation, memorisation_table
from evaluation.run.scores import TableRow


def gaussians(n, dim, shift=0.0, seed=0):
    return np.random.default_rng(seed).standard_normal((n, dim)) + shift


@pytest.mark.parametrize(("n", "m", "dim"), [(200, 150, 12), (12, 15, 40)])  # both ways to the trace
def test_the_frechet_distance_equals_scipys_sqrtm(n, m, dim):
    rng = np.random.default_rng(1)
    x, y = rng.standard_normal((n, dim)) @ rng.standard_normal((dim, dim)), gaussians(m, dim, 0.3, 2)
    s1, s2 = np.cov(x.T), np.cov(y.T)
    expected = ((x.mean(0) - y.mean(0)) ** 2).sum() + np.trace(s1 + s2) - 2 * np.trace(sqrtm(s1 @ s2)).real
    if n > dim:
        assert frechet_distance(x, y) == pytest.approx(expected, rel=1e-9, abs=1e-6)
    else:  # sqrtm loses digits where covariances are singular
        assert frechet_distance(x, y) == pytest.approx(expected, rel=1e-6)


def test_the_kernel_distance_equals_scikit_learns_kernel():
    x, y = gaussians(40, 6, 0.4), gaussians(50, 6, seed=1)
    gamma = 1 / (2 * median_bandwidth(y) ** 2)
    k_xx, k_yy, k_xy = (rbf_kernel(a, b, gamma=gamma) for a, b in ((x, x), (y, y), (x, y)))
    within = (k_xx.sum() - 40) / (40 * 39) + (k_yy.sum() - 50) / (50 * 49)
    assert kernel_distance(x, y) == pytest.approx(SCALE * (within - 2 * k_xy.mean()), abs=1e-9)


def test_the_kernel_bandwidth_comes_from_the_reference():
    far, reference = gaussians(30, 4, 50.0), gaussians(30, 4, seed=1)
    assert kernel_distance(far, reference) == pytest.approx(
        kernel_distance(far, reference, bandwidth=median_bandwidth(reference))
    )
    assert kernel_distance(far, reference) != pytest.approx(kernel_distance(reference, far), rel=1e-3)


def test_extrapolation_removes_the_bias_of_few_clips():
    shift, dim = 0.4, 24
    truth = dim * shift**2
    plain, infinite = {}, {}
    for n in (100, 1000):
        pairs = [(gaussians(n, dim, seed=s), gaussians(n, dim, shift, seed=s + 50)) for s in range(4)]
        plain[n] = np.mean([frechet_distance(*pair) for pair in pairs]) - truth
        infinite[n] = np.mean([frechet_infinity(*pair) for pair in pairs]) - truth
    assert plain[100] > 5 * plain[1000] > 0
    assert abs(infinite[100]) < plain[100] / 4
    assert abs(infinite[1000]) < 0.05 * truth


@pytest.mark.parametrize("metric", [frechet_distance, kernel_distance, inside])
@pytest.mark.parametrize(
    ("x", "message"),
    [
        (np.zeros((1, 3)), "N >= 2"),
        (np.full((8, 3), np.nan), "NaN"),
        (np.zeros((8, 4)), "dimensions"),
    ],
)
def test_incomparable_embeddings_are_rejected(metric, x, message):
    with pytest.raises(ValueError, match=message):
        metric(x, gaussians(8, 3))


def test_too_small_references_are_rejected():
    with pytest.raises(ValueError, match="median distance"):
        kernel_distance(gaussians(8, 3), np.ones((8, 3)))
    with pytest.raises(ValueError, match="at least 8"):
        frechet_infinity(gaussians(4, 3), gaussians(4, 3))


def test_coverage_and_density_count_their_balls():
    reference = np.array([[0.0], [1.0], [2.0], [10.0], [11.0], [12.0]])
    within = inside(np.array([[0.5], [0.6]]), reference, k=1)  # radii are 1
    assert within.tolist() == [[True, True], [True, True]] + [[False, False]] * 4
    assert coverage(within) == pytest.approx(2 / 6)
    assert density(within, k=1) == pytest.approx(2.0)
    with pytest.raises(ValueError, match="more than 6 references"):
        inside(reference, reference, k=6)


def test_a_system_nearer_to_training_than_recordings_is_suspect():
    real, copies, fresh = (np.linspace(low, 1, 100) for low in (0.2, 0.0, 0.3))
    rows = [
        TableRow(name, query, "–", True, True, 100, nearest=nearest, relative=nearest)
        for name, query, nearest in (("ours", "text", copies), ("ours", "image", fresh), ("real", "–", real))
    ] + [TableRow("floor", "–", "–", False, True, 100)]
    found = memorisation(rows, "real", np.full((50, 2), 0.5))
    assert [(one["system"], one["query"], one["suspect"]) for one in found] == [
        ("ours", "text", True), ("ours", "image", False), ("real", "–", False), (TRAIN, "–", False),
    ]  # fmt: skip
    assert found[0]["share"] == pytest.approx(0.21, abs=0.01)
    figures = {"share": 0.01, "suspect": False} | {
        f"p{p}": pytest.approx(0.2 + 0.8 * p / 100) for p in (1, 5, 50)
    }
    assert found[2] == {"system": "real", "query": "–", **figures, "relative": figures}
    assert found[3]["relative"]["p1"] == 1.0  # two clips as far as each other
    assert (
        "| ours | text | 0.01 | 0.05 | 0.5 | 21.0 % | 0.01 | 21.0 % | nearer than unseen recordings |"
        in memorisation_table(found)
    )


def test_agreement_counts_hits_among_the_most_probable():
    heard = np.array([[0.5, 0.3, 0.2], [0.2, 0.3, 0.5], [0.1, 0.6, 0.3]])
    labels, asked = ["a", "b", "c"], ["a", "b", "a"]
    assert hits(heard, labels, asked).tolist() == [1, 0, 0]
    assert hits(heard, labels, asked, 2).tolist() == [1, 1, 0]
    assert wanted_probability(heard, labels, asked).tolist() == [0.5, 0.3, 0.1]
    assert per_class([1, 0, 0], asked) == {"a": 0.5, "b": 0.0}
    with pytest.raises(ValueError, match="for each of 2"):
        hits(heard, labels, asked[:2])
    with pytest.raises(ValueError, match="'d'"):
        hits(heard, labels, ["a", "b", "d"])


def test_intervals_resample_clips_within_classes():
    labels = ["a"] * 30 + ["b"] * 10
    picks = draw_picks(labels, 50)
    assert (picks[:, :30] < 30).all()
    assert (picks[:, 30:] >= 30).all()
    assert (draw_picks(labels, 50) == picks).all()


def test_an_interval_has_the_width_that_theory_gives():
    values = np.random.default_rng(0).standard_normal(400)
    alone = mean_figure(values, np.arange(400), draw_picks(["a"] * 400, 2000))
    assert alone.low < alone.value < alone.high
    assert alone.high - alone.low == pytest.approx(2 * 1.96 * values.std() / 20, rel=0.1)
    # The same 400 values as four sounds of each of 100 clips, alike within a clip, know only as much as 100.
    tied = mean_figure(
        np.repeat(values[:100], 4), np.repeat(np.arange(100), 4), draw_picks(["a"] * 100, 2000)
    )
    assert tied.high - tied.low == pytest.approx(2 * 1.96 * values[:100].std() / 10, rel=0.1)
    assert (
        bootstrap(lambda places: float(values[places].mean()), draw_picks(["a"] * 400, 200)).value
        == alone.value
    )


def test_a_paired_text_gap_is_sharper_than_its_parts():
    rng = np.random.default_rng(0)
    shared = rng.standard_normal(500)
    image, text = (
        figure(0.6, 0.6 + 0.1 * shared),
        figure(0.4, 0.4 + 0.1 * shared + 0.01 * rng.standard_normal(500)),
    )
    gap = difference(text, image)
    assert gap.value == pytest.approx(-0.2)
    assert -0.23 < gap.low < gap.high < -0.17
    half = difference(figure(0.5, 0.5 + 0.1 * shared), image)
    closed = gap_closed(half, gap)
    assert closed.value == pytest.approx(50)
    assert 40 < closed.low < 50 < closed.high < 60
    assert gap_closed(gap, gap).value == 0
    no_gap = difference(figure(0.6, 0.6 + 0.1 * shared[::-1]), image)
    with pytest.raises(ValueError, match="no gap"):
        gap_closed(half, no_gap)
    unsure = gap_closed(half, figure(0.01, 0.01 + 0.1 * shared))
    assert (unsure.low, unsure.high) == (-np.inf, np.inf)


def test_unusable_queries_are_named(tmp_path):
    path = tmp_path / "queries.json"
    for text, message in (("[]", "classes"), ("{", "classes"), ('{"classes": {"dog": []}}', "'dog'")):
        path.write_text(text)
        with pytest.raises(ValueError, match=message):
            read_phrases(path)

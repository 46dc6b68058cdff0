"""The demo models predict rows that they never saw."""

from __future__ import annotations

import numpy as np

from scripts.model_building.titles import HELD_OUT, TRAINED
from tests.models.repositories import DEMO, python_model, session, table, titles


def test_iris_names_at_least_nine_in_ten_held_out_flowers() -> None:
    rows = table("iris.csv")[2::3]
    label, probabilities = session(DEMO / "iris").run(None, {"x": rows[:, :4].astype(np.float32)})
    assert np.mean(label == rows[:, 4]) >= 0.9
    assert np.array_equal(label, probabilities.argmax(axis=1))
    assert np.allclose(probabilities.sum(axis=1), 1, atol=1e-5)


def test_digits_reads_at_least_95_in_100_held_out_digits() -> None:
    rows = table("digits.csv")
    images = rows[:, :64].reshape(-1, 8, 8).astype(np.float32)
    label, probabilities = session(DEMO / "digits").run(None, {"image": images})
    assert len(rows) == 200
    assert np.mean(label == rows[:, 64]) >= 0.95
    assert np.allclose(probabilities.sum(axis=1), 1, atol=1e-5)


def test_diabetes_explains_a_third_of_the_variance_of_held_out_patients() -> None:
    rows = table("diabetes.csv")
    (predicted,) = session(DEMO / "diabetes").run(None, {"x": rows[:, :10].astype(np.float32)})
    left = np.sum((predicted[:, 0] - rows[:, 10]) ** 2)
    assert 1 - left / np.sum((rows[:, 10] - rows[:, 10].mean()) ** 2) >= 0.33


def test_a_batch_gives_what_its_rows_give_one_by_one() -> None:
    rows = table("iris.csv")[:, :4].astype(np.float32)[:20]
    running = session(DEMO / "iris")
    together = running.run(["probabilities"], {"x": rows})[0]
    apart = np.concatenate([running.run(["probabilities"], {"x": row[None]})[0] for row in rows])
    assert np.allclose(together, apart, atol=1e-6)


def test_the_title_matcher_judges_nine_in_ten_pairs_of_products_it_never_saw() -> None:
    left, right, match = titles("titles.csv")
    features = python_model(DEMO / "text_features").infer({"left": left, "right": right})["features"]
    (score,) = session(DEMO / "text_score").run(None, {"features": features})
    assert len(match) >= 200
    assert 0.3 < match.mean() < 0.7
    assert np.mean((score[:, 0] > 0.5) == match) >= 0.9


def test_no_brand_of_the_held_out_titles_is_in_a_training_title() -> None:
    brands = {product.brand.lower().encode() for product in HELD_OUT}
    left, right, _ = titles("titles_train.csv")
    words = set(b" ".join(np.concatenate([left, right]).ravel()).lower().split())
    assert {product.brand.lower().encode() for product in TRAINED} <= words
    assert not brands & words


def test_features_are_fractions_and_equal_titles_agree_in_all_of_them() -> None:
    left, right, _ = titles("titles.csv")
    model = python_model(DEMO / "text_features")
    features = model.infer({"left": left, "right": right})["features"]
    assert features.dtype == np.float32
    assert features.shape == (len(left), 8)
    assert features.min() >= 0
    assert features.max() <= 1
    same = model.infer({"left": left[:1], "right": left[:1]})["features"]
    assert same.tolist() == [[1, 1, 1, 1, 1, 0, 0, 0]]


def test_features_of_empty_huge_and_broken_titles_are_numbers() -> None:
    odd = np.array([[b""], [b"\xff\xfe 12"], [b"a" * 100_000], [b"1.5 l"]], object)
    other = np.array([[b""], [b""], [b"b" * 100_000], [b"1500 ml"]], object)
    features = python_model(DEMO / "text_features").infer({"left": odd, "right": other})["features"]
    assert np.isfinite(features).all()
    assert features[3, 4] == 1, "1.5 l and 1500 ml are one number"


def test_no_pairs_give_no_features() -> None:
    none = np.empty((0, 1), object)
    assert python_model(DEMO / "text_features").infer({"left": none, "right": none})["features"].shape == (0, 8)

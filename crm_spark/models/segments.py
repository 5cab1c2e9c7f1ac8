"""Segments: KMeans on transformed features, named from what their customers are like.

MLlib's KMeans runs from one start and may stop far from the best solution, so several starts are compared by
cost. Numbers of clusters are compared by silhouette.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from pyspark.ml import Estimator, Pipeline, PipelineModel, Transformer
from pyspark.ml.clustering import KMeans, KMeansModel
from pyspark.ml.evaluation import ClusteringEvaluator
from pyspark.ml.feature import SQLTransformer, StandardScaler, VectorAssembler
from pyspark.sql import DataFrame
from pyspark.sql import functions as F
from scipy.optimize import linear_sum_assignment

from crm_spark.config import Segments
from crm_spark.models.matrix import MatrixRules, Preparation, fit_preparation, laid_out
from crm_spark.models.tables import SEGMENT_CANDIDATES, SEGMENT_CUSTOMERS
from crm_spark.tables import conform, declared_rows

NO_PURCHASE = "No purchase yet"
# What each name promises: the mean recency, frequency and monetary score of its customers.
ARCHETYPES = {
    "Champions": (4.7, 4.7, 4.7),
    "Loyal regulars": (3.9, 3.9, 3.9),
    "Frequent small baskets": (4.0, 4.0, 2.5),
    "Big-basket occasionals": (3.5, 2.0, 4.0),
    "Promising newcomers": (4.2, 1.7, 1.7),
    "Slipping away": (2.3, 3.2, 3.2),
    "Once valuable, now rare": (1.4, 2.5, 3.8),
    "Occasional light buyers": (2.8, 2.0, 2.0),
    "Nearly lost": (1.2, 1.2, 1.2),
}
_SCORES = ("recency_score", "frequency_score", "monetary_score")
# Amounts and counts are skewed: their logarithms are compared.
_LOGGED = ("recency_days", "order_count", "net_amount", "mean_order_amount", "category_count")
_SHARES = ("discount_share",)
SEGMENT_FEATURES = (*_LOGGED, *_SHARES)
_MAX_ITERATIONS = 50
_HASH_STEPS = 1_000_000


@dataclass(frozen=True)
class FittedSegments:
    """One per number of clusters tried: (cluster_count, silhouette, cost, is_chosen, path, segment_names)."""

    candidates: Sequence[tuple[object, ...]]


def fit_segments(
    buyers: DataFrame, rfm: DataFrame, settings: Segments, rules: MatrixRules, models_uri: str, models_path: str
) -> FittedSegments:
    """Fit, compare, name and save; without enough distinct customers for two segments there are no candidates."""
    preparation = fit_preparation(buyers, rules, settings.cap_outliers)
    rows = _keep_sample(buyers, settings.sample_customers).join(rfm.drop("as_of"), "customer_id")
    with laid_out(rows) as laid:
        transform = Pipeline(stages=_transform_stages(preparation))
        distinct_count = laid.select(*SEGMENT_FEATURES).distinct().count()
        counts = [count for count in settings.cluster_counts if count < distinct_count]
        if not counts:
            return FittedSegments([])
        transformer = transform.fit(laid)
        with laid_out(transformer.transform(laid)) as matrix:
            fitted = [_fit_best_start(matrix, count, settings) for count in counts]
            silhouettes = [_silhouette(model, matrix) for model in fitted]
            best = int(np.argmax(silhouettes))
            names = _name_clusters(fitted[best].transform(matrix), counts[best])
            path = f"{models_path}/segments"
            PipelineModel([*transformer.stages, fitted[best]]).write().overwrite().save(f"{models_uri}/{path}")
            chosen = {best: (True, path, names)}
            return FittedSegments(
                [
                    (count, silhouettes[index], _cost(fitted[index]), *chosen.get(index, (False, None, None)))
                    for index, count in enumerate(counts)
                ]
            )


def build_candidates(fitted: FittedSegments, features: DataFrame) -> DataFrame:
    """Rows: one per number of segments tried."""
    return declared_rows(features.sparkSession, SEGMENT_CANDIDATES, fitted.candidates)


def assign_segments(customers: DataFrame, candidates: DataFrame, models_uri: str) -> DataFrame:
    """Rows: one per customer at as_of; customers without a purchase have a segment of their own."""
    chosen = candidates.where("is_chosen").first()
    buyers = customers.where("order_count > 0")
    if chosen is None:
        named = buyers.withColumn("segment_name", F.lit("All customers"))
    else:
        model = PipelineModel.load(f"{models_uri}/{chosen['path']}")
        names = F.array(*map(F.lit, chosen["segment_names"]))
        named = model.transform(buyers).withColumn("segment_name", F.get(names, F.col("prediction")))
    others = customers.where("order_count = 0").withColumn("segment_name", F.lit(NO_PURCHASE))
    columns = SEGMENT_CUSTOMERS.column_names
    return conform(named.select(*columns).unionByName(others.select(*columns)), SEGMENT_CUSTOMERS)


def name_profiles(profiles: Sequence[Sequence[float]]) -> list[str]:
    """A different name for each profile (mean recency, frequency and monetary score): the closest fit overall."""
    names = list(ARCHETYPES)
    distances = np.array([[_distance(profile, ARCHETYPES[name]) for name in names] for profile in profiles])
    rows, columns = linear_sum_assignment(distances)
    chosen = dict(zip(rows, columns, strict=True))
    return [names[chosen[row]] for row in range(len(profiles))]


def _keep_sample(buyers: DataFrame, most: int) -> DataFrame:
    """About `most` customers, the same ones on every engine and in every order of rows."""
    count = buyers.count()
    if count <= most:
        return buyers
    place = F.pmod(F.xxhash64("customer_id"), F.lit(_HASH_STEPS))
    return buyers.where(place < round(_HASH_STEPS * most / count))


def _transform_stages(preparation: Preparation) -> list[Estimator[Any] | Transformer]:
    numbers = {name: preparation.number(name) for name in SEGMENT_FEATURES}
    logged = [f"signum({numbers[name]}) * log1p(abs({numbers[name]})) AS log_{name}" for name in _LOGGED]
    shares = [f"{numbers[name]} AS share_{name}" for name in _SHARES]
    columns = [f"log_{name}" for name in _LOGGED] + [f"share_{name}" for name in _SHARES]
    return [
        SQLTransformer(statement=f"SELECT *, {', '.join(logged + shares)} FROM __THIS__"),  # noqa: S608
        VectorAssembler(inputCols=columns, outputCol="raw_vector"),
        StandardScaler(inputCol="raw_vector", outputCol="features", withMean=True, withStd=True),
    ]


def _fit_best_start(matrix: DataFrame, count: int, settings: Segments) -> KMeansModel:
    """The fit with the lowest cost of several starts; the first of equals."""
    fits = [
        KMeans(k=count, seed=settings.seed + start, maxIter=_MAX_ITERATIONS, solver="block").fit(matrix)
        for start in range(settings.starts)
    ]
    return min(fits, key=_cost)


def _cost(model: KMeansModel) -> float:
    """Rounded: partial sums meet in any order, and equal solutions shall compare equal."""
    return round(float(model.summary.trainingCost), 6)


def _silhouette(model: KMeansModel, matrix: DataFrame) -> float:
    return round(float(ClusteringEvaluator().evaluate(model.transform(matrix))), 9)


def _name_clusters(assigned: DataFrame, count: int) -> list[str]:
    means = assigned.groupBy("prediction").agg(*(F.avg(score).alias(score) for score in _SCORES)).collect()
    profiles = {row["prediction"]: [row[score] for score in _SCORES] for row in means}
    return name_profiles([profiles.get(cluster, [0.0, 0.0, 0.0]) for cluster in range(count)])


def _distance(profile: Sequence[float], archetype: Sequence[float]) -> float:
    return float(sum((a - b) ** 2 for a, b in zip(profile, archetype, strict=True)))

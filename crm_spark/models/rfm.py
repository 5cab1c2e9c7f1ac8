"""RFM scores: recency, frequency and monetary value from 1 to 5 by fitted cut points.

Cut points, not ranks: customers with equal values have equal scores, however many there are of them.
"""

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

from crm_spark.config import Rfm
from crm_spark.models.tables import MODEL_RFM_CUT_POINTS, SCORE_RFM
from crm_spark.tables import conform, local_rows

# Measure to the score it gives; of recency, less is better.
_SCORES = {"recency_days": "recency_score", "order_count": "frequency_score", "net_amount": "monetary_score"}
_QUINTILES = [0.2, 0.4, 0.6, 0.8]


def fit_rfm_cut_points(buyers: DataFrame) -> DataFrame:
    """Rows: one per measure with its exact quintiles over the customers with a purchase; none without any."""
    quintiles = [F.percentile(F.col(name).cast("double"), F.array(*map(F.lit, _QUINTILES))) for name in _SCORES]
    wide = buyers.agg(*(column.alias(name) for column, name in zip(quintiles, _SCORES, strict=True)))
    pairs = [F.struct(F.lit(name).alias("measure"), F.col(name).alias("cut_points")) for name in _SCORES]
    cut_points = wide.select(F.inline(F.array(*pairs))).where("cut_points IS NOT NULL")
    return conform(cut_points, MODEL_RFM_CUT_POINTS)


def score_rfm(buyers: DataFrame, cut_points: DataFrame, rules: Rfm) -> DataFrame:
    """Rows: one per customer with a purchase; a score is 1 plus the number of cut points that the value exceeds."""
    wide = cut_points.agg(
        *(F.max(F.when(F.col("measure") == name, F.col("cut_points"))).alias(f"cuts_{name}") for name in _SCORES)
    )
    scored = buyers.crossJoin(F.broadcast(wide)).withColumns({score: _score(name) for name, score in _SCORES.items()})
    cells = [(*scores, name) for scores, name in rules.segment_by_scores.items()]
    columns = ", ".join([*(f"{score} int" for score in _SCORES.values()), "rfm_segment string"])
    named = scored.join(F.broadcast(local_rows(buyers.sparkSession, columns, cells)), [*_SCORES.values()])
    return conform(named.select(*SCORE_RFM.column_names), SCORE_RFM)


def _score(name: str) -> Column:
    value = F.col(name).cast("double")
    exceeded = F.size(F.filter(F.col(f"cuts_{name}"), lambda cut: value > cut))
    return 5 - exceeded if name == "recency_days" else 1 + exceeded
